"""Many hot reloads under load, some of them to bad versions: failed requests, and memory.

A version is published atomically, as the pipeline does, and the server is notified with SIGHUP. `/readyz` must show a good
version as served, and a bad one as rejected while the old one stays in service. Bad versions have truncated files, broken
manifests, invalid graphs or golden samples that do not match the model. Clients send requests all the time.
"""

import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from harness import HERE, Running, arguments_of, artifact, memory_mb, photo, report, setting, start, workspace

EACH_S = 120


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--bad", type=int, default=30)
    parser.add_argument("--rate", type=float, default=20.0, help="requests per second; 0 for as many as possible")
    arguments = parser.parse_args()
    bad = {round(at) for at in np.linspace(2, arguments.reloads - 1, arguments.bad)}
    with workspace(arguments.environment) as folder, tempfile.TemporaryDirectory() as temporary:
        model, image = artifact(arguments.artifact), photo(arguments.photo, folder)
        store = Path(temporary, "store", "reloaded")
        publish(model, store, 1)
        server = start(setting("edgeline", store, folder))
        clients = subprocess.Popen(
            [sys.executable, str(HERE / "load.py"), server.url, str(image), "--connections", "8", "--rate", str(arguments.rate)]
            + ["--seconds", "1000000"],
            stdout=subprocess.PIPE,
        )
        try:
            memory, reload_s, rejected = reload_often(server, model, store, arguments.reloads, bad)
            clients.send_signal(signal.SIGTERM)
            assert clients.stdout is not None
            load = json.loads(clients.stdout.read().splitlines()[-1])
        finally:
            clients.kill()
            clients.wait()
            code = server.stop()
    half = memory[len(memory) // 2 :]
    report(
        "reload",
        reloads=arguments.reloads,
        bad=len(bad),
        rejected=rejected,
        accepted=arguments.reloads - len(bad),
        requests=load["statuses"],
        rate=arguments.rate,
        failed=load["errors"],
        lost=load["lost"],
        p99_ms=load["p99_ms"],
        reload_s=statistics.median(reload_s),
        rss_first_mb=memory[0],
        rss_after_ten_mb=memory[min(9, len(memory) - 1)],
        rss_last_mb=memory[-1],
        rss_max_mb=max(memory),
        rss_slope_mb_per_100=float(np.polyfit(range(len(half)), half, 1)[0] * 100) if len(half) > 1 else None,
        exit_code=code,
    )


def reload_often(
    server: Running, model: Path, store: Path, count: int, bad: set[int]
) -> tuple[list[float], list[float], dict[str, int]]:
    """Publish versions; return memory after each, seconds until each good one was served, and rejections by code."""
    memory, seconds, rejected = [], [], {}
    serving = 1
    for number in range(1, count + 1):
        version = number + 1
        publish(model, store, version, damage=list(DAMAGES)[number % len(DAMAGES)] if number in bad else None)
        begun = time.perf_counter()
        server.process.send_signal(signal.SIGHUP)
        while True:
            status = readiness(server)
            assert status["version"] in (serving, version), status
            if number in bad:
                if status["rejected"] and status["rejected"]["version"] == version:
                    code = status["rejected"]["code"]
                    rejected[code] = rejected.get(code, 0) + 1
                    break
            elif status["version"] == version:
                serving = version
                seconds.append(time.perf_counter() - begun)
                break
            if time.perf_counter() - begun > EACH_S:
                raise SystemExit(f"version {version} was neither accepted nor rejected within {EACH_S} s: {status}")
            time.sleep(0.02)
        memory.append(memory_mb([server.process.pid])["rss"])
        if number in bad:
            shutil.rmtree(store / str(version))  # so that it is not found again
        elif version > 4 and (store / str(version - 3)).exists():
            shutil.rmtree(store / str(version - 3))
        if number % 10 == 0:
            print(f"  {number}: version {serving} is served, {memory[-1]:.0f} MB, rejected {rejected}", flush=True)
    return memory, seconds, rejected


def readiness(server: Running) -> dict[str, Any]:
    """Return the content of `/readyz`."""
    url = server.url.removesuffix("/predict") + "/readyz"
    return json.loads(urllib.request.urlopen(url, timeout=30).read())


def publish(model: Path, store: Path, version: int, damage: str | None = None) -> None:
    """Publish a copy of an artifact atomically as another version."""
    store.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=store.parent)) / "copy"
    shutil.copytree(model, folder)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest |= {"name": store.name, "version": version}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if damage is not None:
        DAMAGES[damage](folder)
    os.replace(folder, store / str(version))
    folder.parent.rmdir()


def _cut(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def _no_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"schema":')


def _no_graph(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"\x08\x09" + bytes(1000))
    seal(folder, "model.onnx")


def _other_golden(folder: Path) -> None:
    path = folder / "golden" / "golden.json"
    golden = json.loads(path.read_bytes())
    for sample in golden["samples"]:
        sample["probabilities"] = sample["probabilities"][::-1]
        sample["logits"] = sample["logits"][::-1]
    path.write_text(json.dumps(golden))
    seal(folder, "golden/golden.json")


DAMAGES = {"cut": _cut, "no manifest": _no_manifest, "no graph": _no_graph, "other golden": _other_golden}


def seal(folder: Path, name: str) -> None:
    """Update a file's entry in the manifest."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    data = (folder / name).read_bytes()
    for entry in manifest["files"]:
        if entry["path"] == name:
            entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


if __name__ == "__main__":
    main()
