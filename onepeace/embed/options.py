"""Options shared by `stream` and all functions that encode."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, TypeVar

from onepeace.config import build
from onepeace.config.reader import Count, Positive
from onepeace.errors import UserError

Function = TypeVar("Function", bound=Callable[..., Any])


class Keywords(TypedDict, total=False):
    """The options as keyword arguments; `Options` documents them."""

    long: Literal["truncate", "windows"]
    window: float | None
    hop: float | None
    batch_size: int
    progress: bool | None
    on_error: Literal["raise", "skip"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of encoding."""

    modality: str | None = None
    """Modality of all items; None = detected per item."""
    long: Literal["truncate", "windows"] = "truncate"
    """Treatment of audio longer than the model's limit. "truncate": only the beginning is encoded, and a warning
    is logged once. "windows": it is split into windows, and its vector is the normalised mean of theirs; results of
    `stream` also contain these."""
    window: Positive | None = None
    """Length of a window in seconds, by default the model's; every window is normalised on its own."""
    hop: Positive | None = None
    """Seconds between the starts of two windows; by default, windows do not overlap."""
    batch_size: Count = 32
    """Items that the model computes at once, on a CPU divided among its cores; affects speed and memory, not the
    vectors."""
    progress: bool | None = None
    """Whether to show a progress bar on stderr; None = if that is a terminal and the work takes over a second."""
    on_error: Literal["raise", "skip"] = "raise"
    """"raise" stops at the first item that fails, with a `UserError` that names it. "skip" returns (vectors, failures):
    rows for the items that succeeded, in order, and index, name and reason of the others."""

    def __post_init__(self) -> None:
        if self.long == "truncate" and (self.window, self.hop) != (None, None):
            raise UserError("window and hop need long='windows'; long is 'truncate'")


def read_options(keywords: Keywords, modality: str | None = None) -> Options:
    """The options of a call; UserError for an unknown name or a value that is not allowed."""
    return build(Options, {"modality": modality, **keywords}, "options of encoding")


def names_options(function: Function) -> Function:
    """List the options by name and default in the signature that `help` shows of a function with ``**options``."""
    signature = inspect.signature(function)
    parameters = [entry for entry in signature.parameters.values() if entry.kind is not entry.VAR_KEYWORD]
    for option in fields(Options):
        if option.name in Keywords.__annotations__:
            parameters.append(
                inspect.Parameter(
                    option.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=option.default,
                    annotation=Keywords.__annotations__[option.name],
                )
            )
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return function
