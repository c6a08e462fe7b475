"""Snapshots of drift statistics: read, merge and compare with a reference. Plain JSON types, no numpy.

    {"schema": "edgeline.drift/1", "model": "birds", "version": 3, "manifest_sha256": "9f...",
     "since": "2026-11-01T12:00:00+00:00", "until": "2026-11-02T12:00:00+00:00", "count": 8123,
     "statistics": {"brightness": {"edges": [8, 16, ...], "counts": [0, 12, ...],
                                   "count": 8123, "mean": 117.2, "variance": 904.1}, ...},
     "predicted": {"labels": ["wren", ...], "counts": [77, ...]}}

A histogram has one bin more than edges: bin i counts the values from edge i-1 up to, but not including, edge i; the first and
last bins are open. Bins never depend on the data, so snapshots of different devices and times can be added. An artifact's own
reference has no version and no time: its `version`, `manifest_sha256`, `since` and `until` are null.

Properties, each with a test: merging equals observing all images together, in any order; the distance of a snapshot to itself
is 0 and grows with a shift.
"""

import json
import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from edgeline.serve.errors import InputError

SCHEMA = "edgeline.drift/1"
MAX_BYTES = 16 * 2**20
"""A larger file is rejected before parsing; one with 20,000 labels has about 0.6 MiB."""

_SHARES = [step / 20 for step in range(1, 20)]
EDGES: dict[str, list[float]] = {
    "brightness": [8.0 * step for step in range(1, 32)],
    "contrast": [4.0 * step for step in range(1, 32)],
    "width": [round(2 ** (step / 4), 3) for step in range(20, 57)],
    "height": [round(2 ** (step / 4), 3) for step in range(20, 57)],
    "aspect": [round(2 ** (step / 8), 5) for step in range(-24, 25)],
    "size_bytes": [round(2 ** (step / 2), 1) for step in range(16, 53)],
    "top": [*_SHARES, 0.96, 0.97, 0.98, 0.99, 0.995, 0.999, 0.9999],
    "margin": [*_SHARES, 0.96, 0.97, 0.98, 0.99, 0.995, 0.999, 0.9999],
    "entropy": [0.0001, 0.001, 0.005, 0.01, 0.02, 0.03, 0.04, *_SHARES],
}
"""The inner bin edges of every statistic: linear, or logarithmic for lengths and sizes; finest for confident predictions."""

EMBEDDING_EDGES = [round(2 ** (step / 8), 5) for step in range(-16, 33)]
"""For `embedding`, the distance of an image's features from the training images', which only some artifacts have."""
OF_A_VERSION = ("version", "manifest_sha256", "since", "until")
"""Null in an artifact's own reference."""
SMALLEST_GROUP = 5
"""Minimum count of a group of the reference for a meaningful comparison (Cochran 1954)."""
GROUPS = 10
"""Approximate number of groups of equal weight that the reference's bins are combined into; usual for PSI."""
Z_99 = 2.3263
"""99 % quantile of the standard normal distribution."""


def read_snapshot(data: bytes) -> dict[str, Any]:
    """Parse a snapshot from an untrusted source.

    Raises:
        InputError: it is invalid; the message has the reason.
    """
    if len(data) > MAX_BYTES:
        raise _invalid(f"it has {len(data):,} bytes, the limit is {MAX_BYTES:,}")
    try:
        snapshot = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"it is not JSON: {str(error)[:100]}") from error
    if not isinstance(snapshot, dict) or snapshot.get("schema") != SCHEMA:
        raise _invalid(f"it must be an object with the schema {SCHEMA!r}")
    try:
        _check(snapshot)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _invalid(f"{type(error).__name__} at {error}"[:200]) from error
    return snapshot


