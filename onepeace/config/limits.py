"""Numeric types with a restricted range; `onepeace.config.build` refuses values outside it."""

from collections.abc import Callable
from typing import Annotated, NamedTuple


class Range(NamedTuple):
    """Range of a numeric field, in words and as a check: ``Annotated[float, Range(...)]``."""

    words: str
    fits: Callable[[float], bool]


Share = Annotated[float, Range("from 0 to below 1", lambda x: 0 <= x < 1)]
OpenShare = Annotated[float, Range("above 0 and below 1", lambda x: 0 < x < 1)]
Probability = Annotated[float, Range("from 0 to 1", lambda x: 0 <= x <= 1)]
Positive = Annotated[float, Range("above 0", lambda x: x > 0)]
NotNegative = Annotated[float, Range("0 or more", lambda x: x >= 0)]
Natural = Annotated[int, Range("0 or more", lambda x: x >= 0)]
Count = Annotated[int, Range("1 or more", lambda x: x >= 1)]
Depth = Annotated[int, Range("from 1 to 1,000", lambda x: 1 <= x <= 1000)]
"""Number of blocks; a billion of them would be built for hours."""
