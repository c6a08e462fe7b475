"""What people do with published versions, as flows: compare, promote, roll back, prune.

A deployment of each gives it a form in Prefect's UI. The functions are those of the commands of the same names.
"""

from pathlib import Path
from typing import Annotated

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from pydantic import Field

from edgeline.export.promotion.channels import Change, roll_back
from edgeline.export.promotion.channels import promote as promote_version
from edgeline.export.promotion.decision import Decision
from edgeline.flows.operations.compare import compare_published, name_folder
from edgeline.flows.operations.prune import KEEP, plan_prune
from edgeline.flows.operations.prune import prune as remove_planned
from edgeline.flows.operations.retrain import decision_lines
from edgeline.flows.orchestration.flow import set_up
from edgeline.flows.orchestration.report import artifact_key, decision_rows
from edgeline.serve.artifact.channels import CHANNEL, STABLE, Event
from edgeline.serve.artifact.manifest import NAME

Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
Version = Annotated[int, Field(ge=1)]
Channel = Annotated[str, Field(pattern=f"^{CHANNEL.pattern}$")]
Why = Annotated[str, Field(min_length=1, max_length=1000)]


@flow(name="edgeline-compare", flow_run_name="{name} {version} against {against}")
def compare(name: Name, version: Version, against: str = STABLE, artifacts: Path = Path("artifacts")) -> Decision:
    """Test whether a version may replace another one, and change nothing.

    Both answer the test images that neither has learned from, through their shipped files, as `edgeline-retrain` compares them.

    Args:
        name: Name of the artifact.
        version: The version that would be promoted.
        against: The version that it would replace: a number, or a channel such as `stable`.
        artifacts: Folder of runs and the store, an absolute path.

    Returns:
        The decision that `edgeline-retrain` would have made.

    Raises:
        EdgelineError: a version is not published or cannot be run, or its run is gone.
    """
    set_up(artifacts)
    decision = compare_published(artifacts, name, version, against)
    get_run_logger().info("%s", "\n".join([decision.reason, *decision_lines(decision)]))
    verdict = "may" if decision.promoted else "may not"
    create_table_artifact(
        decision_rows(decision),
        key=f"{artifact_key(name)}-comparison",
        description=f"Version {version} {verdict} replace {against}: {decision.reason}",
    )
    return decision


@flow(name="edgeline-promote", flow_run_name="{name} {version} to {channel}")
def promote(
    name: Name,
    version: Version,
    why: Why = "by hand, in Prefect",
    channel: Channel = STABLE,
    artifacts: Path = Path("artifacts"),
) -> Event:
    """Set a channel to a version. Servers and devices that follow the channel switch to it.

    Args:
        name: Name of the artifact.
        version: A published version, which has passed the release gate and was not yanked.
        why: The reason, for the history.
        channel: `stable`, `canary` or a channel of another name.
        artifacts: Folder of runs and the store, an absolute path.

    Returns:
        The entry in the channel's history.

    Raises:
        EdgelineError: the version is not published, was yanked or has not passed the gate; the channel stays.
    """
    set_up(artifacts)
    event = promote_version(name_folder(artifacts, name), version, Change(channel, why=why))
    get_run_logger().info("%s is at version %d, before: %s", channel, event.version, event.before)
    return event


@flow(name="edgeline-rollback", flow_run_name="{name} {channel}")
def rollback(
    name: Name, why: Why = "by hand, in Prefect", channel: Channel = STABLE, artifacts: Path = Path("artifacts")
) -> Event:
    """Set a channel to the version that it had before, skipping yanked ones.

    Args:
        name: Name of the artifact.
        why: The reason, for the history.
        channel: `stable`, `canary` or a channel of another name.
        artifacts: Folder of runs and the store, an absolute path.

    Returns:
        The entry in the channel's history.

    Raises:
        EdgelineError: the channel had no other version before; it stays.
    """
    set_up(artifacts)
    event = roll_back(name_folder(artifacts, name), channel, why)
    get_run_logger().info("%s returns from version %s to %d", channel, event.before, event.version)
    return event


@flow(name="edgeline-prune", flow_run_name="keep {keep}")
def prune(artifacts: Path = Path("artifacts"), keep: Annotated[int, Field(ge=1)] = KEEP, remove: bool = False) -> list[Path]:
    """List the old versions and runs that nothing needs, and remove them if asked to.

    Kept are every version that a channel has or had, the runs that published kept versions, and runs in progress.

    Args:
        artifacts: Folder of runs and the store, an absolute path.
        keep: Newest versions, and newest runs, of each name that are kept in any case.
        remove: Remove what is listed; without it nothing is removed.

    Returns:
        What was removed.

    Raises:
        EdgelineError: the store cannot be read, or something cannot be removed.
    """
    set_up(artifacts)
    plan = plan_prune(artifacts, keep)
    removed = remove_planned(plan) if remove else []
    entries = (*plan.versions, *plan.runs)
    rows = [
        {"path": str(each.path), "MB": f"{each.bytes / 1e6:.1f}", "removed": "yes" if each.path in removed else "no"}
        for each in entries
    ]
    total = sum(each.bytes for each in entries) / 1e6
    found = f"{len(plan.versions)} versions and {len(plan.runs)} runs are not needed, {total:,.1f} MB"
    found += f"; {len(removed)} were removed" if remove else "; nothing was removed, because `remove` is off"
    get_run_logger().info("%s", "\n".join([found, *(str(each.path) for each in entries)]))
    create_table_artifact(rows, key="edgeline-prune", description=found)
    return removed
