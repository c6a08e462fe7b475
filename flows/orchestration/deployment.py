"""A scheduled deployment of the line, and its command: `edgeline deploy`.

A deployment is the whole configuration, a schedule and a work pool. It is found by its name, so deploying again changes it.
Its worker imports the flow from the installed package: it needs the same edgeline, and the data and the artifacts' folder
at the same absolute paths, but nothing of the folder that was deployed from. Nothing heavy is imported here before the
command runs.

One run at a time, and a run that falls due during another one is cancelled (`CANCEL_NEW`), not queued: the next one sees
whatever the data are then, so runs that queued behind a long one would only repeat each other.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import available_timezones

import typer

from edgeline.flows.cli.run import Artifacts, Config, Data, Json, Name, Overrides
from edgeline.serve.errors import ConfigError, EdgelineError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from edgeline.pipeline.config import PipelineConfig

CRON = "0 3 * * *"
TIMEZONE = "Europe/Prague"
POOL = "edgeline"
DEPLOYMENT = "scheduled"
JOB = {
    "env": {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "OMP_WAIT_POLICY": "PASSIVE"},
    "stream_output": False,  # with it, a run whose worker is killed dies of its next line of output
}
"""How a worker starts a run; the last variable is the command line's own."""


@dataclass(frozen=True, slots=True)
class DeploymentInfo:
    """What is on the server now."""

    deployment: str
    """`edgeline/<name>`, as Prefect's commands take it."""
    id: str
    cron: str
    timezone: str
    pool: str
    server: str
    parameters: dict[str, Any]


def register(app: typer.Typer) -> None:
    """Add `edgeline deploy` to a command line."""
    app.command("deploy")(deploy_command)


def deploy_command(
    data: Data = None,
    config: Config = None,
    name: Name = None,
    artifacts: Artifacts = None,
    overrides: Overrides = None,
    cron: Annotated[str, typer.Option(help="When to run: minute, hour, day of month, month, day of week.")] = CRON,
    timezone: Annotated[str, typer.Option(help="The time zone that the schedule is meant in.")] = TIMEZONE,
    pool: Annotated[str, typer.Option(help="The work pool whose workers run it; made for processes if absent.")] = POOL,
    deployment: Annotated[str, typer.Option(help="The deployment's name; an existing one is changed.")] = DEPLOYMENT,
    as_json: Json = False,
) -> None:
    """Run the line on a schedule: create or change a deployment on the configured Prefect server.

    The settings become the deployment's parameters, where every run can override them. Paths are made absolute, because a
    worker runs elsewhere.

        edgeline deploy --data photos/ --cron "0 3 * * *" --timezone Europe/Prague

        edgeline deploy --config edgeline.toml --deployment weekly --cron "0 4 * * MON"
    """
    from edgeline.pipeline.config import load_config

    settings = load_config(config, overrides, data=data, name=name, artifacts=artifacts)
    deployed = deploy(settings, name=deployment, cron=cron, timezone=timezone, pool=pool)
    if as_json:
        print(json.dumps(asdict(deployed)))
        return
    print(f"{deployed.deployment} runs at {cron!r} ({timezone}) in the work pool {pool!r} of {deployed.server}")
    print(f"start a worker:  prefect worker start --pool {pool}")
    print(f"run it now:      prefect deployment run {deployed.deployment}")


def deploy(
    config: "PipelineConfig", *, name: str = DEPLOYMENT, cron: str = CRON, timezone: str = TIMEZONE, pool: str = POOL
) -> DeploymentInfo:
    """Create the deployment `edgeline/<name>`, or change it.

    Args:
        config: what each run is asked to do; relative paths are taken from the working folder.
        name: of the deployment.
        cron: five fields.
        timezone: of the IANA database.
        pool: a work pool; made for processes where there is none of this name.

    Raises:
        ConfigError: the schedule makes no sense, or no server is configured.
        EdgelineError: the server does not answer, or refuses.
    """
    from edgeline.flows.orchestration.server import check_server, configured_url, opt_out

    opt_out()
    check_schedule(cron, timezone)
    url = configured_url()
    if url is None:
        raise ConfigError(
            "a deployment needs a Prefect server that stays: start one (prefect server start) and set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api, here and for the worker"
        )
    server = check_server(url)
    import httpx
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            _ensure_pool(client, pool)
        parameters = {"config": absolute(config)}
        identity = _apply(name, cron, timezone, pool, parameters)
    except (httpx.HTTPError, RuntimeError, ValueError) as error:  # of the network; of Prefect's checks, there and here
        reason = " ".join(str(error).split())[:500]
        raise EdgelineError(f"{server} refuses the deployment: {reason}", code="deploy_failed") from error
    return DeploymentInfo(f"edgeline/{name}", identity, cron, timezone, pool, server, parameters)


def absolute(config: "PipelineConfig") -> dict[str, Any]:
    """A configuration as parameters: what differs from the defaults, with absolute paths.

    Defaults are left to the edgeline that runs it, as for `edgeline run`; the form shows them.
    """
    from edgeline.pipeline.models.weights import is_file

    values = config.model_dump(mode="json", exclude_defaults=True)
    values["data"] = config.data if config.data == "digits" else str(Path(config.data).absolute())
    values["artifacts"] = str(Path(config.artifacts).absolute())
    if is_file(config.weights):
        values["weights"] = str(Path(config.weights).absolute())
    return values


def check_schedule(cron: str, timezone: str) -> None:
    """Return if it is one.

    Raises:
        ConfigError: with every problem found.
    """
    from prefect.client.schemas.schedules import CronSchedule

    problems = []
    try:
        CronSchedule(cron=cron)
        understood = len(cron.split()) == 5  # it takes a sixth for seconds, and names
    except ValueError:
        understood = False
    if not understood:
        problems.append(f"cron {cron!r} is no cron expression; write minute, hour, day, month, weekday, like '0 3 * * *'")
    if timezone not in available_timezones():
        problems.append(f"{timezone!r} is no time zone of the IANA database; write it like Europe/Prague, or UTC")
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
        except ObjectAlreadyExists:  # somebody else was as quick
            return


def _apply(name: str, cron: str, timezone: str, pool: str, parameters: dict[str, Any]) -> str:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments.runner import RunnerDeployment
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    from edgeline.flows.orchestration.flow import edgeline

    deployment = RunnerDeployment.from_flow(
        edgeline,
        name,
        schedules=[Cron(cron, timezone=timezone, slug=name)],
        parameters=parameters,
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        enforce_parameter_schema=True,
        work_pool_name=pool,
        job_variables=JOB,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return str(deployment.apply())
