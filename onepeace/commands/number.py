"""Values of options that are numbers, as argparse's `type`; a value that is out of range is wrong usage."""

import argparse
import math
from collections.abc import Callable


def whole(least: int) -> Callable[[str], int]:
    """A whole number, `least` or more."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
        return int(text)

    return read


def _number(what: str, is_valid: Callable[[float], bool]) -> Callable[[str], float]:
    """`what` is the valid number in words; `is_valid` gets nan for what is no number."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not is_valid(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return read


positive = whole(1)
count = whole(0)
seconds = _number("a number of seconds above 0", lambda value: 0 < value < math.inf)
probability = _number("a number from 0 to 1", lambda value: 0 <= value <= 1)
