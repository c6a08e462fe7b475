"""Teach a published model more: add photos to the data of its run, run the pipeline, compare with the version before.

    taught = teach("birds", {"wren": [Path("new-wrens/")]}, artifacts=Path("artifacts"))

With a frozen backbone only the last layer is new, so most of what the steps need is in the cache. The data keeps the photos if
a version is published; if not, they are taken out again. A killed process leaves them, and the same call completes the work.

Nothing heavy is imported here.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgeline.pipeline.config import PipelineConfig
from edgeline.pipeline.runs.run import Run, StepResult, open_run, states, with_splits_of
from edgeline.pipeline.sources.additions import Additions, apply_additions, plan_additions
from edgeline.serve.artifact.channels import LATEST
from edgeline.serve.artifact.manifest import FILE_NAME as MANIFEST
from edgeline.serve.artifact.manifest import Manifest
from edgeline.serve.artifact.reader import resolve
from edgeline.serve.errors import ArtifactError, ConfigError, EdgelineError

if TYPE_CHECKING:
    from edgeline.export.publishing.comparison import Comparison

RunPipeline = Callable[[PipelineConfig], tuple[Run, list[StepResult]]]


class Taught(NamedTuple):
    """What `teach` did."""

    run: Run
    steps: list[StepResult]
    additions: Additions
    comparison: "Comparison"


def teach(
    name: str, folders: Mapping[str, Sequence[Path]], *, artifacts: Path, show: Callable[[str], None], dry_run: bool = False
) -> Taught | None:
    """Add photos to the data of a published model, and publish a version that has learned from them.

    Args:
        name: of the artifact.
        folders: photos by class; a class that the data does not have becomes a new one.
        artifacts: folder of runs, caches and the store.
        show: called with each line about what will be added, before anything is written.
        dry_run: whether to stop after that.

    Returns:
        The run and the comparison; None after a dry run.

    Raises:
        ConfigError: there is no published version of this name, or its run is gone.
        DataError: the data or the photos cannot be used.
        EdgelineError: a step failed; the data is as before.
    """
    from edgeline.flows.steps import run_pipeline
    from edgeline.pipeline.data.image_record import FILE_NAME as RECORD

    before = published_run(artifacts, name)
    additions = plan_additions(before.run.config, folders)
    for line in additions.lines():
        show(line)
    if dry_run:
        return None
    if additions.photos:  # so there will be something to train
        threading.Thread(target=_import_ahead, args=(before.run.config.model,)).start()
    config = before.run.config
    if additions.photos and (before.artifact / RECORD).is_file():  # with new photos, every known one keeps its split
        config = with_splits_of(config, int(before.artifact.name))
    undo = apply_additions(additions)
    try:
        run, steps = run_pipeline(config)
    except BaseException as error:
        undo()
        if isinstance(error, EdgelineError):
            error.args = (f"{error}; nothing was published, and the data is as before",)
        raise
    return Taught(run, steps, additions, _compare(before, run, steps[-1].folder, additions))


def _import_ahead(model: str) -> None:
    """Import PyTorch and the library of the network while files are copied, read and hashed."""
    with suppress(ImportError):  # training reports it
        import_module("edgeline.pipeline.training.train")
        import_module("timm" if model.startswith(("timm:", "efficientnet_lite")) else "torchvision.models")


class Published(NamedTuple):
    """A published version, and the run that it is from."""

    artifact: Path
    run: Run


def published_run(artifacts: Path, name: str) -> Published:
    """The newest published version of a name and its run.

    Raises:
        ConfigError: there is none.
    """
    store = artifacts / "store" / name
    try:
        artifact = resolve(store, LATEST)
        manifest = Manifest.from_json((artifact / MANIFEST).read_bytes())
    except (ArtifactError, OSError) as error:
        raise ConfigError(
            f"no published version of {name!r} in {artifacts / 'store'}; run `edgeline run --data DATA --name {name}` first",
            code="not_published",
        ) from error
    runs = sorted((artifacts / "runs").glob(f"{name}-*/config.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in runs:
        summary = path.parent / "prepare" / "summary.json"
        if summary.is_file() and json.loads(summary.read_text())["fingerprint"] == manifest.provenance["data_sha256"]:
            run = open_run(path.parent)
            if states(manifest.provenance["config"], run.config):
                return Published(artifact, run)
    raise ConfigError(
        f"the run of {name} {manifest.version} is not in {artifacts / 'runs'}, so its data and settings are unknown; run "
        "`edgeline run` on the extended data instead",
        code="run_missing",
    )


def _compare(before: Published, run: Run, artifact: Path, additions: Additions) -> "Comparison":
    from edgeline.export.publishing.comparison import compare_versions, unseen
    from edgeline.pipeline.data.samples import read_prepared

    old, new = (read_prepared(each.step("prepare")) for each in (before.run, run))
    return compare_versions(before.artifact, artifact, unseen(old, new), additions.labels)
