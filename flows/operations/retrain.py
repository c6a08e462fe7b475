"""Train again when the data has changed, and replace the version in use only if a test shows that the new one is not worse.

    retrained = retrain(load_config(data="photos/", name="birds"))

`stable` names the version in use. Images that a published version knows keep their splits. The new version is published in any
case, because it passed the release gate; what the comparison decides is whether `stable` moves to it. A process that is killed
at any moment leaves the version in use as it is, and the same call completes the work.

Nothing heavy is imported here.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeline.flows.steps import is_up_to_date, run_pipeline
from edgeline.pipeline.config import PipelineConfig
from edgeline.pipeline.runs.run import Run, StepResult, states, with_splits_of
from edgeline.serve.artifact.channels import STABLE, Event, read_channels
from edgeline.serve.artifact.manifest import FILE_NAME as MANIFEST
from edgeline.serve.artifact.manifest import Manifest
from edgeline.serve.artifact.reader import versions
from edgeline.serve.errors import ArtifactError, ConfigError, DataError, EdgelineError
from edgeline.serve.inbox.decisions import FILE_NAME as LABELS
from edgeline.serve.inbox.decisions import Decisions

if TYPE_CHECKING:
    from edgeline.export.promotion.decision import Decision, VariantDecision

RunPipeline = Callable[[PipelineConfig], tuple[Run, list[StepResult]]]
Decide = Callable[[Run, Path, Path], tuple["Decision", Event]]
Check = Literal["class_lost", "photos_blank", "labels_suspicious"]
"""Codes of the checks of new photos."""
PHOTOS = (".jpg", ".jpeg", ".png", ".webp")
NAMED = 3
"""Classes that are named for each variant, the worst ones."""


@dataclass(frozen=True, kw_only=True)
class Retrained:
    """What `retrain` did."""

    version: int
    """The newest version."""
    stable: int
    """The version in use afterwards."""
    trained: bool
    """False if nothing has changed since the newest version."""
    decision: "Decision | None"
    """None for the first version, and if there was nothing to decide."""
    event: Event
    """The newest entry about this version in the history of `stable`."""
    waiting: str = ""
    """Without new labeled photos: which inbox has photos without a label, and how many. Empty if no inbox was given."""


def retrain(
    config: PipelineConfig,
    *,
    accepted: Collection[str] = (),
    inbox: Path | None = None,
    run_steps: RunPipeline = run_pipeline,
    decide: Decide | None = None,
) -> Retrained:
    """Run the pipeline if the data or the settings have changed, and decide whether its version is promoted to `stable`.

    Args:
        config: as for `edgeline run`; `promote` has the margin and the confidence of the decision.
        accepted: codes of checks of the new photos that are to be ignored, as `check_new_photos` raises them.
        inbox: folder of photos that wait for labels, which is reported if nothing has changed.
        run_steps: runs all steps; the Prefect flow passes its own.
        decide: compares and decides, `compare_and_decide` by default; likewise.

    Raises:
        DataError: the new photos look wrong, or the version in use does not record its images.
        EdgelineError: a step failed; the version in use stays.
    """
    from edgeline.export.promotion.channels import Change, promote

    store = config.store / config.artifact_name
    published = versions(store)
    if not published:
        _, steps = run_steps(config)
        version = int(steps[-1].folder.name)
        event = promote(store, version, Change(STABLE, why="the first version"))
        return Retrained(version=version, stable=version, trained=True, decision=None, event=event)
    in_use, newest = read_channels(store).version(STABLE, published), published[-1]
    if STABLE not in read_channels(store).pointers:  # otherwise devices would switch to the new version before the decision
        promote(store, in_use, Change(STABLE, why="in use before the first comparison"))
    stated = _manifest(store / str(newest)).provenance["config"]
    same = with_splits_of(config, stated["prepare"].get("keep_splits"))
    if states(stated, same) and _is_up_to_date(same):
        if (done := decided(store, newest)) is not None:
            waiting = "" if inbox is None else waiting_for_labels(inbox, newest)
            return Retrained(version=newest, stable=in_use, trained=False, decision=None, event=done, waiting=waiting)
        config, trained = same, False
    else:
        config, trained = with_splits_of(config, newest), True
        check_data(config, store / str(in_use), store / str(newest), accepted)
    run, steps = run_steps(config)
    version = int(steps[-1].folder.name)
    if (done := decided(store, version)) is not None:  # the data of an earlier version again
        return Retrained(version=version, stable=in_use, trained=False, decision=None, event=done)
    decision, event = (decide or compare_and_decide)(run, store / str(in_use), store / str(version))
    stable = version if decision.promoted else in_use
    return Retrained(version=version, stable=stable, trained=trained, decision=decision, event=event)


def compare_and_decide(run: Run, in_use: Path, new: Path) -> "tuple[Decision, Event]":
    """Compare a new version with the one in use on images that neither has learned from; promote it, or record why not.

    Args:
        run: of the new version.
        in_use: folder of the version in use.
        new: folder of the new version.

    Raises:
        EdgelineError: a version cannot be run, or the store cannot be written.
    """
    from edgeline.export.promotion.challenge import compare

    decision = compare(run, in_use, new)
    return decision, record_decision(decision, in_use, new)


def record_decision(decision: "Decision", in_use: Path, new: Path) -> Event:
    """Promote the new version to `stable`, or record why not.

    Args:
        decision: from the comparison of the two.
        in_use: folder of the version in use.
        new: folder of the new version.

    Raises:
        EdgelineError: the store cannot be written, or `stable` has moved since the comparison.
    """
    from edgeline.export.promotion.channels import Change, promote, record_kept

    change = Change(STABLE, why=decision.reason, decision=decision.to_dict(), expected=int(in_use.name))
    record = promote if decision.promoted else record_kept
    return record(new.parent, int(new.name), change)


def check_data(config: PipelineConfig, in_use: Path, newest: Path, accepted: Collection[str]) -> None:
    """Prepare the data, and check what is new in it with the version in use.

    Raises:
        DataError: the new photos look wrong, or the data cannot be used.
    """
    from edgeline.export.promotion.challenge import reference_of
    from edgeline.export.promotion.new_photos import check_new_photos
    from edgeline.pipeline.data.image_record import FILE_NAME as RECORD
    from edgeline.pipeline.data.image_record import read_record
    from edgeline.pipeline.data.prepare import prepare
    from edgeline.pipeline.data.samples import read_prepared

    run, _ = prepare(config)
    known = {**read_record(in_use / RECORD), **read_record(newest / RECORD)}
    labels = {pixels: each.label for pixels, each in known.items()}
    check_new_photos(read_prepared(run.step("prepare")), labels, reference_of(in_use), accepted)


def waiting_for_labels(inbox: Path, version: int) -> str:
    """What a model that drifts waits for, as a sentence.

    Args:
        inbox: a folder of photos, and of the decisions about them (`serve.inbox.decisions`).
        version: the newest one.

    Raises:
        ConfigError: the folder or its tables cannot be read.
    """
    try:
        decided = Decisions(inbox / LABELS).read()
        count = sum(path.suffix.lower() in PHOTOS and path.name not in decided for path in inbox.iterdir())
    except (OSError, DataError) as error:
        raise ConfigError(f"the inbox {inbox} cannot be read: {error}; expected a folder of photos") from error
    state = f"{count:,} photos in {inbox} wait for one" if count else f"{inbox} has no photo that waits for one"
    return f"no photos with a new label since version {version}; {state}"


def decided(store: Path, version: int) -> Event | None:
    """The newest entry of `stable`'s history about a version; None if none has decided about it."""
    events = [each for each in read_channels(store).history if each.channel == STABLE and each.version == version]
    return events[-1] if events else None


