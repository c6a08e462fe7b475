"""Write down what `prepare` did: tables of what was left out, and a summary with warnings in plain sentences."""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeline.pipeline.data.deduplication import Resolved
from edgeline.pipeline.data.discovery import Rejected, Source
from edgeline.pipeline.data.labels import some
from edgeline.pipeline.data.samples import SPLITS, Sample, Split
from edgeline.pipeline.data.validation import Opened

STRONG_IMBALANCE = 20
"""Times as many images in the largest class as in the smallest from which on a warning is due."""


def write_rejected(path: Path, rejected: Iterable[Rejected]) -> None:
    """Write `rejected.csv`."""
    _write_table(path, ("path", "reason", "message"), ((file.name, file.code, file.message) for file in rejected))


def write_resolved(folder: Path, resolved: Resolved, samples: Sequence[Sample]) -> None:
    """Write `duplicates.csv` and `conflicts.csv`."""
    split = {sample.pixels: sample.split for sample in samples}
    duplicates = ((copy.name, kept.name, split[kept.picture.pixels]) for copy, kept in resolved.duplicates)
    _write_table(folder / "duplicates.csv", ("path", "same_as", "split"), duplicates)
    conflicts = ((copy.name, copy.file.label, other.name, other.file.label) for copy, other in resolved.conflicts)
    _write_table(folder / "conflicts.csv", ("path", "label", "other_path", "other_label"), conflicts)


def summarize(source: Source, opened: Opened, resolved: Resolved, samples: Sequence[Sample]) -> dict[str, Any]:
    """The numbers of the summary, and its warnings."""
    counts = {label: dict.fromkeys(SPLITS, 0) for label in source.labels}
    for sample in samples:
        counts[sample.label][sample.split] += 1
    return {
        "layout": source.layout,
        "labels": list(source.labels),
        "counts": counts,
        "found": opened.found,
        "kept": len(samples),
        "rejected": len(opened.rejected),
        "rejected_by_reason": dict(sorted(Counter(file.code for file in opened.rejected).items())),
        "ignored": source.ignored + len(opened.ignored),
        "duplicates": len(resolved.duplicates),
        "leaked": len(resolved.leaked),
        "conflicts": len(resolved.conflicts),
        "wrong_extension": sum(image.wrong_extension for image in opened.images),
        "warnings": [*source.warnings, *_warnings(source, opened, resolved), *_balance_warnings(counts)],
    }


def _warnings(source: Source, opened: Opened, resolved: Resolved) -> Iterator[str]:
    if source.given and "test" not in source.given:
        yield (
            "The data's own val split is the test split here, because a split that picks the best epoch is no test; "
            "validation was carved from train."
        )
    elif source.given and "val" not in source.given:
        yield "The data has no val split; validation was carved from train."
    if opened.rejected:
        reasons = Counter(file.code for file in opened.rejected)
        yield f"Rejected files, listed in rejected.csv: {some(f'{n:,} {code}' for code, n in sorted(reasons.items()))}."
    if wrong := [image.name for image in opened.images if image.wrong_extension]:
        yield f"Files of another format than their extension says, read by their content: {some(wrong, 3)}."
    if resolved.duplicates:
        yield f"Left out, because the same picture was there already (duplicates.csv): {len(resolved.duplicates):,} files."
    if resolved.leaked:
        yield f"Pictures that were in two of the given splits, kept in the one held out only: {len(resolved.leaked):,}."
    if resolved.conflicts:
        yield f"Left out, because the same picture carries two labels (conflicts.csv): {len(resolved.conflicts):,} files."


def _balance_warnings(counts: Mapping[str, Mapping[Split, int]]) -> Iterator[str]:
    totals = {label: sum(by_split.values()) for label, by_split in counts.items()}
    most, fewest = max(totals, key=lambda label: totals[label]), min(totals, key=lambda label: totals[label])
    if totals[most] > STRONG_IMBALANCE * totals[fewest]:
        yield (
            f"Strong imbalance: {totals[most]:,} images of {most!r}, {totals[fewest]:,} of {fewest!r}; "
            "judge by the metrics of each class, not by accuracy."
        )
    for split in SPLITS[1:]:
        if absent := [repr(label) for label, by_split in counts.items() if not by_split[split]]:
            yield f"No image in {split} of {some(absent)}: nothing can be said about these classes there."


def _write_table(path: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(header)
        writer.writerows(rows)
