"""Files on disk as items and vectors, and their search: ``from onepeace.index import Index, Query, build``."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onepeace.index.builder import Report
    from onepeace.index.index import Index, is_index
    from onepeace.index.query import Query
    from onepeace.index.search import Hit, Results
    from onepeace.index.store import Item
    from onepeace.index.verify import CheckReport, check
    from onepeace.index.write import build, remove, update

_PLACES = {
    "write": ("build", "remove", "update"),
    "builder": ("Report",),
    "verify": ("CheckReport", "check"),
    "index": ("Index", "is_index"),
    "query": ("Query",),
    "search": ("Hit", "Results"),
    "store": ("Item",),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}
__all__ = [
    "CheckReport", "Hit", "Index", "Item", "Query", "Report", "Results", "build", "check", "is_index", "remove",
    "update",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use: searching by words loads no torch, and building is not loaded for searching."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
