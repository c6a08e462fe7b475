"""Accuracy by the further columns of the user's CSV file: camera, site, hour, operator.

A column of few values is sliced by its values, a column of numbers by its quartiles. Columns of many different texts, such as
comments, are left out.

Shapes: N test images.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from pydantic import Field

from edgeline.pipeline.evaluation.metrics import fisher_exact, wilson_interval
from edgeline.pipeline.evaluation.report import Record, Share

MAX_VALUES = 20
"""A column with more values is sliced only if they are numbers."""
EMPTY = "(empty)"


class Slice(Record):
    """The test images with one value, or range of values, in a column."""

    column: str
    value: str
    share: Share = Field(description="Accuracy, with its 95 % Wilson interval.")
    p_value: float = Field(
        description="Of Fisher's exact test against the other images, times the number of slices (Bonferroni), at most 1."
    )


def slice_by(columns: Mapping[str, Sequence[str]], correct_N: np.ndarray) -> list[Slice]:
    """Accuracy of every slice of every column that has more than one.

    Args:
        columns: the value of each test image, by the column's name.
        correct_N: whether each image is classified correctly.
    """
    found = [
        (column, value, np.array([each == value for each in values]))
        for column, given in columns.items()
        for values in [_grouped(given)]
        for value in _ordered(values)
    ]
    return [
        Slice(
            column=column, value=value, share=_share(correct_N[in_N]), p_value=min(1.0, len(found) * _fisher(correct_N, in_N))
        )
        for column, value, in_N in found
    ]


def _grouped(given: Sequence[str]) -> list[str]:
    """The slice of each image; all in one if the column cannot be sliced."""
    values = [value.strip() or EMPTY for value in given]
    if len(set(values)) <= MAX_VALUES:
        return values
    numbers_N = np.array([_number(value) for value in values])
    known_N = np.isfinite(numbers_N)
    if any(value != EMPTY for value, known in zip(values, known_N, strict=True) if not known):
        return [EMPTY] * len(values)
    low, *inner, high = np.quantile(numbers_N[known_N], (0, 0.25, 0.5, 0.75, 1))
    edges = [low, *inner, high]
    names = [f"{start:g} to {end:g}" for start, end in zip(edges, edges[1:], strict=False)]
    quartile_N = np.searchsorted(inner, numbers_N, side="left")
    return [names[quartile] if known else EMPTY for quartile, known in zip(quartile_N, known_N, strict=True)]


def _ordered(values: Sequence[str]) -> Iterator[str]:
    """The different values, sorted as numbers where they begin with one; none if there is only one."""
    different = sorted(set(values), key=lambda value: (value == EMPTY, _number(value.partition(" to ")[0]), value))
    yield from different if len(different) > 1 else ()


def _number(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        return math.inf
    return number if math.isfinite(number) else math.inf


def _share(correct_N: np.ndarray) -> Share:
    correct, total = int(correct_N.sum()), len(correct_N)
    low, high = wilson_interval(correct, total)
    return Share(value=correct / total, low=low, high=high, correct=correct, total=total)


def _fisher(correct_N: np.ndarray, in_N: np.ndarray) -> float:
    inside, outside = ((int(correct_N[part_N].sum()), int((~correct_N[part_N]).sum())) for part_N in (in_N, ~in_N))
    return fisher_exact(inside, outside)
