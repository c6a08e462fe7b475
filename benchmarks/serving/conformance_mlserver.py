"""Run `edgeline conformance` on MLServer, and with an artifact on edgeline's own server.

MLServer serves a minimal runtime here, two numbers from four floats, because the server is checked and not a model. It is
installed in its own environment and listens on 127.0.0.1.
"""

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import install, report

from edgeline.serve.conformance.command import describe, reach
from edgeline.serve.conformance.runner import run

MLSERVER = "mlserver==1.7.1"
WAIT_S = 120
RUNTIME = """
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Sums(MLModel):
    async def load(self):
        return True

    async def predict(self, payload):
        x = NumpyCodec.decode_input(payload.inputs[0])
        y = np.stack([x.sum(axis=1), x.max(axis=1)], axis=1).astype(np.float32)
        output = NumpyCodec.encode_output("y", y)
        return InferenceResponse(model_name=self.name, model_version=self.version, id=payload.id, outputs=[output])
"""
MODEL = {
    "name": "sums",
    "implementation": "runtime.Sums",
    "platform": "numpy",
    "versions": ["1"],
    "parameters": {"version": "1"},
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifact", type=Path, help="check edgeline's own server too, with this artifact")
    parser.add_argument("--environment", type=Path, help="keep MLServer's environment in this folder and reuse it")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        python = install(arguments.environment or Path(temporary, "environment"), MLSERVER)
        with mlserver(python, Path(temporary, "model")) as url:
            rows.append(check(MLSERVER, url, "sums"))
    if arguments.artifact:
        with edgeline(arguments.artifact) as url:
            name = str(reach(url).model)
            rows += [check("edgeline", url, model) for model in (name, f"{name}.pixels")]
    report("conformance", rows=rows)


def check(server: str, url: str, model: str) -> dict[str, Any]:
    """Run every check, and print what failed."""
    target = reach(url, model)
    found = describe(target, run(target))
    print(f"{server}, model {model}: {'conforms' if found['conforms'] else 'does not conform'}", flush=True)
    for group, counted in found["counts"].items():
        print(f"  {group}: " + ", ".join(f"{count} {outcome}" for outcome, count in counted.items()))
    failed = [each for each in found["checks"] if each["outcome"] == "failed"]
    for each in failed:
        print(f"  {each['group']}  {each['id']}: {each['detail'][:160]}")
    ids = [each["id"] for each in failed]
    return {"server": server, "model": model, "conforms": found["conforms"], "counts": found["counts"], "failed": ids}


@contextlib.contextmanager
def mlserver(python: Path, folder: Path) -> Iterator[str]:
    """Run MLServer with the minimal runtime, until the end of the block."""
    folder.mkdir()
    ports = dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(3), strict=True))
    settings = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False, **ports}
    (folder / "runtime.py").write_text(RUNTIME)
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(MODEL))
    command = [python.with_name("mlserver"), "start", "."]
    url = f"http://127.0.0.1:{ports['http_port']}"
    with open(folder / "log", "wb") as log, process(command, cwd=folder, stdout=log, stderr=log):
        wait(f"{url}/v2/models/sums/ready")
        yield url


@contextlib.contextmanager
def edgeline(artifact: Path) -> Iterator[str]:
    """Run edgeline's server, until the end of the block."""
    [port] = free_ports(1)
    command = [Path(sys.executable).with_name("edgeline"), "serve", artifact, "--port", str(port)]
    with process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        wait(f"http://127.0.0.1:{port}/readyz")
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def process(command: list[Any], **options: Any) -> Iterator[None]:
    """Run a process, until the end of the block."""
    child = subprocess.Popen([str(part) for part in command], **options)
    try:
        yield
    finally:
        child.terminate()
        child.wait()


def wait(url: str) -> None:
    """Return as soon as a URL returns 200."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as reply:
            if reply.status == 200:
                return
        time.sleep(0.2)
    raise SystemExit(f"{url} did not answer within {WAIT_S} s")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


if __name__ == "__main__":
    main()
