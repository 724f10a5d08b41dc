"""Index of files, as items and vectors, and search in it: ``from onepeace.index import Index, Query, build``."""

from onepeace.index.builder import Report
from onepeace.index.index import Index
from onepeace.index.query import Query
from onepeace.index.search import Hit, Results
from onepeace.index.store import Item, is_index
from onepeace.index.verify import CheckReport, check
from onepeace.index.write import build, remove, update

__all__ = [
    "CheckReport", "Hit", "Index", "Item", "Query", "Report", "Results", "build", "check", "is_index", "remove",
    "update",
]  # fmt: skip
