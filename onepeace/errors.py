"""The errors that are meant for a person, and the way to ask for an optional package."""

from importlib import import_module
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """Something the user can mend; its message is one line: what, which numbers, what to do.

    The command line prints the message alone and ends with exit code 1.
    """


class UsageError(UserError):
    """A wrong command line; like `UserError`, but the exit code is 2."""


def expect(value: object, kind: type[T]) -> T:
    """The value, known to be of a type; TypeError if it is not."""
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} in place of {kind.__name__}")
    return value


def one_line(error: object) -> str:
    """The message of an error, or another reason, without line breaks, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def need(module: str, extra: str, where: str = "") -> ModuleType:
    """Imports and returns `module`, which the optional extra `extra` of this package installs.

    Raises `UserError` with the pip line when it is not installed, and with the reason when it is installed but broken;
    it begins with `where`, the file that is read.
    """
    try:
        return import_module(module)
    except (ImportError, OSError) as error:
        package, at = module.partition(".")[0], f"{where}: " if where else ""
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package:
            raise UserError(f'{at}needs {package}: pip install "onepeace[{extra}]"') from error
        reason = one_line(error)
        raise UserError(f"{at}{package} is installed but does not import ({reason}); see: onepeace doctor") from error
