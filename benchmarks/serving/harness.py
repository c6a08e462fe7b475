"""Shared by the server benchmarks: run servers in turn, load them from another process, measure trees of processes.

Every server classifies the same JPEG with the same `model.onnx` and the same `serve.preprocess`; see `peers/`. All servers are
started once, and paused with SIGSTOP outside their turn, so that the idle work of one does not slow another. Rounds are
interleaved, and the result is the median of the ratios within a round.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(ROOT)]

import numpy as np  # noqa: E402
from common import SHARED, install  # noqa: E402
from PIL import Image  # noqa: E402

from edgeline.flows.steps import run_pipeline  # noqa: E402
from edgeline.pipeline.config import load_config  # noqa: E402
from edgeline.serve.runtime.provenance import provenance, runtime_options  # noqa: E402

PEERS = HERE / "peers"
PACKAGES = {
    "fastapi": ("fastapi", "uvicorn[standard]"),
    "litserve": ("litserve",),
    "bentoml": ("bentoml",),
    "mlserver": ("mlserver",),
}
SAME = ("onnxruntime", "numpy", "pillow")
"""Installed with every peer, in the version of this environment."""
READY_S = 90
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Running:
    """A running server and its processes."""

    name: str
    process: subprocess.Popen[bytes]
    url: str
    ready_s: float
    """Seconds from starting the process to the first ready response."""
    log: Path
    paused: bool = False

    def tree(self) -> list[int]:
        """The server's process and all its descendants."""
        return descendants(self.process.pid)

    def pause(self) -> None:
        """Pause all processes of the server."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume all processes of the server."""
        self._signal(signal.SIGCONT)

    def stop(self) -> int:
        """End the server with SIGTERM, then SIGKILL; return its exit code."""
        self.resume()
        tree = self.tree()
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        for pid in tree:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.tree():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@dataclass
class Setting:
    """How one server is started; `{port}` in the command stands for its port."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    ready: str = "/ready"
    path: str = "/predict"
    cwd: Path = ROOT


def arguments_of(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser with the options of all server benchmarks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="an artifact's folder; by default the pipeline makes one")
    parser.add_argument("--photo", type=Path, help="a JPEG; by default a real one of about 35 kB if available")
    parser.add_argument("--environment", type=Path, help="keep the peers' environments in this folder and reuse them")
    parser.add_argument("--rounds", type=int, default=defaults.get("rounds", 5))
    parser.add_argument("--seconds", type=float, default=defaults.get("seconds", 4.0))
    servers = ["edgeline", "edgeline-calibrated", "fastapi", "litserve", "bentoml", "mlserver"]
    parser.add_argument(
        "--servers",
        nargs="*",
        default=defaults.get("servers", servers),
        help="such as litserve:RUNNERS=1",
    )
    return parser


def artifact(given: Path | None, model: str = "efficientnet_lite0", weights: str = "imagenet") -> Path:
    """Return the artifact to serve: the given folder, or one that the pipeline makes from real photos or the digits."""
    if given is not None:
        folder = given.resolve()
        numbers = [path for path in folder.iterdir() if path.name.isdigit()]
        return folder if not numbers else max(numbers, key=lambda path: int(path.name))
    data = SHARED / "hymenoptera"
    name = f"benchmark-serve-{model.replace('_', '-')}"
    store = os.environ.get("EDGELINE_BENCH_ARTIFACTS", str(ROOT / "artifacts"))
    config = load_config(
        None,
        [f"weights={json.dumps(weights)}"],
        data=str(data) if data.is_dir() else "digits",
        model=model,
        name=name,
        artifacts=store,
    )
    return run_pipeline(config)[1][-1].folder.resolve()


def photo(given: Path | None, folder: Path) -> Path:
    """Return the JPEG to send: the given one, a real one of about 35 kB, or a generated one."""
    if given is not None:
        return given.resolve()
    real = [p for p in sorted((SHARED / "hymenoptera").rglob("*.jpg")) if 34_000 <= p.stat().st_size <= 36_000]
    if real:
        return real[0]
    noise = np.random.default_rng(0).normal(0, 14, (375, 500, 3))
    ramp = np.linspace(40, 200, 500)[None, :, None]
    buffer = io.BytesIO()
    Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=70)
    generated = folder / "photo.jpg"
    generated.write_bytes(buffer.getvalue())
    return generated


def python_of(name: str, folder: Path) -> Path:
    """Return the Python of a peer's environment, which is created if necessary."""
    from importlib.metadata import version

    return install(folder / name, *PACKAGES[name], *(f"{package}=={version(package)}" for package in SAME))


