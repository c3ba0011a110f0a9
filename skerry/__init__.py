"""Everything both shores share, and the public face of Skerry: `skerry.Model`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skerry.model import Model as Model

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the public face when it is asked for: most of those who import this package have no use for it."""
    if name == "Model":
        from skerry.model import Model

        return Model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
