"""Modules of the standard library that what we use imports at its top and hardly ever needs: loaded when first used.

`importlib.util.LazyLoader` is for that, but in Python 3.11 the next `import` of such a module loads it.
"""

import importlib
import sys
import threading
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_lock = threading.Lock()


class Deferred(ModuleType):
    """Stands for a module in `sys.modules` until somebody asks for something that is in it."""

    def __getattr__(self, name: str) -> Any:
        # whoever looks over all modules looks for these, and uses none of them
        if name.startswith("__"):
            raise AttributeError(f"{self.__name__}.{name}: expected a module that is loaded, got a deferred one")
        with _lock:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
        found = getattr(importlib.import_module(self.__name__), name)
        setattr(self, name, found)
        return found


def defer(*names: str) -> None:
    """Put off loading modules (no packages) to their first use; one that is loaded stays so."""
    for name in names:
        if name in sys.modules:
            continue
        module = Deferred(name)
        module.__spec__ = ModuleSpec(name, None)
        sys.modules[name] = module
        package, _, last = name.rpartition(".")
        if package:
            setattr(importlib.import_module(package), last, module)
