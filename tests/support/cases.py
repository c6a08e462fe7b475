"""Tables of named cases of which `make test` runs a few and `make long` the others."""

from collections.abc import Collection, Mapping
from typing import Any

import pytest

LONG = pytest.mark.long


def cases(table: Mapping[str, Any], *, quick: Collection[str]) -> list[Any]:
    """The parameters of a table's cases; those that are not quick are marked `long`.

    Args:
        table: of each case its values, a tuple if there are several.
        quick: names of the cases that `make test` runs.
    """
    assert set(quick) <= table.keys()
    return [
        pytest.param(*(values if isinstance(values, tuple) else (values,)), id=name, marks=[] if name in quick else LONG)
        for name, values in table.items()
    ]
