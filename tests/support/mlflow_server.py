"""A real MLflow server, in an environment of its own."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeline.export.converters.environments import install

MLFLOW = "mlflow==3.17.2"
START_S = 300


def make_environment(folder: Path) -> Path:
    """The Python of an environment with MLflow."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install(python, [MLFLOW])
    return python


@contextmanager
def mlflow_server(python: Path, store: Path) -> Iterator[str]:
    """The address of a server with an empty store in this folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store.mkdir()
    command = [python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{store}/mlflow.db", "--artifacts-destination", str(store / "artifacts")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    address = f"http://127.0.0.1:{port}"
    with (store / "log").open("wb") as log:
        # In a group of its own: the server starts workers.
        process = subprocess.Popen(
            command, env=os.environ | quiet, stdout=log, stderr=subprocess.STDOUT, cwd=store, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_S
        while not _answers(f"{address}/health"):
            assert process.poll() is None, (store / "log").read_text()
            assert time.monotonic() < deadline, (store / "log").read_text()
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False
