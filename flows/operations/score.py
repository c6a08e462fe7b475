"""Score many images with a published artifact: batch inference to a folder of Parquet files.

    scored = score(Followed(Path("artifacts/store/birds")), Path("photos/"), "scores/")

The version is that of the channel when the call starts. A call that was stopped continues where it was, and a later one scores
what is new or has changed. Nothing heavy is imported before it is needed, PyTorch never.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgeline.pipeline.engine_config import EngineConfig
from edgeline.pipeline.engines.map_shards import map_shards
from edgeline.pipeline.engines.pool import Needs
from edgeline.pipeline.progress import track
from edgeline.pipeline.scoring.images import divide_by_name, list_images
from edgeline.pipeline.scoring.output_folder import MADE_WITH, finish, open_output
from edgeline.pipeline.scoring.parts import PACKAGES, SCHEMA, Part, Scoring, score_part
from edgeline.serve.artifact.channels import Followed, check_channel
from edgeline.serve.artifact.manifest import FILE_NAME as MANIFEST
from edgeline.serve.artifact.reader import open_artifact, resolve
from edgeline.serve.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreOptions:
    """What a row has, and where the work is done."""

    variant: str | None = None
    """By default the float32 reference."""
    top_k: int = 5
    """Number of most likely classes in a row, at most all of them."""
    probabilities: bool = False
    """Whether a row has the probabilities of all classes too, in the order of `edgeline.labels` in the file's metadata."""
    engine: EngineConfig = EngineConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What was done."""

    folder: Path
    summary: Mapping[str, Any]
    """As in `_summary.json`."""
    parts: int
    reused: int
    """Parts that existed already."""


def score(followed: Followed, source: Path, output: str, options: ScoreOptions = ScoreOptions()) -> Scored:
    """Score the images of a folder, or of a list.

    Args:
        followed: an artifact, or a name's folder in a store and a channel.
        source: a folder, searched at any depth, or a CSV file with a column `path`.
        output: folder for the results; `{name}` and `{version}` in it are replaced by the artifact's.
        options: what a row has, and where the work is done.

    Returns:
        What was done. Images without a prediction are rows with an error.

    Raises:
        ArtifactError: the artifact cannot be used.
        ConfigError: the output folder has other files, or the results of something else.
        DataError: the source cannot be read, or has no image.
        EdgelineError: the engine cannot be used, or another process writes to the folder.
    """
    import pyarrow.parquet  # noqa: F401  # its absence is noticed before any work

    if options.top_k < 1:
        raise ConfigError(f"top_k must be at least 1, got {options.top_k}")
    artifact = open_artifact(resolve(followed.path, check_channel(followed.channel)))
    manifest = artifact.manifest
    folder = Path(output.replace("{name}", manifest.name).replace("{version}", str(manifest.version)))
    listing = list_images(source, folder)
    scoring = Scoring(
        artifact=str(artifact.folder.absolute()),
        manifest_sha256=artifact.manifest_sha256,
        variant=manifest.variant(options.variant).name,
        top_k=min(options.top_k, len(manifest.labels)),
        probabilities=options.probabilities,
        root=listing.root,
        output=str(folder.absolute()),
    )
    made_with = {
        "schema": SCHEMA,
        "artifact": manifest.name,
        "version": manifest.version,
        "manifest_sha256": scoring.manifest_sha256,
        "variant": scoring.variant,
        "top_k": scoring.top_k,
        "probabilities": scoring.probabilities,
        "source": str(source.resolve()),
    }
    with open_output(folder, made_with):
        paths = (f"{scoring.artifact}/{MANIFEST}", f"{scoring.output}/{MADE_WITH}", listing.root)
        needs = Needs(paths=paths, packages=PACKAGES)
        shards = list(divide_by_name(listing.entries))
        step = max(1, len(listing.entries) // len(shards))
        results = map_shards(partial(score_part, scoring), shards, options.engine, needs)
        parts: list[Part] = list(track(results, "scoring images", len(listing.entries), step=step))
        if not any(part.images for part in parts):
            raise DataError(
                f"{source} has {len(listing.entries):,} files, but no image; expected JPEG, PNG, WebP, GIF or BMP",
                code="no_images",
            )
        summary = finish(folder, made_with, parts)
    kept = [part for part in parts if part.file]
    return Scored(folder=folder, summary=summary, parts=len(kept), reused=sum(part.reused for part in kept))


def scored_line(scored: Scored) -> str:
    """What was done, in one line."""
    summary = scored.summary
    failed = sum(summary["errors"].values())
    errors = f", {failed:,} of them without a prediction" if failed else ""
    ignored = f", {summary['ignored']:,} other files ignored" if summary["ignored"] else ""
    return (
        f"{summary['images']:,} images scored by {summary['artifact']} {summary['version']}{errors}{ignored}: "
        f"{scored.parts:,} parts, {scored.reused:,} of them reused, in {scored.folder}"
    )
