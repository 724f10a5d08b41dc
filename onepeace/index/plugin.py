"""Engines and services beside the index, by the names of modules in onepeace.plugins."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from onepeace.errors import UsageError


def plugin(name: str, function: str) -> Any:
    """Function of ``onepeace.plugins.NAME``: "open_engine" embeds elsewhere, "open_store" searches elsewhere.

    Raises:
        UsageError: no module of that name has it.
    """
    place = f"onepeace.plugins.{name}"
    found = getattr(import_module(place), function, None) if name.isidentifier() and find_spec(place) else None
    if found is None:
        raise UsageError(f"{name!r} is no plug-in with {function}; see the folder onepeace/plugins")
    return found