def merge(snapshots: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The snapshot of one device that observed all of the images.

    Count, mean and variance are combined as in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances" (1979).

    Raises:
        InputError: the list is empty, or they have different models, versions or bins.
    """
    if not snapshots:
        raise InputError("no snapshot to merge", code="snapshot_invalid")
    if any(snapshot["since"] is None for snapshot in snapshots):
        raise InputError("an artifact's own reference is not a snapshot of a device", code="snapshot_invalid")
    first, *others = snapshots
    for other in others:
        for name in ("model", "version", "manifest_sha256"):
            if first[name] != other[name]:
                raise _different(f"{name} {first[name]!r} and {other[name]!r}")
        compare_bins(first, other)
    statistics = {
        name: {"edges": one["edges"], **_add([snapshot["statistics"][name] for snapshot in snapshots])}
        for name, one in first["statistics"].items()
    }
    return {
        **{name: first[name] for name in ("schema", "model", "version", "manifest_sha256")},
        "since": min((snapshot["since"] for snapshot in snapshots), key=datetime.fromisoformat),
        "until": max((snapshot["until"] for snapshot in snapshots), key=datetime.fromisoformat),
        "count": sum(snapshot["count"] for snapshot in snapshots),
        "statistics": statistics,
        "predicted": {
            "labels": first["predicted"]["labels"],
            "counts": _sums([snapshot["predicted"]["counts"] for snapshot in snapshots]),
        },
    }


def subtract(snapshot: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any] | None:
    """What a device has seen since an earlier snapshot of the same observation, which began at the same time.

    The difference has counts and means, and no variances.

    Returns:
        The difference, `since` the end of the earlier one; None if it is no continuation of it.
    """
    if any(snapshot[name] != earlier[name] for name in ("model", "version", "manifest_sha256", "since")):
        return None
    statistics = {}
    for name, held in snapshot["statistics"].items():
        before = earlier["statistics"].get(name)
        if before is None or before["edges"] != held["edges"]:
            return None
        counts = [now - then for now, then in zip(held["counts"], before["counts"], strict=True)]
        count = held["count"] - before["count"]
        total = held["count"] * held["mean"] - before["count"] * before["mean"]
        statistics[name] = held | {"counts": counts, "count": count, "mean": total / count if count else 0.0, "variance": 0.0}
    labels, then = snapshot["predicted"]["labels"], earlier["predicted"]
    if labels != then["labels"]:
        return None
    predicted = [now - before for now, before in zip(snapshot["predicted"]["counts"], then["counts"], strict=True)]
    if min(*predicted, *(count for held in statistics.values() for count in held["counts"])) < 0:
        return None
    count = snapshot["count"] - earlier["count"]
    parts = {"statistics": statistics, "predicted": {"labels": labels, "counts": predicted}}
    return snapshot | {"since": earlier["until"], "count": count} | parts


def distance(snapshot: dict[str, Any], reference: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The distance of every statistic of a snapshot from a reference.

    The bins are first combined into about ten groups of equal weight in the reference, and one group of its empty bins;
    predicted classes with fewer than five images form one group. Then:

    - `psi`, the population stability index (Siddiqi, "Credit Risk Scorecards", 2006, with its rule of thumb: below 0.1 no
      change, above 0.25 a large change). Half a count is added to every group to keep its logarithm finite; to the group of
      empty bins, the number of bins with exactly one count, which is its expected count according to Good (1953);
    - `psi_by_chance`, which images of the same distribution exceed in one of a hundred cases, because both samples are finite:
      the 99 % point of chi-square times (1/n + 1/m) (Yurdakul, "Statistical Properties of Population Stability Index", 2018);
    - `js`, the Jensen-Shannon distance: 0 for equal shares, 1 for disjoint ones (the square root of the divergence of Lin,
      "Divergence Measures Based on the Shannon Entropy", 1991, in bits; a metric by Endres and Schindelin, 2003).

    Returns:
        For each statistic with values in both, and for `predicted`: these three and `count`; for statistics also `mean` and
        `reference_mean`.

    Raises:
        InputError: their bins or labels differ.
    """
    compare_bins(snapshot, reference)
    found = {}
    for name, held in reference["statistics"].items():
        seen = snapshot["statistics"][name]
        if held["count"] and seen["count"]:
            groups = _groups_of_bins(held["counts"])
            means = {"mean": seen["mean"], "reference_mean": held["mean"]}
            found[name] = _distances(seen["counts"], held["counts"], groups) | {"count": seen["count"]} | means
    if reference["count"] and snapshot["count"]:
        counts = reference["predicted"]["counts"]
        by_class = _distances(snapshot["predicted"]["counts"], counts, _groups_of_classes(counts))
        found["predicted"] = by_class | {"count": snapshot["count"]}
    return found


def _groups_of_bins(counts: list[int]) -> list[tuple[list[int], float]]:
    """Groups of bins, each with the count to add; the last one has the bins that are empty in the reference."""
    enough = max(SMALLEST_GROUP, sum(counts) / GROUPS)
    groups: list[list[int]] = [[]]
    for index, count in enumerate(counts):
        if count:
            if sum(counts[i] for i in groups[-1]) >= enough:
                groups.append([])
            groups[-1].append(index)
    if len(groups) > 1 and sum(counts[i] for i in groups[-1]) < enough:
        groups[-2:] = [groups[-2] + groups[-1]]
    empty = [index for index, count in enumerate(counts) if not count]
    return [(group, 0.5) for group in groups] + [(empty, max(0.5, counts.count(1)))]


def _groups_of_classes(counts: list[int]) -> list[tuple[list[int], float]]:
    rare = [index for index, count in enumerate(counts) if count < SMALLEST_GROUP]
    groups = [([index], 0.5) for index, count in enumerate(counts) if count >= SMALLEST_GROUP]
    return groups + ([(rare, 0.5)] if rare else [])


def _distances(seen: list[int], held: list[int], groups: list[tuple[list[int], float]]) -> dict[str, float]:
    n, m, added = sum(seen), sum(held), sum(extra for _, extra in groups)
    psi = divergence = 0.0
    for group, extra in groups:
        observed, expected = sum(seen[i] for i in group), sum(held[i] for i in group)
        p, q = (observed + extra) / (n + added), (expected + extra) / (m + added)
        psi += (p - q) * math.log(p / q)
        p, q = observed / n, expected / m
        divergence += sum(share * math.log2(2 * share / (p + q)) for share in (p, q) if share) / 2
    by_chance = _chi_square_99(len(groups) - 1) * (1 / n + 1 / m)
    return {"psi": psi, "psi_by_chance": by_chance, "js": math.sqrt(min(1.0, max(0.0, divergence)))}


def _chi_square_99(freedom: int) -> float:
    """The 99 % point of chi-square, by the cube root of Wilson and Hilferty (1931): accurate to 1 % from two degrees on."""
    if freedom < 1:
        return 0.0
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + Z_99 * math.sqrt(spread)) ** 3)


