"""Drift statistics: they can be merged in any order, and their distances behave like distances."""

import contextlib
import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeline.serve.drift.collector import BATCH, Drift, Origin
from edgeline.serve.drift.snapshot import EDGES, distance, merge, read_snapshot
from edgeline.serve.errors import InputError

LABELS = ("a", "b", "c")
IDENTITY = {"model": "letters", "version": 2, "manifest_sha256": "0" * 64}


def provenance(seeds: list[int], shift: int = 0, labels: tuple[str, ...] = LABELS, **identity: Any) -> dict[str, Any]:
    """A snapshot of images generated from the seeds; a larger shift makes them brighter."""
    drift = Drift(labels, 8, 8, **{**IDENTITY, **identity})
    for seed in seeds:
        chance = np.random.default_rng(seed)
        pixels = np.clip(chance.normal(90 + shift, 25, (8, 8, 3)) + chance.normal(0, 12), 0, 255).astype(np.uint8)
        origin = Origin(int(chance.integers(200, 4000)), 300 + 5 * shift)
        drift.observe(pixels, chance.dirichlet([2.0] * len(labels)).astype(np.float32), origin)
    return drift.snapshot()


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Equal except for the times and the last bits of means and variances."""
    for name, held in one["statistics"].items():
        for figure in ("mean", "variance"):
            if other["statistics"][name][figure] != pytest.approx(held[figure], rel=1e-9, abs=1e-9):
                return False
        if (held["counts"], held["count"]) != (other["statistics"][name]["counts"], other["statistics"][name]["count"]):
            return False
    return (one["count"], one["predicted"]) == (other["count"], other["predicted"])


SEEDS = st.lists(st.integers(0, 10**6), max_size=2 * BATCH)


@settings(max_examples=30)
@given(SEEDS, SEEDS, SEEDS)
def test_merging_equals_observing_together_in_any_order(one: list[int], two: list[int], three: list[int]) -> None:
    together = provenance(one + two + three)
    parts = [provenance(one), provenance(two), provenance(three)]
    assert same(merge(parts), together)
    assert same(merge(parts[::-1]), together)
    assert same(merge([merge(parts[:2]), parts[2]]), together)
    assert same(provenance(three + one + two), together)


@settings(max_examples=30)
@given(SEEDS)
def test_the_distance_of_a_snapshot_to_itself_is_0(seeds: list[int]) -> None:
    snapshot = provenance(seeds)
    found = distance(snapshot, snapshot)
    assert (len(found) > 0) == (len(seeds) > 0)
    assert {(entry["psi"], entry["js"]) for entry in found.values()} <= {(0.0, 0.0)}


def test_means_and_variances_are_those_of_the_values() -> None:
    drift = Drift(LABELS, 8, 8, **IDENTITY)
    widths = np.random.default_rng(0).integers(100, 5000, 3 * BATCH + 5)
    for width in widths:
        drift.observe(np.zeros((8, 8, 3), np.uint8), np.array([1, 0, 0], np.float32), Origin(width=int(width)))
    held = drift.snapshot()["statistics"]["width"]
    assert held["mean"] == pytest.approx(widths.mean(), rel=1e-12)
    assert held["variance"] == pytest.approx(widths.var(), rel=1e-12)
    counted, _ = np.histogram(widths, [0, *EDGES["width"], 10**6])
    assert held["counts"] == counted.tolist()


@settings(max_examples=5)
@given(st.integers(0, 10**6))
def test_the_distance_grows_with_the_shift(seed: int) -> None:
    reference = provenance(list(range(seed, seed + 200)))
    found = [distance(provenance(list(range(seed + 1000, seed + 1200)), shift), reference) for shift in (0, 12, 30, 60)]
    for one, other in pairwise(found):
        assert one["brightness"]["psi"] < other["brightness"]["psi"]
        assert one["brightness"]["js"] < other["brightness"]["js"]
        assert one["height"]["psi"] <= other["height"]["psi"], "the largest distance, as no value occurs in the reference"
    assert found[3]["brightness"]["psi"] > 1 > found[3]["brightness"]["psi_by_chance"]


@pytest.mark.long
def test_chance_rarely_exceeds_psi_by_chance_even_with_few_images() -> None:
    """Of equal distributions, one pair in a hundred may exceed it; with 60 pairs, five in a hundred are too many."""
    reference = provenance(list(range(60)))
    found = [distance(provenance(list(range(start, start + 200))), reference) for start in range(1000, 13000, 200)]
    over = [entry["psi"] > entry["psi_by_chance"] for entries in found for name, entry in entries.items() if name != "height"]
    assert len(over) > 300
    assert sum(over) / len(over) < 0.05


def test_values_outside_a_constant_reference_are_detected() -> None:
    def of_width(width: int) -> dict[str, Any]:
        drift = Drift(LABELS, 8, 8, **IDENTITY)
        for _ in range(100):
            drift.observe(np.zeros((8, 8, 3), np.uint8), np.array([1, 0, 0], np.float32), Origin(width=width))
        return drift.snapshot()

    found = distance(of_width(4000), of_width(500))["width"]
    assert found["psi"] > 5
    assert found["js"] == pytest.approx(1)
    assert (found["mean"], found["reference_mean"]) == (4000, 500)


def test_a_statistic_without_values_is_left_out() -> None:
    found = distance(provenance([1, 2, 3]), provenance([4, 5, 6]))
    assert "size_bytes" not in found
    assert found.keys() == EDGES.keys() - {"size_bytes"} | {"predicted"}
    assert distance(provenance([]), provenance([1])) == {}


def other_bins(snapshot: dict[str, Any]) -> dict[str, Any]:
    changed = json.loads(json.dumps(snapshot))
    changed["statistics"]["contrast"]["edges"][3] += 1
    return changed


def test_different_bins_labels_or_models_are_rejected() -> None:
    snapshot = provenance([1, 2])
    for act in (lambda a, b: merge([a, b]), distance):
        with pytest.raises(InputError, match="different bins of contrast"):
            act(snapshot, other_bins(snapshot))
        with pytest.raises(InputError, match="different labels"):
            act(snapshot, provenance([1], labels=("a", "b", "d")))
    with pytest.raises(InputError, match="different version 2 and 3") as rejection:
        merge([snapshot, provenance([1], version=3)])
    assert rejection.value.code == "snapshots_differ"
    with pytest.raises(InputError, match="no snapshot"):
        merge([])


def test_a_snapshot_survives_a_round_trip() -> None:
    for seeds in ([], [1], list(range(100))):
        snapshot = provenance(seeds)
        assert read_snapshot(json.dumps(snapshot, allow_nan=False).encode()) == snapshot


def changed(path: str, value: Any) -> bytes:
    snapshot = provenance([1, 2, 3])
    *parents, last = path.split("/")
    place = snapshot
    for name in parents:
        place = place[name]
    place[last] = value
    return json.dumps(snapshot).encode()


REJECTED = {
    "no JSON": b"hello",
    "a list": b"[]",
    "nested too deeply": b"[" * 200_000,
    "of another schema": changed("schema", "edgeline.drift/2"),
    "no count": changed("count", None),
    "another count": changed("count", 4),
    "a negative count": changed("count", -3),
    "a true version": changed("version", True),
    "no version": changed("version", None),
    "no manifest": changed("manifest_sha256", None),
    "a mean that is NaN": changed("statistics/width/mean", float("nan")),
    "an infinite variance": changed("statistics/width/variance", float("inf")),
    "a negative variance": changed("statistics/width/variance", -1.0),
    "edges that fall": changed("statistics/width/edges", EDGES["width"][::-1]),
    "a bin too few": changed("statistics/width/counts", [3]),
    "counts that are fractions": changed("predicted/counts", [1.0, 1.0, 1.0]),
    "a label too many": changed("predicted/labels", ["a", "b", "c", "d"]),
    "labels that are not text": changed("predicted/labels", [1, 2, 3]),
    "no time": changed("since", "yesterday"),
    "a time without a zone": changed("until", "2026-11-01T12:00:00"),
    "invalid statistics": changed("statistics", {"width": 3}),
    "too large": b" " * (16 * 2**20 + 1),
}


@pytest.mark.parametrize("data", REJECTED.values(), ids=REJECTED)
def test_an_invalid_snapshot_is_rejected_with_one_line(data: bytes) -> None:
    with pytest.raises(InputError, match="not a snapshot of drift statistics") as rejection:
        read_snapshot(data)
    assert rejection.value.code == "snapshot_invalid"
    assert "\n" not in str(rejection.value)


SNAPSHOT = provenance([1])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100)
@given(VALUES, st.sampled_from(sorted(SNAPSHOT)))
def test_any_value_in_any_field_is_accepted_or_rejected(value: Any, place: str) -> None:
    with contextlib.suppress(InputError):
        read_snapshot(json.dumps({**SNAPSHOT, place: value}).encode())
