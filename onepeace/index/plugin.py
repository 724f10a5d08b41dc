"""Engines and vector databases for an index, by their module names in onepeace.plugins."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from onepeace.errors import UsageError

LOCAL = "local"
"""Value of ``meta["store"]`` if no vector database is used."""


def plugin(address: str, function: str) -> Any:
    """Function of ``onepeace.plugins.NAME`` for an address NAME:...

    "open_engine" returns an embedder. "open_store" returns a vector database with ``candidates(query, count, code)``:
    ids of about ``count`` vectors of ``Store.modalities[code]`` that are nearest to a query, or None if it does not
    answer; ``send``, which updates it from the matrix; and ``close``.

    Raises:
        UsageError: no module of that name has the function.
    """
    name = address.partition(":")[0]
    module = f"onepeace.plugins.{name}"
    if name.isidentifier() and find_spec(module):
        hook = getattr(import_module(module), function, None)
        if hook is not None:
            return hook
    raise UsageError(f"{name!r} is not a plug-in with {function}; see the folder onepeace/plugins")
