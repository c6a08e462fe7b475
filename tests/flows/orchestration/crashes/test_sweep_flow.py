import subprocess
from dataclasses import replace

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Running

from edgeline.flows.orchestration.crashes import sweep_flow
from edgeline.flows.orchestration.crashes.record import PROCESS
from edgeline.flows.orchestration.crashes.run_process import RunProcess
from edgeline.flows.orchestration.deployment import JOB, _ensure_pool


@flow(name="edgeline-found-by-a-flow")
def found() -> None:
    pass


def test_the_flow_returns_what_the_sweep_did(prefect_api: str) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(found, state=Running())
        client.update_flow_run_labels(run.id, {PROCESS: str(replace(RunProcess.current(), pid=ended.pid))})
        swept = sweep_flow.sweep()
        assert str(run.id) in {each.id for each in swept.ended}
        client.delete_flow_run(run.id)


def test_the_deployment_of_the_sweep_runs_every_two_minutes_and_never_twice_at_once(prefect_api: str) -> None:
    with get_client(sync_client=True) as client:
        _ensure_pool(client, "swept")
        for _ in range(2):
            sweep_flow.deploy_sweep("swept", JOB)
        deployment = client.read_deployment_by_name("edgeline-sweep/swept")
        [schedule] = deployment.schedules
        assert (schedule.schedule.cron, schedule.schedule.timezone) == ("*/2 * * * *", "UTC")
        assert deployment.work_pool_name == "swept"
        assert deployment.concurrency_options.collision_strategy.value == "CANCEL_NEW"
        assert deployment.entrypoint == "edgeline.flows.orchestration.crashes.sweep_flow.sweep"
        client.delete_deployment(deployment.id)
