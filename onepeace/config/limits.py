"""Numeric types with a restricted range; `onepeace.config.build` refuses values outside it."""

from collections.abc import Callable
from typing import Annotated, NamedTuple


class Limits(NamedTuple):
    """Range of a numeric field, in words and as a check: ``Annotated[float, Limits(...)]``."""

    words: str
    fits: Callable[[float], bool]


Share = Annotated[float, Limits("from 0 to below 1", lambda x: 0 <= x < 1)]
Probability = Annotated[float, Limits("from 0 to 1", lambda x: 0 <= x <= 1)]
Positive = Annotated[float, Limits("above 0", lambda x: x > 0)]
NotNegative = Annotated[float, Limits("0 or more", lambda x: x >= 0)]
Natural = Annotated[int, Limits("0 or more", lambda x: x >= 0)]
Count = Annotated[int, Limits("1 or more", lambda x: x >= 1)]
