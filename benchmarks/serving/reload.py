"""Many exchanges of the served version under load, bad candidates among them: what failed, and what became of the memory.

A version is published as the line does it, at once and whole, and the server is told with SIGHUP. A good one must answer in
`/readyz`, a bad one must be named there as refused while the old one serves on. Bad ones are cut files, broken manifests,
graphs that are none and golden samples that the model does not answer. Clients ask all the time.
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
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second meanwhile; 0 for all that it answers")
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
            memory, swap_s, refused = exchange(server, model, store, arguments.reloads, bad)
            clients.send_signal(signal.SIGTERM)
            assert clients.stdout is not None
            asked = json.loads(clients.stdout.read().splitlines()[-1])
        finally:
            clients.kill()
            clients.wait()
            code = server.stop()
    half = memory[len(memory) // 2 :]
    report(
        "reload",
        reloads=arguments.reloads,
        bad=len(bad),
        refused=refused,
        exchanged=arguments.reloads - len(bad),
        requests=asked["statuses"],
        rate=arguments.rate,
        failed=asked["errors"],
        lost=asked["lost"],
        p99_ms=asked["p99_ms"],
        swap_s=statistics.median(swap_s),
        rss_first_mb=memory[0],
        rss_after_ten_mb=memory[min(9, len(memory) - 1)],
        rss_last_mb=memory[-1],
        rss_most_mb=max(memory),
        rss_slope_mb_per_100=float(np.polyfit(range(len(half)), half, 1)[0] * 100) if len(half) > 1 else None,
        exit_code=code,
    )


def exchange(
    server: Running, model: Path, store: Path, count: int, bad: set[int]
) -> tuple[list[float], list[float], dict[str, int]]:
    """Publish one after the other; memory after each, seconds of each exchange, and the refusals by code."""
    memory, seconds, refused = [], [], {}
    serving = 1
    for number in range(1, count + 1):
        version = number + 1
        publish(model, store, version, damage=list(DAMAGES)[number % len(DAMAGES)] if number in bad else None)
        begun = time.perf_counter()
        server.process.send_signal(signal.SIGHUP)
        while True:
            told = readiness(server)
            assert told["version"] in (serving, version), told
            if number in bad:
                if told["refused"] and told["refused"]["version"] == version:
                    code = told["refused"]["code"]
                    refused[code] = refused.get(code, 0) + 1
                    break
            elif told["version"] == version:
                serving = version
                seconds.append(time.perf_counter() - begun)
                break
            if time.perf_counter() - begun > EACH_S:
                raise SystemExit(f"version {version} was neither taken nor refused in {EACH_S} s: {told}")
            time.sleep(0.02)
        memory.append(memory_mb([server.process.pid])["rss"])
        if number in bad:
            shutil.rmtree(store / str(version))  # or the next look would meet it again
        elif version > 4 and (store / str(version - 3)).exists():
            shutil.rmtree(store / str(version - 3))
        if number % 10 == 0:
            print(f"  {number}: version {serving} serves, {memory[-1]:.0f} MB, refused {refused}", flush=True)
    return memory, seconds, refused


def readiness(server: Running) -> dict[str, Any]:
    """What the server says of itself."""
    url = server.url.removesuffix("/predict") + "/readyz"
    return json.loads(urllib.request.urlopen(url, timeout=30).read())


def publish(model: Path, store: Path, version: int, damage: str | None = None) -> None:
    """Put a copy of an artifact in its place as another version, at once."""
    store.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=store.parent)) / "copy"
    shutil.copytree(model, folder)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    told = json.loads((folder / "manifest.json").read_bytes())
    told |= {"name": store.name, "version": version}
    (folder / "manifest.json").write_text(json.dumps(told))
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
    told = json.loads(path.read_bytes())
    for sample in told["samples"]:
        sample["probabilities"] = sample["probabilities"][::-1]
        sample["logits"] = sample["logits"][::-1]
    path.write_text(json.dumps(told))
    seal(folder, "golden/golden.json")


DAMAGES = {"cut": _cut, "no manifest": _no_manifest, "no graph": _no_graph, "other golden": _other_golden}


def seal(folder: Path, name: str) -> None:
    """Have the manifest name a file as it is now."""
    told = json.loads((folder / "manifest.json").read_bytes())
    data = (folder / name).read_bytes()
    for entry in told["files"]:
        if entry["path"] == name:
            entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
