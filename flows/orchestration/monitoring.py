"""The monitoring of a published model as a Prefect flow: a table of each window, and an event for an alarm.

The event `edgeline.model.drifted` starts a run of `edgeline-retrain`, by an automation of `edgeline deploy --retrain`.
"""

from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.events import emit_event
from pydantic import Field

from edgeline.flows.operations.monitor import Monitoring, monitoring_lines
from edgeline.flows.operations.monitor import monitor as monitor_model
from edgeline.flows.orchestration.flow import set_up
from edgeline.flows.orchestration.report import artifact_key, resource_id
from edgeline.pipeline.monitoring.series import ALPHA

DRIFTED = "edgeline.model.drifted"


@flow(name="edgeline-monitor", flow_run_name="{name}")
def monitor(
    name: str,
    sources: list[str] = Field(min_length=1, description="Drift snapshots: files, folders of them, or URLs of servers."),
    artifacts: Path = Path("artifacts"),
    channel: str = "stable",
    alpha: float = Field(ALPHA, gt=0, le=0.5, description="Probability of a false alarm over all windows of a version."),
) -> Monitoring:
    """Test what devices and servers have seen against the held-out images of the version in use.

    Args:
        name: of the artifact.
        sources: drift snapshots.
        artifacts: folder of the store.
        channel: whose version is in use.
        alpha: probability of a false alarm over all windows of a version.

    Returns:
        What was found. An alarm does not fail the run; it emits an event.

    Raises:
        EdgelineError: the version in use or all of the sources cannot be read.
    """
    set_up(artifacts)
    found = monitor_model(artifacts, name, sources, channel=channel, alpha=alpha)
    get_run_logger().info("%s", "\n".join(monitoring_lines(found)))
    if (window := found.monitored) is None:
        return found
    rows = [
        {
            "statistic": each.name,
            "p": f"{each.p_value:.2g}",
            "mean": "" if each.mean is None else f"{each.mean:.4g}",
            "held-out": "" if each.reference_mean is None else f"{each.reference_mean:.4g}",
            "result": "alarm" if each.name in window.alarm else "changed" if each.name in window.test.drifted else "",
        }
        for each in window.test.statistics
    ]
    create_table_artifact(rows, key=f"{artifact_key(name)}-drift", description="\n".join(monitoring_lines(found)))
    if window.alarm:
        message = f"Version {found.version}: {', '.join(window.alarm)} changed in {window.count:,} images until {window.until}"
        emit_event(
            DRIFTED,
            resource={"prefect.resource.id": resource_id(name), "prefect.resource.name": name},
            payload={
                "version": found.version,
                "drifted": list(window.alarm),
                "images": window.count,
                "until": window.until,
                "message": message,
            },
        )
    return found