def setting(name: str, model: Path, folder: Path, *, variant: str | None = None, more: tuple[str, ...] = ()) -> Setting:
    """Return how a server is started.

    Args:
        name: `edgeline`, `edgeline-calibrated` or a peer, with `:KEY=VALUE` for each of its settings.
        model: the artifact.
        folder: the peers' environments.
        variant: edgeline's variant.
        more: further options of `edgeline serve`.
    """
    kind, *options = name.split(":")
    extra = dict(option.split("=", 1) for option in options)
    if kind.startswith("edgeline"):
        command = [str(Path(sys.executable).with_name("edgeline")), "serve", str(model), "--port", "{port}"]
        command += ["--variant", variant] if variant else []
        command += [] if kind.endswith("calibrated") else ["--runners", extra.get("RUNNERS", "2"), "--threads", "1"]
        command += ["--cache", str(folder / "cache"), *more]
        return Setting(name, command, {"PYTHONPATH": str(ROOT)}, ready="/readyz")
    python = str(python_of(kind, folder))
    shared = {"ARTIFACT": str(model), "RUNNERS": "2", "THREADS": "1", **extra, "PYTHONPATH": f"{PEERS}:{ROOT}"}
    if kind == "fastapi":
        command = [python, "-m", "uvicorn", "fastapi_app:app", "--port", "{port}", "--no-access-log", "--log-level", "warning"]
        return Setting(name, command, shared)
    if kind == "litserve":
        return Setting(name, [python, str(PEERS / "litserve_app.py"), "{port}"], shared, ready="/health")
    if kind == "bentoml":
        quiet = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "bentoml-home")}
        command = [python, "-m", "bentoml", "serve", "bentoml_app:Photos", "--port", "{port}", "--host", "127.0.0.1", "-q"]
        return Setting(name, command, shared | quiet, ready="/readyz", cwd=PEERS)
    assert kind == "mlserver", name
    home = Path(tempfile.mkdtemp(prefix="mlserver-", dir=folder))
    ports = {"http_port": "{port}", "grpc_port": free_port(), "metrics_port": free_port()}
    server_settings = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False, **ports}
    (home / "settings.json").write_text(json.dumps(server_settings))
    (home / "model-settings.json").write_text(json.dumps({"name": "photos", "implementation": "mlserver_app.Photos"}))
    return Setting(name, [python, "-m", "mlserver.cli.main", "start", str(home)], shared, ready="/v2/models/photos/ready")


def start(server: Setting, prefix: tuple[str, ...] = ()) -> Running:
    """Start a server and wait until it is ready; `prefix` precedes the command, such as `taskset -c 0`."""
    port = free_port()
    command = [*prefix, *(part.replace("{port}", str(port)) for part in server.command)]
    if server.command[-2:-1] == ["start"]:  # MLServer reads its ports from a file
        settings = Path(server.command[-1], "settings.json")
        content = json.loads(settings.read_text())
        settings.write_text(json.dumps(content | {"http_port": port}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **server.environment}
    log = Path(tempfile.mkstemp(prefix=f"{server.name.split(':')[0]}-", suffix=".log")[1])
    begun = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=server.cwd, stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
    url = f"http://127.0.0.1:{port}"
    while time.perf_counter() - begun < READY_S:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError, ValueError):
            if urllib.request.urlopen(url + server.ready, timeout=5).status == 200:
                return Running(server.name, process, url + server.path, time.perf_counter() - begun, log)
        time.sleep(0.005)
    raise SystemExit(f"{server.name} was not ready after {READY_S} s; its log:\n{log.read_text()[-3000:]}")


