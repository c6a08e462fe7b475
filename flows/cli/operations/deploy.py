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
from edgeline.flows.orchestration.deployment import DeploymentOptions

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
    deployment: Annotated[str, typer.Option(help="The deployment's name; an existing one is updated.")] = DEFAULTS.name,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Put a new version into use only if it is not worse, as `edgeline retrain` does.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the pipeline on a schedule: create or update a deployment on the configured Prefect server.

    The settings become the deployment's parameters, which every run can override. Paths are made absolute, because a worker
    runs in another folder.

        edgeline deploy --data photos/ --cron "0 3 * * *" --timezone Europe/Prague

        edgeline deploy --config edgeline.toml --deployment weekly --cron "0 4 * * MON"

        edgeline deploy --data photos/ --name birds --retrain
    """
    from edgeline.flows.orchestration.clock_changes import clock_change_warning
    from edgeline.flows.orchestration.deployment import check_schedule, deploy
    from edgeline.flows.orchestration.server import opt_out
    from edgeline.pipeline.config import load_config
    from edgeline.pipeline.runs.home import ensure_home

    opt_out()
    settings = load_config(config, overrides, data=data, name=name, artifacts=artifacts)
    ensure_home(Path(settings.artifacts))
    check_schedule(cron, timezone)
    if warning := clock_change_warning(cron, timezone):
        print(f"warning: {warning}", file=sys.stderr)
    deployed = deploy(settings, DeploymentOptions(name=deployment, cron=cron, timezone=timezone, pool=pool, retrain=retrain))
    if as_json:
        print(json.dumps(asdict(deployed)))
        return
    print(f"{deployed.deployment} runs at {cron!r} ({timezone}) in the work pool {pool!r} of {deployed.server}")
    print(f"start a worker:  prefect worker start --pool {pool}")
    print(f"run it now:      prefect deployment run {deployed.deployment}")
