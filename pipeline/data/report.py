"""Report of the prepare step: tables of what was left out, a summary, and findings."""

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from edgeline.pipeline.data.deduplication import Deduplicated, NearPair
from edgeline.pipeline.data.samples import Sample
from edgeline.pipeline.data.validation import ValidationResult, ValidImage
from edgeline.pipeline.names import SPLITS, Split
from edgeline.pipeline.runs.findings import Finding
from edgeline.pipeline.sources.discovery import Rejected, Source
from edgeline.pipeline.sources.labels import summarize

STRONG_IMBALANCE = 20
"""Warn if the largest class has more than this many times the images of the smallest."""
MASK_ENDING = re.compile(r"[-_](mask|masks|seg|segmentation|gt|label|labels|annotation)$", re.IGNORECASE)
"""What tools append to the name of an image's mask."""
MAX_LISTED = 12
"""Classes that `describe_data` lists."""
LAYOUT_LINES = {
    "digits": "the embedded digits",
    "top": "one folder for each class",
    "leaf": "one innermost folder for each class",
    "splits": "in folders of splits with class folders",
    "csv": "listed in a CSV file",
}
"""What each layout means."""


def write_rejected(path: Path, rejected: Iterable[Rejected]) -> None:
    """Write `rejected.csv`."""
    _write_table(path, ("path", "reason", "message"), ((file.name, file.code, file.message) for file in rejected))


def write_conflicts(path: Path, deduplicated: Deduplicated) -> None:
    """Write `conflicts.csv`."""
    conflicts = ((copy.name, copy.file.label, other.name, other.file.label) for copy, other in deduplicated.conflicts)
    _write_table(path, ("path", "label", "other_path", "other_label"), conflicts)


def write_duplicates(path: Path, deduplicated: Deduplicated, samples: Sequence[Sample]) -> None:
    """Write `duplicates.csv`."""
    split = {sample.pixels: sample.split for sample in samples}
    duplicates = ((copy.name, kept.name, split[kept.content.pixels]) for copy, kept in deduplicated.duplicates)
    _write_table(path, ("path", "same_as", "split"), duplicates)


def write_near_duplicates(path: Path, deduplicated: Deduplicated, samples: Iterable[Sample]) -> None:
    """Write `near_duplicates.csv`."""
    split = {sample.pixels: sample.split for sample in samples}
    rows = (
        (
            *(pair.first.name, pair.first.file.label, split[pair.first.content.pixels]),
            *(pair.second.name, pair.second.file.label, split[pair.second.content.pixels]),
            f"{pair.similarity:.3f}",
        )
        for pair in deduplicated.near
    )
    _write_table(path, ("path", "label", "split", "other_path", "other_label", "other_split", "similarity"), rows)


def build_summary(
    source: Source, validated: ValidationResult, deduplicated: Deduplicated, samples: Sequence[Sample]
) -> dict[str, Any]:
    """Return the numbers of the summary."""
    return {
        "layout": source.layout,
        "labels": list(source.labels),
        "counts": count_samples(source.labels, samples),
        "found": validated.found,
        "kept": len(samples),
        "rejected": len(validated.rejected),
        "rejected_by_reason": dict(sorted(Counter(file.code for file in validated.rejected).items())),
        "ignored": source.ignored + len(validated.ignored),
        "duplicates": len(deduplicated.duplicates),
        "leaked": len(deduplicated.leaked),
        "conflicts": len(deduplicated.conflicts),
        "near_duplicates": len(deduplicated.near),
        "wrong_extension": sum(image.wrong_extension for image in validated.images),
    }


def count_samples(labels: Iterable[str], samples: Iterable[Sample]) -> dict[str, dict[Split, int]]:
    """Number of samples by class and split."""
    counts: dict[str, dict[Split, int]] = {label: dict.fromkeys(SPLITS, 0) for label in labels}
    for sample in samples:
        counts[sample.label][sample.split] += 1
    return counts


def describe_data(summary: Mapping[str, Any]) -> list[str]:
    """How a data set was understood, in a few lines: its layout, its splits, and its classes with their numbers of images.

    Args:
        summary: the content of `summary.json`.
    """
    counts: dict[str, dict[str, int]] = summary["counts"]
    totals = {split: sum(by_split[split] for by_split in counts.values()) for split in SPLITS}
    width = max(len(label) for label in counts)
    lines = [
        f"{summary['kept']:,} images of {len(counts):,} classes, {LAYOUT_LINES[summary['layout']]}: "
        f"{totals['train']:,} train, {totals['val']:,} validation, {totals['test']:,} test"
    ]
    listed = list(counts.items())
    for label, by_split in listed[:MAX_LISTED]:
        lines.append(f"  {label:{width}}  {by_split['train']:,} + {by_split['val']:,} + {by_split['test']:,}")
    if len(listed) > MAX_LISTED:
        lines.append(f"  and {len(listed) - MAX_LISTED:,} more classes")
    return lines


