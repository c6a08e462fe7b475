"""What Prefect adds to a run on a running server: seconds, milliseconds a task, and the share of the pipeline's own time.

The pipeline runs once without Prefect, which gives its own time. Then it runs again and again with every step reused, in turn
without Prefect and as a flow, in one process: the difference of the medians is what the flow costs, whatever its steps take. An
empty flow gives the part that does not depend on the tasks. The server is the one that `edgeline run` starts; its start is not
included.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import SHARED, Clock, photos, report, without_spinning

from edgeline.flows.orchestration.embedded import EmbeddedServer
from edgeline.flows.steps import STEP_NAMES, run_pipeline
from edgeline.pipeline.config import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=photos("hymenoptera"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--artifacts", type=Path, help="keep the run's results here and reuse them; then its time is not known")
    arguments = parser.parse_args()
    if (SHARED / "weights" / "torch").is_dir():
        os.environ.setdefault("TORCH_HOME", str(SHARED / "weights" / "torch"))
    with tempfile.TemporaryDirectory() as temporary:
        artifacts = arguments.artifacts or Path(temporary, "artifacts")
        config = load_config(None, [], data=arguments.data, artifacts=str(artifacts))
        with Clock() as first:
            run_pipeline(config)
        with EmbeddedServer(Path(temporary, "prefect")) as server, server.settings():
            from prefect import flow

            from edgeline.flows.orchestration.flow import edgeline

            server.wait()
            ways: dict[str, Callable[[], object]] = {
                "without Prefect": lambda: run_pipeline(config),
                "empty flow": flow(name="empty")(lambda: None),
                "flow": lambda: edgeline(config),
            }
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(-1, arguments.rounds):
                for name, run in ways.items():
                    with Clock() as clock:
                        run()
                    if turn >= 0:
                        seconds[name].append(clock.seconds)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    added = medians["flow"] - medians["without Prefect"]
    ms_a_task = 1e3 * (added - medians["empty flow"]) / len(STEP_NAMES)
    print(", ".join(f"{name} {value:.2f} s" for name, value in medians.items()), "with every step reused")
    print(f"Prefect adds {added:.2f} s, {ms_a_task:.0f} ms for each of {len(STEP_NAMES)} tasks beside the empty flow")
    print(f"the pipeline itself took {first.seconds:.0f} s: {100 * added / first.seconds:.1f} %")
    share = None if arguments.artifacts else added / first.seconds
    report("prefect_overhead", pipeline_s=first.seconds, medians_s=medians, added_s=added, ms_a_task=ms_a_task, share=share)


if __name__ == "__main__":
    without_spinning()
    main()
