"""Report of the prepare step: tables of what was left out, and a summary with warnings."""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeline.pipeline.data.deduplication import Deduplicated
from edgeline.pipeline.data.discovery import Rejected, Source
from edgeline.pipeline.data.labels import summarize
from edgeline.pipeline.data.samples import SPLITS, Sample, Split
from edgeline.pipeline.data.validation import ValidationResult

STRONG_IMBALANCE = 20
"""Warn if the largest class has more than this many times the images of the smallest."""


def write_rejected(path: Path, rejected: Iterable[Rejected]) -> None:
    """Write `rejected.csv`."""
    _write_table(path, ("path", "reason", "message"), ((file.name, file.code, file.message) for file in rejected))


def write_deduplicated(folder: Path, deduplicated: Deduplicated, samples: Sequence[Sample]) -> None:
    """Write `duplicates.csv` and `conflicts.csv`."""
    split = {sample.pixels: sample.split for sample in samples}
    duplicates = ((copy.name, kept.name, split[kept.content.pixels]) for copy, kept in deduplicated.duplicates)
    _write_table(folder / "duplicates.csv", ("path", "same_as", "split"), duplicates)
    conflicts = ((copy.name, copy.file.label, other.name, other.file.label) for copy, other in deduplicated.conflicts)
    _write_table(folder / "conflicts.csv", ("path", "label", "other_path", "other_label"), conflicts)


def build_summary(
    source: Source, validated: ValidationResult, deduplicated: Deduplicated, samples: Sequence[Sample]
) -> dict[str, Any]:
    """Return the numbers of the summary, and its warnings."""
    counts = {label: dict.fromkeys(SPLITS, 0) for label in source.labels}
    for sample in samples:
        counts[sample.label][sample.split] += 1
    return {
        "layout": source.layout,
        "labels": list(source.labels),
        "counts": counts,
        "found": validated.found,
        "kept": len(samples),
        "rejected": len(validated.rejected),
        "rejected_by_reason": dict(sorted(Counter(file.code for file in validated.rejected).items())),
        "ignored": source.ignored + len(validated.ignored),
        "duplicates": len(deduplicated.duplicates),
        "leaked": len(deduplicated.leaked),
        "conflicts": len(deduplicated.conflicts),
        "wrong_extension": sum(image.wrong_extension for image in validated.images),
        "warnings": [*source.warnings, *_warnings(source, validated, deduplicated), *_balance_warnings(counts)],
    }


def _warnings(source: Source, validated: ValidationResult, deduplicated: Deduplicated) -> Iterator[str]:
    if source.given and "test" not in source.given:
        yield (
            "The data's own val split is used as the test split, because the split that selects the best epoch cannot be the "
            "test; validation was carved from train."
        )
    elif source.given and "val" not in source.given:
        yield "The data has no val split; validation was carved from train."
    if validated.rejected:
        reasons = Counter(file.code for file in validated.rejected)
        yield f"Rejected files, listed in rejected.csv: {summarize(f'{n:,} {code}' for code, n in sorted(reasons.items()))}."
    if wrong := [image.name for image in validated.images if image.wrong_extension]:
        yield f"Files whose format differs from their extension, read by their content: {summarize(wrong, 3)}."
    if deduplicated.duplicates:
        yield f"Left out, as copies of other images (duplicates.csv): {len(deduplicated.duplicates):,} files."
    if deduplicated.leaked:
        yield f"Images in more than one of the given splits, kept only in the held-out one: {len(deduplicated.leaked):,}."
    if deduplicated.conflicts:
        yield f"Left out, because copies have different labels (conflicts.csv): {len(deduplicated.conflicts):,} files."


def _balance_warnings(counts: Mapping[str, Mapping[Split, int]]) -> Iterator[str]:
    totals = {label: sum(by_split.values()) for label, by_split in counts.items()}
    largest, smallest = max(totals, key=lambda label: totals[label]), min(totals, key=lambda label: totals[label])
    if totals[largest] > STRONG_IMBALANCE * totals[smallest]:
        yield (
            f"Strong imbalance: {totals[largest]:,} images of {largest!r}, {totals[smallest]:,} of {smallest!r}; "
            "look at the metrics of each class, not only at accuracy."
        )
    for split in SPLITS[1:]:
        if absent := [repr(label) for label, by_split in counts.items() if not by_split[split]]:
            yield f"No image in {split} of {summarize(absent)}: these classes are not measured there."


def _write_table(path: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(header)
        writer.writerows(rows)