@contextlib.contextmanager
def all_started(settings: list[Setting], image: Path) -> Iterator[dict[str, Running]]:
    """Start servers, print each one's prediction, warm them up, and pause them."""
    running: dict[str, Running] = {}
    try:
        for each in settings:
            server = start(each)
            running[each.name] = server
            best = ask(server.url, image.read_bytes())["predictions"][0]
            print(
                f"  {each.name}: ready after {server.ready_s:.2f} s, {best['label']} {best['probability']:.4f}",
                flush=True,
            )
            load(server.url, image, connections=4, seconds=1.0)
            server.pause()
        yield running
    finally:
        for server in running.values():
            server.stop()


@contextlib.contextmanager
def turn(server: Running) -> Iterator[None]:
    """Resume one server for the duration of the block."""
    server.resume()
    time.sleep(0.2)
    try:
        yield
    finally:
        time.sleep(0.3)  # let requests in progress finish
        server.pause()


def ask(url: str, body: bytes) -> dict[str, Any]:
    """Return the response to one request."""
    request = urllib.request.Request(url, body, {"Content-Type": "image/jpeg"})
    return json.loads(urllib.request.urlopen(request, timeout=60).read())


def load(url: str, image: Path, *, connections: int, seconds: float) -> dict[str, Any]:
    """Closed-loop load from another process: `wrk` if installed, which needs the least CPU, else `load.py`."""
    if shutil.which("wrk") is None:
        return generate(url, image, connections=connections, seconds=seconds)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "60s"]
    command += ["-s", str(HERE / "wrk.lua"), url]
    done = subprocess.run(command, env={**os.environ, "PHOTO": str(image)}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def generate(url: str, image: Path, **options: Any) -> dict[str, Any]:
    """Load from `load.py`, which can keep a constant rate; its docstring has the options."""
    command = [sys.executable, str(HERE / "load.py"), url, str(image)]
    for key, value in options.items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def bare(model: Path, image: Path, *, seconds: float, threads: int = 2, prefix: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the loop without a server; see `peers/bare.py`."""
    environment = {**os.environ, "ARTIFACT": str(model), "PYTHONPATH": f"{PEERS}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [*prefix, sys.executable, str(PEERS / "bare.py"), str(image), str(seconds), str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


# --- resources of processes, from /proc -----------------------------------------------------------------------------------


def descendants(root: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, pending = [], [root]
    while pending:
        pid = pending.pop()
        found.append(pid)
        pending += children.get(pid, [])
    return found


def cpu_s(pids: list[int]) -> float:
    """Return CPU seconds of processes, user and system, including children that they have waited for."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(value) for value in fields[11:15])
    return total / TICK


def memory_mb(pids: list[int]) -> dict[str, float]:
    """Return the resident memory of processes; `rss` counts shared pages once per process, `pss` once in total."""
    totals = {"rss": 0, "pss": 0}
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                key, _, value = line.partition(":")
                if key.lower() in totals:
                    totals[key.lower()] += int(value.split()[0])
    return {key: value / 1024 for key, value in totals.items()}


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median of the ratios of figures of the same round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def report(benchmark: str, **figures: Any) -> None:
    """Print the final JSON line."""
    load_1, load_5, _ = os.getloadavg()
    figures |= {"loadavg_at_the_end": [load_1, load_5], "generator": "wrk" if shutil.which("wrk") else "load.py"}
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]  # the report contains no path of this machine
    how = provenance(f"python benchmarks/serving/{Path(sys.argv[0]).name} {' '.join(words)}".strip(), runtime_options())
    print(json.dumps({"benchmark": f"serve/{benchmark}", **figures, **how}), flush=True)


def versions(names: list[str], folder: Path) -> dict[str, str]:
    """Return the installed versions of the peers' packages."""
    found = {}
    for name in {name.split(":")[0] for name in names} & PACKAGES.keys():
        code = "import importlib.metadata as m, sys; print({n: m.version(n) for n in sys.argv[1:]})"
        packages = sorted({name, "uvicorn"})
        done = subprocess.run([python_of(name, folder), "-c", code, *packages], capture_output=True, text=True, check=True)
        found[name] = done.stdout.strip()
    return found


@contextlib.contextmanager
def workspace(given: Path | None) -> Iterator[Path]:
    """Yield the folder of the peers' environments: the given one, or a temporary one."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)
