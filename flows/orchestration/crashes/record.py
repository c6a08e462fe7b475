"""A flow run notes which process executes it."""

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from edgeline.flows.orchestration.crashes.run_process import RunProcess

PROCESS = "edgeline.process"
"""Label of a flow run: its process."""


def record_process() -> None:
    """Label the current flow run with its process; without effect outside of a run."""
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        with get_client(sync_client=True) as client:
            client.update_flow_run_labels(context.flow_run.id, {PROCESS: str(RunProcess.current())})
