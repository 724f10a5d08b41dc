"""Python files and modules of a user's own, which add entries to the package's registries when they are imported.

Only what a person has named is imported: by ``--import`` on the command line, or by ``imports`` in a recipe. The folder
of a model never names code.
"""

import sys
from collections import UserDict
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from onepeace.errors import UsageError, UserError, one_line

T = TypeVar("T")

HINT = "--import FILE.py, or imports in a recipe, adds one"
"""Remedy for an entry that no registry has."""


class Table(UserDict[str, Any], Generic[T]):
    """A registry by name. An entry may be a dotted name ("package.module.Name"), imported when it is asked for."""

    def __getitem__(self, key: str) -> T:
        entry = self.data[key]
        if isinstance(entry, str):
            entry = self.data[key] = imported(entry)
        return entry


def imported(name: str) -> Any:
    """Object of a dotted name, such as "package.module.Name"."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


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


def import_extension(name: str) -> str:
    """Import a file ("terms/mine.py") or an installed module ("mine.terms"), once; returns the name.

    A file is imported as a top-level module of its name; its folder is added to the end of sys.path, where worker
    processes find it as well.

    Raises:
        UserError: there is no such file or module, it fails, or another module has the name of the file.
    """
    file = _python_file(name) if name.endswith(".py") else None
    module_name = name if file is None else file.stem
    try:
        module = import_module(module_name)
    except Exception as error:  # whatever the file does
        raise UserError(f"cannot be imported ({type(error).__name__}: {one_line(error)})", where=name) from error
    origin = getattr(module, "__file__", None)
    if file is not None and (origin is None or Path(origin).resolve() != file):
        raise UserError(f"there is another module {module_name} ({origin or 'built in'}); rename the file", where=name)
    return name


def run_file(name: str) -> ModuleType:
    """Run a Python file as a module of its own, whatever other modules are called; it can import files beside it.

    Raises:
        UserError: there is no such file, or it fails.
    """
    file = _python_file(name)
    spec = spec_from_file_location(f"onepeace_file_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UsageError("not a Python file (FILE.py)", where=name)
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module  # where dataclasses look up their annotations
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file does
        raise UserError(f"cannot be imported ({type(error).__name__}: {one_line(error)})", where=name) from error
    return module


def _python_file(name: str) -> Path:
    """A Python file that exists; its folder is added to the end of sys.path."""
    file = Path(name).resolve()
    if not file.is_file():
        raise UsageError("no such file, so it cannot be imported", where=name)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    return file


def resolve_imports(names: object, folder: Path) -> object:
    """Make paths of files, which are relative to a folder, absolute; names of modules stay, as does all but a list."""
    if not isinstance(names, list):
        return names
    return [str((folder / name).resolve()) if str(name).endswith(".py") else name for name in names]
