"""The folder of a scoring: Parquet files, what they were made with (`_scoring.json`), and the result (`_summary.json`).

Readers of Parquet folders skip names that start with `_` or `.`. A folder belongs to one artifact, source and set of columns.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeline.pipeline.names import OUTPUT_MARKER
from edgeline.pipeline.runs.atomic_files import replace_file, write_json
from edgeline.pipeline.runs.receipts import locked
from edgeline.pipeline.scoring.parts import Part
from edgeline.serve.errors import ConfigError

MADE_WITH, SUMMARY, LOCK = "_scoring.json", "_summary.json", ".lock"


@contextmanager
def open_output(folder: Path, made_with: Mapping[str, Any]) -> Iterator[None]:
    """Create the folder, or continue in it; no other process writes to it in the meantime.

    Raises:
        ConfigError: it has other files, or the results of something else.
        EdgelineError: another process writes to it.
    """
    marker = folder / MADE_WITH
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = [path.name for path in folder.iterdir() if path.name not in (LOCK, OUTPUT_MARKER)]
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{folder} is not a folder; choose another one with --output", code="output_invalid") from error
    if others and not marker.is_file():
        raise ConfigError(
            f"{folder} has other files, such as {sorted(others)[0]}; choose a new or empty folder with --output",
            code="output_invalid",
        )
    with locked(folder / LOCK):
        _check_same(marker, made_with)
        (folder / OUTPUT_MARKER).write_text("edgeline writes to this folder, and does not read it as data.\n")
        replace_file(marker, lambda path: write_json(path, dict(made_with)))
        for leftover in folder.glob(".part-*.tmp"):
            leftover.unlink()  # of a killed process
        yield


def finish(folder: Path, made_with: Mapping[str, Any], parts: Sequence[Part]) -> dict[str, Any]:
    """Write the summary, then remove the parts of images that are no longer there; returns the summary."""
    files = [part.file for part in parts if part.file]
    summary = {
        **made_with,
        "images": sum(part.images for part in parts),
        "labels": _sum([part.labels for part in parts]),
        "errors": _sum([part.errors for part in parts]),
        "ignored": sum(part.ignored for part in parts),
        "parts": files,
    }
    replace_file(folder / SUMMARY, lambda path: write_json(path, summary))
    for path in folder.glob("part-*.parquet"):
        if path.name not in set(files):
            path.unlink()
    return summary


def _sum(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))


def _check_same(marker: Path, made_with: Mapping[str, Any]) -> None:
    if not marker.is_file():
        return
    try:
        before = json.loads(marker.read_text(encoding="utf-8"))
        different = [name for name, value in made_with.items() if before.get(name) != value]
    except (ValueError, AttributeError):
        before, different = {}, ["schema"]
    if different:
        name = next((each for each in ("artifact", "version", "source") if each in different), different[0])
        raise ConfigError(
            f"{marker.parent} has results of another scoring: {name} {before.get(name)!r}, not {made_with[name]!r}; choose "
            "another folder with --output, {name} and {version} in its name become the artifact's",
            code="output_of_another_artifact",
        )
