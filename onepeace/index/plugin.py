"""Engines and services beside the index, by the names of modules in onepeace.plugins."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from onepeace import plugins
from onepeace.errors import UsageError


def plugin(name: str, function: str) -> Any:
    """Function of ``onepeace.plugins.NAME``: "open_workers" embeds elsewhere, "open_store" searches elsewhere.

    Raises:
        UsageError: no module of that name has it.
    """
    known = {module.name for module in iter_modules(plugins.__path__)}
    found = getattr(import_module(f"onepeace.plugins.{name}"), function, None) if name in known else None
    if found is None:
        raise UsageError(f"{name!r} is no plug-in with {function}; see onepeace/plugins")
    return found
