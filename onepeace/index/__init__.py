"""Index of files, as items and vectors, and search in it: ``from onepeace.index import Index, Query, build``."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onepeace.index.database import is_index
    from onepeace.index.index import Index
    from onepeace.index.items import Item
    from onepeace.index.maintain import build, remove, update
    from onepeace.index.query import Query
    from onepeace.index.record import Report
    from onepeace.index.search import Hit, Results
    from onepeace.index.verify import CheckReport, check

_MODULES = {
    "CheckReport": "verify", "Hit": "search", "Index": "index", "Item": "items", "Query": "query", "Report": "record",
    "Results": "search", "build": "maintain", "check": "verify", "is_index": "database", "remove": "maintain",
    "update": "maintain",
}  # fmt: skip
__all__ = [
    "CheckReport", "Hit", "Index", "Item", "Query", "Report", "Results", "build", "check", "is_index", "remove",
    "update",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use, so that a text search loads neither torch nor the modules that build an index."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
