"""What is connected by pairs, directly or through others (a disjoint-set forest).

find = connected([("b", "c"), ("a", "c")])
find("b"), find("x")    # "a", "x"
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Name = TypeVar("Name", bound=Any)
"""Anything that can be hashed and ordered."""


def connected(pairs: Iterable[tuple[Name, Name]]) -> Callable[[Name], Name]:
    """Return a function that returns the smallest of all that are connected with its argument; the argument if none is."""
    parent: dict[Name, Name] = {}

    def find(name: Name) -> Name:
        while parent.get(name, name) != name:
            parent[name] = name = parent.get(parent[name], parent[name])
        return name

    for first, second in pairs:
        low, high = sorted((find(first), find(second)))
        parent[high] = low
    return find
