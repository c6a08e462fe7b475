"""`edgeline deploy`: create or update a scheduled deployment on the configured Prefect server.

Nothing heavy is imported here; the command imports what it needs when it runs.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edgeline.flows.cli.options import Artifacts, Config, Data, Json, Name, Overrides
from edgeline.flows.orchestration.deployments.deployment import DeploymentInfo, DeploymentOptions

DEFAULTS = DeploymentOptions()


def deploy_pipeline(
    data: Data = None,
    config: Config = None,
    name: Name = None,
    artifacts: Artifacts = None,
    overrides: Overrides = None,
    cron: Annotated[str, typer.Option(help="When to run: minute, hour, day of month, month, day of week.")] = DEFAULTS.cron,
    timezone: Annotated[str, typer.Option(help="Time zone of the schedule.")] = DEFAULTS.timezone,
    pool: Annotated[
        str, typer.Option(help="Work pool whose workers run it; created as a process pool if absent.")
    ] = DEFAULTS.pool,
    deployment: Annotated[
        str | None, typer.Option(help="The deployment's name, by default the artifact's; an existing one is updated.")
    ] = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Put a new version into use only if it is not worse, as `edgeline retrain` does.")
    ] = False,
    monitor: Annotated[
        list[str] | None,
        typer.Option(help="Test this drift snapshot every day: a file, a folder, or a server's URL; may be repeated."),
    ] = None,
    inbox: Annotated[str | None, typer.Option(help="Folder of photos that wait for labels; reported after drift.")] = None,
    notify: Annotated[
        str | None,
        typer.Option(help="Tell people of drift and decisions: type and name of a block, such as `slack-webhook/team`."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the pipeline on a schedule: create or update a deployment on the configured Prefect server.

    The settings become the deployment's parameters, which every run can override. Paths are made absolute, because a worker
    runs in another folder.

    With `--retrain` there are more deployments: `edgeline-prune` (a dry run every day), `edgeline-monitor` with `--monitor`,
    and `edgeline-compare`, `-promote` and `-rollback` as forms in the UI; and an automation starts a retraining after drift.

        edgeline deploy --data photos/ --cron "0 3 * * *" --timezone Europe/Prague

        edgeline deploy --config edgeline.toml --deployment weekly --cron "0 4 * * MON"

        edgeline deploy --data photos/ --retrain --monitor http://127.0.0.1:8000/drift --notify slack-webhook/team
    """
    from edgeline.flows.orchestration.deployments.clock_changes import clock_change_warning
    from edgeline.flows.orchestration.deployments.deployment import check_schedule, deploy
    from edgeline.flows.orchestration.server import opt_out
    from edgeline.pipeline.config import load_config
    from edgeline.pipeline.runs.home import ensure_home

    opt_out()
    settings = load_config(config, overrides, data=data, name=name, artifacts=artifacts)
    ensure_home(Path(settings.artifacts))
    check_schedule(cron, timezone)
    if warning := clock_change_warning(cron, timezone):
        print(f"warning: {warning}", file=sys.stderr)
    options = DeploymentOptions(
        name=deployment or "",
        cron=cron,
        timezone=timezone,
        pool=pool,
        retrain=retrain,
        monitor=tuple(monitor or ()),
        inbox=inbox,
        notify=notify,
    )
    deployed = deploy(settings, options)
    if as_json:
        print(json.dumps(asdict(deployed)))
    else:
        _show(deployed)
    if not deployed.workers:
        command = f"prefect worker start --pool {pool}"
        print(f"warning: no worker of the work pool {pool!r} is online, so runs wait; start one: {command}", file=sys.stderr)


def _show(deployed: DeploymentInfo) -> None:
    when = f"({deployed.timezone}) in the work pool {deployed.pool!r} of {deployed.server}"
    print(f"{deployed.deployment} runs at {deployed.cron!r} {when}")
    for other, cron in deployed.others.items():
        print(f"{other} runs {f'at {cron!r}' if cron else 'when it is started'}")
    for automation in deployed.automations:
        print(f"automation: {automation}")
    print(f"run it now:      prefect deployment run {deployed.deployment}")