def find_in_data(
    source: Source, validated: ValidationResult, deduplicated: Deduplicated, samples: Sequence[Sample]
) -> Iterator[Finding]:
    """What the step noticed about the data: how it was read, what was left out, and what may need action."""
    yield from source.findings
    if source.given and "test" not in source.given:
        yield Finding(
            code="val_used_as_test",
            message="The data's own val split is used as the test split, because the split that selects the best epoch cannot "
            "be the test; validation was carved from train.",
        )
    elif source.given and "val" not in source.given:
        yield Finding(code="val_carved", message="The data has no val split; validation was carved from train.")
    if validated.rejected:
        first: dict[str, str] = {}
        for file in validated.rejected:
            first.setdefault(file.code, file.name)
        reasons = Counter(file.code for file in validated.rejected)
        listed = summarize(f"{count:,} {code} ({first[code]})" for code, count in sorted(reasons.items()))
        yield Finding(code="rejected", message=f"Rejected files, listed in rejected.csv: {listed}.")
    if wrong := [image.name for image in validated.images if image.wrong_extension]:
        message = f"Files whose format differs from their extension, read by their content: {summarize(wrong, 3)}."
        yield Finding(code="wrong_extension", message=message)
    if incomplete := [image.name for image in validated.images if image.content.incomplete_end]:
        message = f"JPEGs without their end marker, read because every row is there: {summarize(incomplete, 3)}."
        yield Finding(code="incomplete_end", message=message, level="note")
    if masks := find_masks(validated.images):
        endings = sorted({f"*{PurePosixPath(name).suffix}" for name in masks})
        yield Finding(
            code="masks",
            message="Masks of images next to them, by their names and at most 16 colors, are read as images: "
            f"{len(masks):,} files, {masks[0]} for example; leave them out with --set 'prepare.ignore={json.dumps(endings)}', "
            "or another pattern.",
        )
    if deduplicated.duplicates:
        copy, kept = deduplicated.duplicates[0]
        message = (
            f"Left out, as copies of other images (duplicates.csv): {len(deduplicated.duplicates):,} files, {copy.name} = "
        )
        yield Finding(code="duplicates", message=f"{message}{kept.name} for example.")
    if deduplicated.leaked:
        message = f"Images in more than one of the given splits, kept only in the held-out one: {len(deduplicated.leaked):,}."
        yield Finding(code="leaked", message=message)
    if deduplicated.conflicts:
        copy, other = deduplicated.conflicts[0]
        yield Finding(
            code="conflicts",
            message=f"Left out, because copies have different labels (conflicts.csv): {len(deduplicated.conflicts):,} files, "
            f"{copy.name} = {other.name} for example.",
        )
    yield from _near_findings(deduplicated)
    yield from _balance_findings(count_samples(source.labels, samples))


def _near_findings(deduplicated: Deduplicated) -> Iterator[Finding]:
    if near := [pair for pair in deduplicated.near if not pair.leaks]:
        where = "near_duplicates.csv, with pictures in near_duplicates.html"
        message = f"Near-duplicates, kept in one split ({where}): {_pairs(near)}."
        yield Finding(code="near_duplicates", message=message, level="note")
    if leaking := [pair for pair in deduplicated.near if pair.leaks]:
        where = "Near-duplicates in train and in a held-out split of the data (near_duplicates.csv)"
        message = f"{where}: {_pairs(leaking)}; remove one of each, or the accuracy is too high."
        yield Finding(code="near_leaked", message=message)
    if mixed := [pair for pair in deduplicated.near if pair.first.file.label != pair.second.file.label]:
        message = f"Near-duplicates with different labels (near_duplicates.csv): {_pairs(mixed)}; check their labels."
        yield Finding(code="near_conflicts", message=message)


def _pairs(pairs: Sequence[NearPair]) -> str:
    return f"{len(pairs):,} pairs, {pairs[0].first.name} and {pairs[0].second.name} for example"


def find_masks(images: Iterable[ValidImage]) -> list[str]:
    """Names of images that are probably masks: few colors, and an image with more colors and the same name in another format.

    `leaf_mask.png` next to `leaf.jpg` or `leaf.png` is one too.
    """
    colorful: dict[str, set[str]] = defaultdict(set)
    plain: list[PurePosixPath] = []
    for image in images:
        path = PurePosixPath(image.name)
        if image.content.few_colors:
            plain.append(path)
        else:
            colorful[str(path.with_suffix(""))].add(path.suffix)
    found = []
    for path in plain:
        own = str(path.with_suffix(""))
        stem = MASK_ENDING.sub("", own)
        if stem in colorful and (stem != own or colorful[stem] != {path.suffix}):
            found.append(str(path))
    return sorted(found)


def _balance_findings(counts: Mapping[str, Mapping[Split, int]]) -> Iterator[Finding]:
    totals = {label: sum(by_split.values()) for label, by_split in counts.items()}
    largest, smallest = max(totals, key=lambda label: totals[label]), min(totals, key=lambda label: totals[label])
    if totals[largest] > STRONG_IMBALANCE * totals[smallest]:
        yield Finding(
            code="imbalance",
            message=f"Strong imbalance: {totals[largest]:,} images of {largest!r}, {totals[smallest]:,} of {smallest!r}; "
            "look at the metrics of each class, not only at accuracy.",
        )
    for split in SPLITS[1:]:
        if absent := [repr(label) for label, by_split in counts.items() if not by_split[split]]:
            message = f"No image in {split} of {summarize(absent)}: these classes are not measured there."
            yield Finding(code=f"class_absent_in_{split}", message=message)


def _write_table(path: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(header)
        writer.writerows(rows)