def _is_up_to_date(config: PipelineConfig) -> bool:
    try:
        return is_up_to_date(config)
    except DataError as error:
        if error.code != "record_missing":  # the version whose splits are kept is gone
            raise
        return False


def _manifest(folder: Path) -> Manifest:
    try:
        return Manifest.from_json((folder / MANIFEST).read_bytes())
    except (OSError, EdgelineError) as error:
        raise ArtifactError(f"{folder} cannot be read: {error}; yank that version, or restore it") from error


def retrained_lines(done: Retrained, folder: Path) -> list[str]:
    """What `retrain` did, for the terminal."""
    if done.decision is None and not done.trained:
        state = "in use" if done.version == done.stable else f"not in use ({done.event.why})"
        lines = [f"nothing has changed since version {done.version}, which is {state}; stable is version {done.stable}"]
        return [*lines, *([f"waiting for labels: {done.waiting}"] if done.waiting else [])]
    if done.decision is None:
        return [f"published {folder / str(done.version)}, {done.event.why}: it is stable now"]
    lines = [f"published {folder / str(done.version)}"]
    moved = f"promoted: stable is version {done.version} now"
    kept = f"not promoted: stable stays at version {done.stable}"
    lines += [moved if done.decision.promoted else kept, f"  {done.decision.reason}"]
    return lines + decision_lines(done.decision)


def decision_lines(decision: "Decision") -> list[str]:
    """The test of each variant, and the classes that changed most."""
    lines = [line for each in decision.variants for line in _variant_lines(each)]
    for title, labels in (("new classes", decision.new_classes), ("lost classes", decision.lost_classes)):
        if labels:
            lines.append(f"  {title}, not compared: {', '.join(labels)}")
    return lines


def _variant_lines(found: "VariantDecision") -> list[str]:
    lines = [
        f"  {found.variant}: {found.verdict}; accuracy {found.before:.1%} -> {found.after:.1%} on {found.images:,} images "
        f"({found.lost} lost, {found.gained} gained)"
    ]
    for each in [each for each in found.classes if each.lost > each.gained][:NAMED]:
        lines.append(f"    {each.label}: {each.lost} lost, {each.gained} gained of {each.images}, p = {each.p_value:.2g}")
    return lines
