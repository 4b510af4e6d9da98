"""Number types that say their range. A constructor annotated with one gets its value checked before anything is built."""

from __future__ import annotations

from typing import Annotated

PositiveInt = Annotated[int, ">= 1"]
NonNegativeInt = Annotated[int, ">= 0"]
PositiveFloat = Annotated[float, "> 0"]
NonNegativeFloat = Annotated[float, ">= 0"]
Fraction = Annotated[float, "between 0 and 1"]

# name: (base type, test, words)
BOUNDS = {
    "PositiveInt": (int, lambda x: x >= 1, "an integer >= 1"),
    "NonNegativeInt": (int, lambda x: x >= 0, "an integer >= 0"),
    "PositiveFloat": (float, lambda x: x > 0, "a number > 0"),
    "NonNegativeFloat": (float, lambda x: x >= 0, "a number >= 0"),
    "Fraction": (float, lambda x: 0 <= x <= 1, "a number between 0 and 1"),
}
