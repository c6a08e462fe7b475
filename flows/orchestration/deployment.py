"""A scheduled deployment of the pipeline on a Prefect server.

A deployment consists of the whole configuration, a schedule and a work pool. It is identified by its name, so deploying again
updates it. Its worker imports the flow from the installed package: it needs the same version of edgeline, and the data and the
artifacts folder at the same absolute paths, but nothing else from the folder that was deployed from.

One run at a time. A run that falls due during another one is cancelled (`CANCEL_NEW`), not queued: the next one reads the
current data, so queued runs would only repeat each other.

To add an option of the deployment: a field of `DeploymentOptions`, its use in `_apply`, and the command's option in
`flows.cli.operations.deploy`. Settings of the pipeline are parameters of the deployment without further code. Prefect is
imported only when it is used.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import available_timezones

from edgeline.serve.errors import ConfigError, EdgelineError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from edgeline.pipeline.config import PipelineConfig

FLOWS = {False: "edgeline", True: "edgeline-retrain"}
"""The flow that a deployment runs, by `DeploymentOptions.retrain`."""
JOB = {
    "env": {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "OMP_WAIT_POLICY": "PASSIVE"},
    "stream_output": False,  # with it, a run whose worker is killed dies at its next line of output
}
"""How a worker starts a run; the command line sets the last variable too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeploymentOptions:
    """How and when a deployment runs."""

    name: str = "scheduled"
    """The deployment is found as `edgeline/<name>`."""
    cron: str = "0 3 * * *"
    """Five fields: minute, hour, day of month, month, day of week."""
    timezone: str = "Europe/Prague"
    """A name of the IANA database."""
    retrain: bool = False
    """Whether each run also decides if its version is promoted to `stable` (`edgeline retrain`)."""
    pool: str = "edgeline"
    """A work pool; created as a process pool if there is none of this name."""


@dataclass(frozen=True, slots=True)
class DeploymentInfo:
    """A deployment as it is on the server."""

    deployment: str
    """`edgeline/<name>` or `edgeline-retrain/<name>`, for Prefect's commands."""
    id: str
    cron: str
    timezone: str
    pool: str
    server: str
    parameters: dict[str, Any]


def deploy(config: "PipelineConfig", options: DeploymentOptions | None = None) -> DeploymentInfo:
    """Create the deployment `edgeline/<name>`, or update it.

    Args:
        config: the settings of each run; relative paths are resolved against the working folder.
        options: the schedule and where it runs; by default those of `edgeline deploy`.

    Raises:
        ConfigError: the schedule is invalid, or no server is configured.
        EdgelineError: the server does not respond, or rejects the deployment.
    """
    from edgeline.flows.orchestration.server import check_server, configured_url, opt_out

    options = options or DeploymentOptions()
    opt_out()
    check_schedule(options.cron, options.timezone)
    url = configured_url()
    if url is None:
        raise ConfigError(
            "a deployment needs a permanent Prefect server: start one (prefect server start) and set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api, here and for the worker"
        )
    server = check_server(url)
    import httpx
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            _ensure_pool(client, options.pool)
        parameters = {"config": absolute_parameters(config)}
        identity = _apply(options, parameters)
    except (httpx.HTTPError, RuntimeError, ValueError) as error:  # the network's; Prefect's checks, remote and local
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise EdgelineError(f"{server} rejects the deployment: {reason}", code="deploy_failed") from error
    return DeploymentInfo(
        f"{FLOWS[options.retrain]}/{options.name}", identity, options.cron, options.timezone, options.pool, server, parameters
    )


def absolute_parameters(config: "PipelineConfig") -> dict[str, Any]:
    """A configuration as parameters: what differs from the defaults, with absolute paths.

    Defaults are left to the version of edgeline that runs it, as with `edgeline run`; Prefect's form shows them.
    """
    from edgeline.pipeline.models.weights import is_file

    values = config.model_dump(mode="json", exclude_defaults=True)
    values["data"] = config.data if config.data == "digits" else str(Path(config.data).absolute())
    values["artifacts"] = str(Path(config.artifacts).absolute())
    if is_file(config.weights):
        values["weights"] = str(Path(config.weights).absolute())
    return values


def check_schedule(cron: str, timezone: str) -> None:
    """Return if the schedule is valid.

    Raises:
        ConfigError: with every problem found.
    """
    from prefect.client.schemas.schedules import CronSchedule

    problems = []
    try:
        CronSchedule(cron=cron)
        valid = len(cron.split()) == 5  # Prefect also accepts a sixth field for seconds, and nicknames
    except ValueError:
        valid = False
    if not valid:
        problems.append(f"cron {cron!r} is not a cron expression; write minute, hour, day, month, weekday, like '0 3 * * *'")
    if timezone not in available_timezones():
        problems.append(f"{timezone!r} is not a time zone of the IANA database; write it like Europe/Prague, or UTC")
    if problems:
        raise ConfigError("; ".join(problems))


def _ensure_pool(client: "SyncPrefectClient", name: str) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type=ProcessWorker.type, base_job_template=template))
        except ObjectAlreadyExists:  # created by another process in the meantime
            return


def _apply(options: DeploymentOptions, parameters: dict[str, Any]) -> str:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments.runner import RunnerDeployment
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    from edgeline.flows.orchestration import flow

    deployment = RunnerDeployment.from_flow(
        flow.retrain if options.retrain else flow.edgeline,
        options.name,
        schedules=[Cron(options.cron, timezone=options.timezone, slug=options.name)],
        parameters=parameters,
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        enforce_parameter_schema=True,
        work_pool_name=options.pool,
        job_variables=JOB,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return str(deployment.apply())
