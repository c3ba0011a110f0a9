"""A deferred module costs nothing until it is used, and is then what it always was."""

import importlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from agent.deferred import Deferred, defer

# nothing else here imports them
MODULE, INSIDE = "colorsys", "wsgiref.headers"


@pytest.fixture(autouse=True)
def unloaded() -> Iterator[None]:
    """Modules that nobody has loaded, as they are again afterwards."""
    for name in (MODULE, INSIDE):
        sys.modules.pop(name, None)
    yield
    for name in (MODULE, INSIDE):
        sys.modules.pop(name, None)


def test_a_deferred_module_is_loaded_by_its_first_use() -> None:
    defer(MODULE)
    module = importlib.import_module(MODULE)
    assert isinstance(module, Deferred)
    assert not hasattr(module, "__file__")
    assert isinstance(sys.modules[MODULE], Deferred)

    assert module.rgb_to_hsv(1, 0, 0) == (0.0, 1.0, 1)

    assert sys.modules[MODULE].__file__
    assert module.rgb_to_hsv is sys.modules[MODULE].rgb_to_hsv


def test_a_name_out_of_a_deferred_module_is_the_real_one() -> None:
    defer(MODULE)
    from colorsys import rgb_to_hls

    assert rgb_to_hls.__module__ == MODULE
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from colorsys import nothing  # type: ignore[attr-defined] # noqa: F401


def test_a_module_inside_a_package_is_found_there() -> None:
    defer(INSIDE)
    import wsgiref.headers

    assert isinstance(sys.modules[INSIDE], Deferred)
    assert wsgiref.headers.Headers([("a", "b")])["a"] == "b"
    assert wsgiref.headers is sys.modules[INSIDE]


def test_a_module_that_is_loaded_stays_so() -> None:
    loaded = importlib.import_module(MODULE)
    defer(MODULE)

    assert sys.modules[MODULE] is loaded


def test_threads_that_use_it_at_once_get_one_module() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            sys.modules.pop(MODULE, None)
            assert len(_used_by_threads()) == 1
    finally:
        sys.setswitchinterval(before)


def _used_by_threads() -> set[Any]:
    defer(MODULE)
    module, gate, found = importlib.import_module(MODULE), threading.Barrier(8), []

    def use() -> None:
        gate.wait()
        found.append(module.rgb_to_hsv)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    return set(found)
