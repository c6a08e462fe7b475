"""What `edgeline deploy` sets up on a Prefect server.

Without `retrain` that is one deployment, which runs the pipeline on a schedule. With it, it is all that a model needs that is
kept up to date by itself: retraining, pruning and, given its sources, monitoring on schedules; comparing, promoting and rolling
back as forms in the UI; and the automations of `deployments.automations`.

A deployment is identified by its flow and its name, so deploying again updates it. Its worker imports the flow from the
installed package: it needs the same version of edgeline, which the deployment states, and the data and the artifacts folder at
the same absolute paths, but nothing else from the folder that was deployed from.

One scheduled run at a time. A run that falls due during another one is cancelled (`CANCEL_NEW`), not queued: the next one reads
the current data, so queued runs would only repeat each other.

To add an option of the deployment: a field of `DeploymentOptions`, its use in `plan`, and the command's option in
`flows.cli.operations.deploy`. Settings of the pipeline are parameters of the deployment without further code. Prefect is
imported only when it is used.
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID
from zoneinfo import available_timezones

from edgeline.serve.errors import ConfigError, EdgelineError

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.orchestration import SyncPrefectClient

    from edgeline.pipeline.config import PipelineConfig

JOB = {
    "env": {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "OMP_WAIT_POLICY": "PASSIVE"},
    "stream_output": False,  # with it, a run whose worker is killed dies at its next line of output
}
"""How a worker starts a run; the command line sets the last variable too."""
PRUNE_CRON, MONITOR_CRON = "0 5 * * *", "0 6 * * *"
"""After the default time of the retraining, and outside of the hours that a zone skips or repeats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeploymentOptions:
    """How and when a deployment runs."""

    name: str = ""
    """The deployment is found as `edgeline/<name>`; by default the artifact's name."""
    cron: str = "0 3 * * *"
    """Five fields: minute, hour, day of month, month, day of week."""
    timezone: str = "Europe/Prague"
    """A name of the IANA database."""
    pool: str = "edgeline"
    """A work pool; created as a process pool if there is none of this name."""
    retrain: bool = False
    """Whether each run also decides if its version is promoted to `stable` (`edgeline retrain`); the next three need it."""
    monitor: tuple[str, ...] = ()
    """Sources of drift snapshots, which are tested every day: files, folders, or URLs of servers."""
    inbox: str | None = None
    """Folder of photos that wait for labels, which a retraining after drift reports."""
    notify: str | None = None
    """Notification block that tells people of drift and decisions: its type and name, such as `slack-webhook/team`."""


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
    others: dict[str, str]
    """The other deployments, each with its cron expression, or empty if it runs only when it is started."""
    automations: tuple[str, ...]
    workers: int
    """Workers of the pool that are online."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A deployment to create."""

    flow: "Flow[Any, Any]"
    parameters: dict[str, Any]
    cron: str = ""


def deploy(config: "PipelineConfig", options: DeploymentOptions | None = None) -> DeploymentInfo:
    """Create the deployment `edgeline/<name>`, or all of `edgeline-retrain/<name>`, or update them.

    Args:
        config: the settings of each run; relative paths are resolved against the working folder.
        options: the schedule and where it runs; by default those of `edgeline deploy`.

    Raises:
        ConfigError: the schedule is invalid, no server is configured, or it has no such notification block.
        EdgelineError: the server does not respond, or rejects the deployment.
    """
    from edgeline.flows.orchestration.server import check_server, configured_url, opt_out

    options = options or DeploymentOptions()
    opt_out()
    check_schedule(options.cron, options.timezone)
    if (options.monitor or options.inbox or options.notify) and not options.retrain:
        raise ConfigError("--monitor, --inbox and --notify are about a model that is retrained; add --retrain")
    url = configured_url()
    if url is None:
        raise ConfigError(
            "a deployment needs a permanent Prefect server: start one (prefect server start) and set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api, here and for the worker"
        )
    server = check_server(url)
    import httpx
    from prefect.client.orchestration import get_client

    from edgeline.flows.orchestration.deployments.automations import apply_automations, find_notifier

    name = options.name or config.artifact_name
    planned = plan(config, options)
    try:
        with get_client(sync_client=True) as client:
            notifier = find_notifier(client, options.notify) if options.notify else None
            _ensure_pool(client, options.pool)
            ids = [_apply(each, name, config.artifact_name, options) for each in planned]
            automations = apply_automations(client, config.artifact_name, ids[0], notifier) if options.retrain else ()
            workers = _workers_online(client, options.pool)
    except (httpx.HTTPError, RuntimeError, ValueError) as error:  # the network's; Prefect's checks, remote and local
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise EdgelineError(f"{server} rejects the deployment: {reason}", code="deploy_failed") from error
    first, *others = planned
    return DeploymentInfo(
        f"{first.flow.name}/{name}",
        str(ids[0]),
        options.cron,
        options.timezone,
        options.pool,
        server,
        first.parameters,
        {f"{each.flow.name}/{name}": each.cron for each in others},
        automations,
        workers,
    )


def plan(config: "PipelineConfig", options: DeploymentOptions) -> list[Planned]:
    """The deployments, the one that runs the pipeline first."""
    from edgeline.flows.orchestration import flow, monitoring, store

    parameters: dict[str, Any] = {"config": absolute_parameters(config)}
    if not options.retrain:
        return [Planned(flow.edgeline, parameters, options.cron)]
    artifacts = {"artifacts": parameters["config"]["artifacts"]}
    model = artifacts | {"name": config.artifact_name}
    if options.inbox:
        parameters["inbox"] = str(Path(options.inbox).absolute())
    planned = [
        Planned(flow.retrain, parameters, options.cron),
        Planned(store.prune, artifacts, PRUNE_CRON),
        *(Planned(each, model) for each in (store.compare, store.promote, store.rollback)),
    ]
    if options.monitor:
        sources = [each if "://" in each else str(Path(each).absolute()) for each in options.monitor]
        planned.append(Planned(monitoring.monitor, model | {"sources": sources}, MONITOR_CRON))
    return planned


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


def _workers_online(client: "SyncPrefectClient", pool: str) -> int:
    from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus

    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    return len(client.read_workers_for_work_pool(pool, worker_filter=online))


def _apply(planned: Planned, name: str, model: str, options: DeploymentOptions) -> UUID:
    """Create or update a deployment.

    Args:
        planned: its flow, parameters and schedule.
        name: of the deployment.
        model: name of the artifact, a tag.
        options: time zone and pool.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments.runner import RunnerDeployment
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    collision = ConcurrencyLimitStrategy.CANCEL_NEW if planned.cron else ConcurrencyLimitStrategy.ENQUEUE
    deployment = RunnerDeployment.from_flow(
        planned.flow,
        name,
        schedules=[Cron(planned.cron, timezone=options.timezone, slug=name)] if planned.cron else None,
        parameters=planned.parameters,
        tags=["edgeline", model],
        version=version("edgeline"),
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=collision),
        enforce_parameter_schema=True,
        work_pool_name=options.pool,
        job_variables=JOB,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return UUID(str(deployment.apply()))