def _add(parts: list[dict[str, Any]]) -> dict[str, Any]:
    count = sum(part["count"] for part in parts)
    mean = math.fsum(part["count"] * part["mean"] for part in parts) / max(1, count)
    squares = math.fsum(part["count"] * (part["variance"] + (part["mean"] - mean) ** 2) for part in parts)
    return {
        "counts": _sums([part["counts"] for part in parts]),
        "count": count,
        "mean": mean,
        "variance": squares / max(1, count),
    }


def _sums(rows: list[list[int]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)]


def compare_bins(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Return if two snapshots have the same statistics, bins and labels.

    Raises:
        InputError: they differ.
    """
    edges, others = ({name: held["edges"] for name, held in each["statistics"].items()} for each in (one, other))
    if edges != others:
        odd = sorted(name for name in edges.keys() | others.keys() if edges.get(name) != others.get(name))
        raise _different(f"bins of {', '.join(odd)}")
    if one["predicted"]["labels"] != other["predicted"]["labels"]:
        raise _different("labels")


def _check(snapshot: dict[str, Any]) -> None:
    """Raise any exception for an invalid snapshot; the caller turns it into an `InputError`."""
    if not isinstance(snapshot["model"], str):
        raise TypeError("model, which must be text")
    if any(snapshot[name] is not None for name in OF_A_VERSION):
        if not isinstance(snapshot["manifest_sha256"], str):
            raise TypeError("manifest_sha256, which must be text")
        _whole("version", [snapshot["version"]])
        for name in ("since", "until"):
            if datetime.fromisoformat(snapshot[name]).tzinfo is None:
                raise ValueError(f"{name}, which needs a time zone")
    for name, held in snapshot["statistics"].items():
        edges, counts = held["edges"], held["counts"]
        if not all(math.isfinite(edge) for edge in edges) or sorted(set(edges)) != edges:
            raise ValueError(f"edges of {name}, which must rise")
        _whole(f"counts of {name}", [*counts, held["count"]])
        if len(counts) != len(edges) + 1 or sum(counts) != held["count"] or held["count"] > snapshot["count"]:
            raise ValueError(f"counts of {name}, which do not add up")
        if not math.isfinite(held["mean"]) or not 0 <= held["variance"] < math.inf:
            raise ValueError(f"mean or variance of {name}")
    labels, counts = snapshot["predicted"]["labels"], snapshot["predicted"]["counts"]
    _whole("counts of predicted", [*counts, snapshot["count"]])
    if len(labels) != len(counts) or not all(isinstance(label, str) for label in labels) or sum(counts) != snapshot["count"]:
        raise ValueError("predicted, which does not add up")


def _whole(name: str, numbers: list[Any]) -> None:
    if not all(type(number) is int and 0 <= number < 2**53 for number in numbers):
        raise ValueError(f"{name}, which must be whole numbers of at least 0")


def _invalid(reason: str) -> InputError:
    return InputError(f"not a snapshot of drift statistics: {reason}", code="snapshot_invalid")


def _different(what: str) -> InputError:
    return InputError(f"the snapshots cannot be compared: they have different {what}", code="snapshots_differ")
