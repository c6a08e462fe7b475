"""A server, a worker and runs are killed at random while 20 runs are made: what is published in the end.

    python benchmarks/chaos.py --kills 50 --runs 20

`edgeline up` runs in a folder of its own. Each run has data of its own: small pictures of two classes, so it takes seconds. A
kill is a signal to one process, SIGKILL or SIGTERM. A run that was killed is started again by the sweep; if that one is killed
too, this script starts it once more, as the next night would. Each run has its share of the kills.
In the end there must be one version for each input digest, no unfinished run, and every version must pass its self-test.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common import Clock, report
from PIL import Image

from edgeline.flows.up.guard import marked
from edgeline.pipeline.config import PipelineConfig, load_config
from edgeline.serve.artifact.manifest import FILE_NAME
from edgeline.serve.artifact.reader import versions
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import EdgelineError

EDGELINE = str(Path(sys.executable).with_name("edgeline"))
NAME = "chaos"
SETTINGS = ["train.strategy=head", "train.epochs=3", "publish.golden=2", "export.variants=[]", "model=timm:test_efficientnet"]
SETTINGS += ["weights=none", "preprocess.size=32"]
TARGETS = {"run": ("worker", "prefect.engine"), "worker": ("worker", "worker start"), "server": ("prefect", "server start")}
WEIGHTS = {"run": 3, "worker": 3, "server": 1}
"""How often each is killed: a server takes longest to start, and little happens meanwhile."""
START_S, QUIET_S = 300, 90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=40, help="longest time between two kills, in seconds")
    parser.add_argument("--minutes", type=float, default=240, help="begin no further run after this time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, Clock() as clock:
        folder, ports = Path(temporary), (free_port(), free_port())
        settle(folder, ports[0])
        killer = Killer(folder / "artifacts" / "up", arguments)
        with up(folder, ports), connected() as runs:
            runs.until(lambda: runs.deploy(configure(folder, 0)), START_S)
            done = repeat(folder, runs, killer, arguments)
            runs.until(runs.none_alive, START_S)
            found = runs.until(runs.read, START_S)
            unfinished = [run.id for run in found if not run.state.is_final() and not run.state.is_scheduled()]
            restarts = sum((run.idempotency_key or "").startswith("edgeline-restart-") for run in found)
        figures = examine(folder / "artifacts" / "store" / NAME)
    figures |= {"kills": sum(killer.kills.values()), "by": dict(killer.kills), "unfinished": len(unfinished)}
    figures |= {"submitted": runs.submitted, "started_again_by_the_sweep": restarts}
    report("chaos", runs=done, **figures, seconds=clock.seconds, seed=arguments.seed)
    passed = figures["published"] == figures["digests"] == done and not figures["bad"] and not unfinished
    sys.exit(0 if passed else 1)


def repeat(folder: Path, runs: "Runs", killer: "Killer", arguments: argparse.Namespace) -> int:
    """Make all runs one after another, each with its share of the kills, and the last one again until all kills are done.

    Returns:
        How many different ones were made in time.
    """
    begun, number = time.monotonic(), 0
    while (number < arguments.runs or killer.left) and time.monotonic() < begun + 60 * arguments.minutes:
        planned = arguments.kills * min(number + 1, arguments.runs) / arguments.runs
        killer.left = round(planned) - sum(killer.kills.values())
        finish(runs, configure(folder, min(number, arguments.runs - 1)), killer)
        number += 1
        print(f"{time.monotonic() - begun:6.0f} s  {number} runs done, {sum(killer.kills.values())} kills", flush=True)
    return min(number, arguments.runs)


def finish(runs: "Runs", config: PipelineConfig, killer: "Killer") -> None:
    """Submit a run until one has completed: again only if the sweep has not started a killed one again."""
    submitted, quiet_since = None, time.monotonic()
    while True:
        killer.wait(1)
        if submitted is None:
            submitted, quiet_since = runs.attempt(runs.submit, config), time.monotonic()
        elif (states := runs.attempt(runs.states, submitted)) is None:
            continue
        elif "Completed" in states:
            return
        elif "Failed" in states:
            raise SystemExit(f"a run failed: {states}")
        elif not set(states) <= {"Crashed", "Cancelled"}:
            quiet_since = time.monotonic()
        elif time.monotonic() - quiet_since > QUIET_S:
            submitted = None


class Killer:
    """Sends signals to processes at random times."""

    def __init__(self, home: Path, arguments: argparse.Namespace) -> None:
        self.home, self.left, self.longest = home, 0, arguments.longest
        self.chance = random.Random(arguments.seed)
        self.kills: Counter[str] = Counter()
        self.next = time.monotonic() + self.longest

    def wait(self, seconds: float) -> None:
        """Let time pass, and kill what is due."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.left and time.monotonic() > self.next:
                self._kill()
            time.sleep(0.1)

    def _kill(self) -> None:
        [target] = self.chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
        number = self.chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        if not (found := self._find(*TARGETS[target])):
            return  # such as no run now: tried again with another target
        with suppress(ProcessLookupError):
            os.kill(found[0], number)
            self.kills[f"{target} {number.name}"] += 1
            self.left -= 1
            self.next = time.monotonic() + self.chance.uniform(1, self.longest)

    def _find(self, service: str, text: str) -> list[int]:
        found = []
        for pid in marked(f"{self.home}:{service}"):
            with suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if text in command and "guard.py" not in command:
                    found.append(pid)
        return found


