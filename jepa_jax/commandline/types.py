"""Types of arguments, checked while they are parsed."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence


def count(text: str) -> int:
    """Read a whole number of at least 0."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def even(text: str) -> int:
    """Read an even number of at least 2, as sides of videos are."""
    if (number := positive(text)) % 2:
        raise argparse.ArgumentTypeError(f"{number} is odd, which H.264 cannot store")
    return number


def positive_float(text: str) -> float:
    """Read a finite number above 0."""
    if not (math.isfinite(number := float(text)) and number > 0):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def non_negative_float(text: str) -> float:
    """Read a finite number of at least 0."""
    if not (math.isfinite(number := float(text)) and number >= 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return number


def crf(text: str) -> int:
    """Read an x264 quality."""
    if not 0 <= (number := int(text)) <= 51:
        raise argparse.ArgumentTypeError(f"{number} is not in 0..51")
    return number


def fraction(text: str) -> float:
    """Read a number between 0 and 1."""
    if not 0 <= (number := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{number} is not between 0 and 1")
    return number


def shard_set_name(text: str) -> str:
    """Read a name that files can begin with."""
    if not text or os.sep in text or text.startswith("."):
        raise argparse.ArgumentTypeError(f"{text!r} is no file name")
    return text


def rate(text: str) -> str:
    """Read 'header', 'true' or a number of Hz, kept as text."""
    if text in ("header", "true"):
        return text
    try:
        return f"{positive_float(text):g}"
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'header' nor 'true' nor a number of Hz") from error


def names(allowed: Sequence[str] = ()) -> Callable[[str], tuple[str, ...]]:
    """Make a reader of names separated by commas, each given once and, unless it is empty, of `allowed`."""

    def read(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if not all(found) or len(set(found)) < len(found) or (allowed and not set(found) <= set(allowed)):
            of = f" of {', '.join(allowed)}" if allowed else ""
            raise argparse.ArgumentTypeError(f"{text!r}: give distinct names{of}, with commas between them")
        return found

    return read


def pair(text: str) -> tuple[float, float]:
    """Read two different numbers with a comma between them."""
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW,HIGH, such as 0,1") from error
    if low == high:
        raise argparse.ArgumentTypeError(f"{text!r}: both ends are the same")
    return low, high


def ranges(text: str) -> tuple[tuple[float, float], ...]:
    """Read LOW:HIGH,LOW:HIGH,... of finite numbers, however they compare."""
    try:
        found = tuple(tuple(map(float, part.split(":"))) for part in text.split(","))
    except ValueError:
        found = ((),)
    if not all(len(part) == 2 and all(map(math.isfinite, part)) for part in found):
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW:HIGH,LOW:HIGH,..., such as -0.1:0.1,0:1")
    return found


def assignment(text: str) -> tuple[str, str]:
    """Read NAME=VALUE."""
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value
