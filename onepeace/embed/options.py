"""The options that `stream` and all that encodes share."""

import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, TypeAlias, TypedDict

from onepeace.errors import UserError
from onepeace.processors import PROCESSORS

Output: TypeAlias = Literal["torch", "numpy"]
OnError: TypeAlias = Literal["raise", "skip"]
Long: TypeAlias = Literal["truncate", "mean", "windows"]


class Keywords(TypedDict, total=False):
    """The options as keyword arguments of `Embedder`'s methods; `Options` says what each means."""

    weights: Mapping[str, float] | None
    long: Long
    window: float | None
    hop: float | None
    batch_size: int
    output: Output
    progress: bool | None
    on_error: OnError
    timings: MutableMapping[str, float] | None


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of encoding.

    Raises:
        UserError: a value that is not allowed.
    """

    modality: str | None = None
    """The modality of all items; None: each item's own."""
    weights: Mapping[str, float] | None = None
    """Factor of each modality in composed items, 1 where it is not named; negative takes away."""
    long: Long = "truncate"
    """Treatment of sound beyond the model's length. "truncate": only the beginning is heard. "mean": the
    renormalised mean of the vectors of its windows. "windows": the vectors of its windows, as `Windows`."""
    window: float | None = None
    """Length of a window in seconds, by default the model's; every window is normalised on its own."""
    hop: float | None = None
    """Seconds between the starts of two windows; by default one follows the other."""
    batch_size: int = 32
    """Items that the model computes at once, on a CPU shared out among its cores; changes speed and memory, not the
    vectors."""
    output: Output = "torch"
    """"torch" for a CPU tensor, "numpy" for an array; both float32 with unit rows, (0, E) of no items."""
    progress: bool | None = None
    """Whether a bar is drawn on stderr; None draws one if that is a terminal and the work takes over a second."""
    on_error: OnError = "raise"
    """"raise" stops at the first item that fails, with a `UserError` that names it. "skip" leaves such items out and
    returns (vectors, failures): `vectors` has rows only for the items that succeeded, in order, and `failures` says
    index, name and reason of the others."""
    timings: MutableMapping[str, float] | None = None
    """Seconds that the stages "decode" and "model" are busy, added over all threads."""

    def __post_init__(self) -> None:
        check_choice("output", self.output, ("torch", "numpy"))
        check_choice("on_error", self.on_error, ("raise", "skip"))
        check_choice("long", self.long, ("truncate", "mean", "windows"))
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size!r}; it must be a whole number from 1")
        if self.long == "truncate" and (self.window, self.hop) != (None, None):
            raise UserError("window and hop need long='mean' or 'windows'; long is 'truncate'")
        for name, value in {"window": self.window, "hop": self.hop}.items():
            if value is not None and not (_is_finite(value) and value > 0):
                raise UserError(f"{name} is {value!r}; it must be a number of seconds above 0")
        for key, value in (self.weights or {}).items():
            if key not in PROCESSORS:
                raise UserError(f"weights has the keys {', '.join(PROCESSORS)}; not {key!r}")
            if not _is_finite(value):
                raise UserError(f"the weight of {key} is {value!r}; it must be a finite number")


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Raise `UserError` unless an option has one of its values."""
    if value not in known:
        raise UserError(f"{name} is {value!r}; it can be {', '.join(map(repr, known))}")


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
