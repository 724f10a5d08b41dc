"""Errors for the user, and `need`, which imports an optional package."""

import os
import re
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")


class UserError(Exception):
    """Error that the user can fix. Its message is one line: what is wrong, with which numbers, and what to do.

    The command line prints only the message and exits with code 1.

    Args:
        reason: the message without the place.
        where: file, item or setting that is wrong; the message begins with it. "" = none.
    """

    def __init__(self, reason: str, *, where: object = ""):
        self.reason = reason
        self.where = str(where)
        message = " ".join(str(reason).splitlines())
        super().__init__(printable(f"{self.where}: {message}" if self.where else message))


class UsageError(UserError):
    """Wrong usage of the command line: a `UserError` with exit code 2."""


class MissingPackage(UserError):
    """An optional package is not installed.

    Args:
        package: name of the package.
        extra: extra of this package that installs it.
        where: file that needs it.
    """

    def __init__(self, package: str, extra: str, *, where: object = ""):
        super().__init__(f'needs {package}: pip install "onepeace[{extra}]"', where=where)
        self.package = package
        self.extra = extra

    @staticmethod
    def named_in(text: str) -> str | None:
        """The package of a message that was kept as text; None if it is another message."""
        match = re.search(r"needs (\w+): pip install", text)
        return None if match is None else match[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), where=self.where), (self.package, self.extra)


def expect(value: object, kind: type[T]) -> T:
    """Return the value, typed as `kind`; TypeError if it is not of that type."""
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def printable(name: object) -> str:
    """A name or text given by others, for one line of a terminal: control and unprintable characters are escaped.

    Every `UserError`, line of the log and cell of a table goes through it.
    """
    text = os.fsdecode(name) if isinstance(name, os.PathLike) else str(name)
    if text.isprintable():
        return text
    escaped = [letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text]
    return "".join(escaped)


def one_line(error: object) -> str:
    """The message of an error or another reason on one line, or the type name if the message is empty."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def reason_at(where: object, error: Exception) -> str:
    """The message of an error on one line; without `where`, if it begins with that, for a line that names it anyway."""
    if isinstance(error, UserError) and error.where == str(where):
        return one_line(error.reason)
    return one_line(error)


def reason_of(error: Exception) -> str:
    """Message of an error of the operating system or the network, in one line."""
    inner = getattr(error, "reason", None)
    text = getattr(error, "strerror", None) or (str(inner) if inner else str(error))
    return " ".join(text.split()) or type(error).__name__


def need(module: str, extra: str, where: str = "") -> ModuleType:
    """Import and return `module`, which the optional extra `extra` of this package installs.

    Args:
        where: file that needs the package, for messages.

    Raises:
        MissingPackage: it is not installed; the message has the pip command.
        UserError: it is installed and does not import.
    """
    try:
        return import_module(module)
    except (ImportError, OSError) as error:
        package = module.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package:
            raise MissingPackage(package, extra, where=where) from error
        reason = f"{package} is installed but does not import ({one_line(error)}); see: onepeace doctor"
        raise UserError(reason, where=where) from error
