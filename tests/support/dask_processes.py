"""A Dask scheduler and workers as processes on 127.0.0.1, as `dask scheduler` and `dask worker` start them."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60


class Cluster:
    """A scheduler, and the workers that were started for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers: list[subprocess.Popen[bytes]] = []
        self.described = folder / "scheduler.json"
        self.scheduler = self._start("dask_scheduler", "--port", "0", "--scheduler-file", str(self.described))
        self.address = ""

    def wait_for_scheduler(self) -> None:
        """Return when the scheduler has written its address."""
        deadline = time.monotonic() + DEADLINE_S
        while not self.address:
            assert time.monotonic() < deadline, (self.folder / "dask_scheduler-0.log").read_text()
            time.sleep(0.05)
            with contextlib.suppress(OSError, ValueError):  # not there yet, or not complete
                self.address = json.loads(self.described.read_text())["address"]

    def add_worker(self, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a worker with one thread; returns when the scheduler knows it."""
        from distributed import Client

        worker = self._start("dask_worker", self.address, "--nthreads", "1", "--no-nanny", environment=environment)
        self.workers.append(worker)
        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(sum(worker.poll() is None for worker in self.workers), timeout=DEADLINE_S)
        return worker

    def stop(self) -> None:
        """End all processes."""
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait()

    def _start(self, program: str, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{program}", *arguments, "--host", "127.0.0.1", "--no-dashboard"]
        variables = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **(environment or {})}
        with (self.folder / f"{program}-{len(self.workers)}.log").open("wb") as log:
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=variables)


@contextlib.contextmanager
def dask_cluster(folder: Path, workers: int = 2) -> Iterator[Cluster]:
    """Start a scheduler and workers; all are ended afterwards."""
    cluster = Cluster(folder)
    try:
        cluster.wait_for_scheduler()
        for _ in range(workers):
            cluster.add_worker()
        yield cluster
    finally:
        cluster.stop()
