"""The sweep of crashed runs as a Prefect flow, for those who want to see it in the UI.

A worker runs it, so it does not run while there is none, and it judges only the runs of the machine that it happens to run on.
`edgeline sweep --every 30` beside each worker (`docs/deploy/edgeline-sweep.service`) has neither limit.
"""

from prefect import flow, get_run_logger

from edgeline.flows.orchestration.crashes.crashed_runs import SWEEP, Sweep, sweep_lines
from edgeline.flows.orchestration.crashes.crashed_runs import sweep as sweep_runs

CRON = "*/2 * * * *"


@flow(name=SWEEP, flow_run_name="sweep")
def sweep(gone: list[str] | None = None) -> Sweep:
    """Mark the runs of this machine whose process is gone as crashed, and start crashed runs again, once.

    Args:
        gone: names of machines that were switched off for good; their runs count as dead.
    """
    swept = sweep_runs(gone or ())
    for line in sweep_lines(swept):
        get_run_logger().info("%s", line)
    return swept


def deploy_sweep(pool: str, job_variables: dict[str, object], cron: str = CRON) -> str:
    """Create or update the deployment `edgeline-sweep/<pool>`, and return its id.

    Args:
        pool: an existing work pool of processes.
        job_variables: how its worker starts the run.
        cron: five fields, in UTC.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments.runner import RunnerDeployment
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    deployment = RunnerDeployment.from_flow(
        sweep,
        pool,
        schedules=[Cron(cron, timezone="UTC", slug="sweep")],
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        work_pool_name=pool,
        job_variables=job_variables,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return str(deployment.apply())
