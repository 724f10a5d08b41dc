"""The options that `stream` and all that encodes share."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, TypeAlias, TypedDict, get_args

from onepeace.errors import UserError

OnError: TypeAlias = Literal["raise", "skip"]
Long: TypeAlias = Literal["truncate", "windows"]


class Keywords(TypedDict, total=False):
    """The options as keyword arguments of `Embedder`'s methods; `Options` says what each means."""

    long: Long
    window: float | None
    hop: float | None
    batch_size: int
    progress: bool | None
    on_error: OnError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of encoding.

    Raises:
        UserError: a value that is not allowed.
    """

    modality: str | None = None
    """The modality of all items; None: each item's own."""
    long: Long = "truncate"
    """Treatment of sound beyond the model's length. "truncate": only the beginning is heard. "windows": it is cut into
    windows, and has the renormalised mean of their vectors; results of `stream` have these too."""
    window: float | None = None
    """Length of a window in seconds, by default the model's; every window is normalised on its own."""
    hop: float | None = None
    """Seconds between the starts of two windows; by default one follows the other."""
    batch_size: int = 32
    """Items that the model computes at once, on a CPU shared out among its cores; changes speed and memory, not the
    vectors."""
    progress: bool | None = None
    """Whether a bar is drawn on stderr; None draws one if that is a terminal and the work takes over a second."""
    on_error: OnError = "raise"
    """"raise" stops at the first item that fails, with a `UserError` that names it. "skip" leaves such items out and
    returns (vectors, failures): `vectors` has rows only for the items that succeeded, in order, and `failures` says
    index, name and reason of the others."""

    def __post_init__(self) -> None:
        for name, value, known in (("on_error", self.on_error, OnError), ("long", self.long, Long)):
            if value not in get_args(known):
                raise UserError(f"{name} is {value!r}; it can be {', '.join(map(repr, get_args(known)))}")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size!r}; it must be a whole number from 1")
        if self.long == "truncate" and (self.window, self.hop) != (None, None):
            raise UserError("window and hop need long='windows'; long is 'truncate'")
        for name, seconds in {"window": self.window, "hop": self.hop}.items():
            if seconds is not None and not (isinstance(seconds, Real) and math.isfinite(seconds) and seconds > 0):
                raise UserError(f"{name} is {seconds!r}; it must be a number of seconds above 0")