class Runs:
    """The runs on the server."""

    def __init__(self, client: Any) -> None:
        self.client, self.submitted = client, 0

    def deploy(self, config: PipelineConfig) -> bool:
        """Create the deployment."""
        from edgeline.flows.orchestration.deployments.deployment import deploy

        return bool(deploy(config).id)

    def submit(self, config: PipelineConfig) -> str:
        """Start a run with these settings; return its id."""
        from edgeline.flows.orchestration.deployments.deployment import absolute_parameters

        deployment = self.client.read_deployment_by_name(f"edgeline/{NAME}")
        key, parameters = f"chaos-{self.submitted + 1}", {"config": absolute_parameters(config)}
        run = self.client.create_flow_run_from_deployment(deployment.id, parameters=parameters, idempotency_key=key)
        self.submitted += 1
        return str(run.id)

    def read(self) -> list[Any]:
        """The runs that were not planned for later."""
        return [run for run in self.client.read_flow_runs(limit=200) if not run.auto_scheduled]

    def none_alive(self) -> bool:
        """Sweep; return whether no run is in progress."""
        from edgeline.flows.orchestration.crashes.crashed_runs import sweep

        return sweep().alive == 0

    def states(self, submitted: str) -> list[str]:
        """The state of a run, and of the one that was started again instead of it."""
        key = f"edgeline-restart-{submitted}"
        return [run.state_name for run in self.read() if str(run.id) == submitted or run.idempotency_key == key]

    def attempt(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a request; None while the server is down."""
        import httpx
        from prefect.exceptions import PrefectHTTPStatusError

        try:
            return call(*arguments)
        except (httpx.HTTPError, PrefectHTTPStatusError, EdgelineError):
            return None

    def until(self, call: Callable[[], Any], seconds: float) -> Any:
        """The result of a request, once there is one."""
        end = time.monotonic() + seconds
        while (found := self.attempt(call)) in (None, False):
            if time.monotonic() > end:
                raise SystemExit(f"nothing from the server within {seconds} s")
            time.sleep(0.5)
        return found


def settle(folder: Path, port: int) -> None:
    """Make this process and its children clients of the server, whatever the user's settings are; Prefect reads this first."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ |= {
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_HOME": str(folder / "client"),
        "DO_NOT_TRACK": "1",
    }
    os.environ["PREFECT_CLIENT_MAX_RETRIES"] = "0"


@contextmanager
def connected() -> Iterator[Runs]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield Runs(client)


@contextmanager
def up(folder: Path, ports: tuple[int, int]) -> Iterator[None]:
    """`edgeline up` in the folder."""
    options = ["--artifacts", str(folder / "artifacts"), "--prefect-port", str(ports[0]), "--port", str(ports[1])]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with (folder / "up.txt").open("wb") as log:
        process = subprocess.Popen(
            [EDGELINE, "up", *options], env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def configure(folder: Path, number: int) -> PipelineConfig:
    """The settings of a run, whose pictures no other run has."""
    data, chance = folder / f"data-{number}", random.Random(number)
    for label, color in {"warm": (200, 60, 40), "cold": (40, 70, 200)}.items():
        if (data / label).exists():
            continue
        (data / label).mkdir(parents=True)
        for index in range(20):
            picture = Image.new("RGB", (40, 32), tuple(level + chance.randint(-30, 30) for level in color))
            for _ in range(30):
                picture.putpixel((chance.randrange(40), chance.randrange(32)), tuple(chance.randbytes(3)))
            picture.save(data / label / f"{index}.png")
    return load_config(None, SETTINGS, data=str(data), name=NAME, artifacts=str(folder / "artifacts"))


def examine(store: Path) -> dict[str, Any]:
    """Open every version, which checks every hash and the golden samples; count versions and input digests."""
    digests, bad = set(), []
    found = versions(store)
    for version in found:
        try:
            Classifier.open(store / str(version))
        except EdgelineError as error:
            bad.append(f"{version}: {error}")
        digests.add(json.loads((store / str(version) / FILE_NAME).read_text())["provenance"]["data_sha256"])
    return {"published": len(found), "digests": len(digests), "bad": bad}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        return int(holder.getsockname()[1])


if __name__ == "__main__":
    main()
