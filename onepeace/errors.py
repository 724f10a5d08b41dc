"""Errors for the user, and `need`, which imports an optional package."""

from importlib import import_module
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """Error that the user can fix. Its message is one line: what is wrong, with which numbers, and what to do.

    The command line prints only the message and exits with code 1.
    """


class UsageError(UserError):
    """Wrong usage of the command line: a `UserError` with exit code 2."""


def expect(value: object, kind: type[T]) -> T:
    """Return the value, typed as `kind`; TypeError if it is not of that type."""
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def one_line(error: object) -> str:
    """The message of an error or another reason on one line, or the type name if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def reason_of(error: Exception) -> str:
    """Message of an error of the operating system or the network, in one line."""
    inner = getattr(error, "reason", None)
    text = getattr(error, "strerror", None) or (str(inner) if inner else str(error))
    return " ".join(text.split()) or type(error).__name__


def need(module: str, extra: str, where: str = "") -> ModuleType:
    """Import and return `module`, which the optional extra `extra` of this package installs.

    Raises `UserError` with the pip command if the package is not installed, and with the reason if it is broken. The
    message begins with `where`, the file that needs the package.
    """
    try:
        return import_module(module)
    except (ImportError, OSError) as error:
        package, at = module.partition(".")[0], f"{where}: " if where else ""
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package:
            raise UserError(f'{at}needs {package}: pip install "onepeace[{extra}]"') from error
        reason = one_line(error)
        raise UserError(f"{at}{package} is installed but does not import ({reason}); see: onepeace doctor") from error
