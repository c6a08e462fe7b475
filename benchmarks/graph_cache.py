"""How much faster a start is with a cached optimized graph.

For float32 and int8 of one artifact, each in a separate process, in turn, median of `--rounds`: the model optimized at the
start, the same and the graph written, and the cached graph, read as ONNX (which ships) and as ORT format, with and without
optimizing it again. Then a whole `Classifier.open` without and with a cache. Equal digests mean that logits and probabilities
of the golden pixels are equal to the last bit. Last, `edgeline serve` from its start to its `ready` line, without and with a
cache, in pairs: `--starts` of them, because the difference is smaller than the noise of a single one.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from edgeline.serve.artifact.reader import open_artifact  # noqa: E402
from edgeline.serve.classifier import Classifier  # noqa: E402
from edgeline.serve.runtime.provenance import provenance  # noqa: E402
from edgeline.serve.runtime.session import load_onnxruntime, session_options  # noqa: E402

WAYS = {
    "fresh": (None, "all"),
    "fresh, written": ("ONNX", "all"),
    "fresh, written as ORT": ("ORT", "all"),
    "cached": ("ONNX", "disable_all"),
    "cached, optimized again": ("ONNX", "all"),
    "cached as ORT": ("ORT", "disable_all"),
}
OPENED = {"opened": False, "opened, cached": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--starts", type=int, default=31)
    parser.add_argument("--one", nargs=3, metavar=("WAY", "VARIANT", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.artifact, *arguments.one)))
        return
    manifest = open_artifact(arguments.artifact).manifest
    rows = {}
    for variant in [each.name for each in manifest.variants if each.format == "onnx" and each.precision in ("float32", "int8")]:
        found: dict[str, list[dict]] = {way: [] for way in (*WAYS, *OPENED)}
        with tempfile.TemporaryDirectory() as folder:
            for number in range(-1, arguments.rounds):
                for way in found:
                    command = [sys.executable, __file__, str(arguments.artifact), "--one", way, variant, folder]
                    measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                    found[way] += [measured] if number >= 0 else []
        for way, measured in found.items():
            row = {key: round(statistics.median(each[key] for each in measured), 1) for key in ("ms", "rss_mb")}
            rows[f"{variant} {way}"] = row | {"digests": sorted({each["digest"] for each in measured})}
            print(f"  {variant} {way}: {rows[f'{variant} {way}']}", flush=True)
        rows[f"{variant} served"] = starts(arguments.artifact, variant, arguments.starts)
        print(f"  {variant} served: {rows[f'{variant} served']}", flush=True)
    command = f"python benchmarks/graph_cache.py {arguments.artifact} --rounds {arguments.rounds} --starts {arguments.starts}"
    print(json.dumps({**provenance(command, {"rounds": arguments.rounds, "starts": arguments.starts}), "rows": rows}))


def starts(artifact: Path, variant: str, pairs: int) -> dict:
    """Start the server in pairs, without and with a filled cache; return milliseconds, and the difference within pairs."""
    with tempfile.TemporaryDirectory() as folder:
        start(artifact, variant, folder)
        found = [(start(artifact, variant, os.devnull), start(artifact, variant, folder)) for _ in range(pairs)]
    fresh, cached = (round(statistics.median(each), 1) for each in zip(*found, strict=True))
    gains = [without - with_it for without, with_it in found]
    gain_ms, won = round(statistics.median(gains), 1), sum(gain > 0 for gain in gains)
    return {"fresh_ms": fresh, "cached_ms": cached, "gain_ms": gain_ms, "won": won}


def start(artifact: Path, variant: str, cache: str) -> float:
    """Start the server and stop it when it reports that it is ready; return milliseconds until then."""
    command = [str(Path(sys.executable).with_name("edgeline")), "serve", str(artifact), "--variant", variant, "--port", "0"]
    command += ["--runners", "2", "--threads", "1", "--cache", cache]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    begun = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        assert any("ready:" in line for line in server.stderr)
        ms = (time.perf_counter() - begun) * 1e3
        server.kill()
    return ms


def measure(path: Path, way: str, name: str, folder: str) -> dict:
    """Load one variant in one way; return milliseconds, resident MB afterwards, and a digest of its outputs."""
    ort = load_onnxruntime()
    artifact = open_artifact(path)
    variant = artifact.manifest.variant(name)
    if way in OPENED:
        begun = time.perf_counter()
        classifier = Classifier.open(path, variant=name, threads=1, cache=Path(folder, "cache") if OPENED[way] else None)
        ms, session = (time.perf_counter() - begun) * 1e3, classifier._session
    else:
        format, level = WAYS[way]
        cached = Path(folder, f"{name}.{format}")
        options = session_options(threads=1, level=level, saturates=variant.saturates)
        if way.startswith("fresh") and format is not None:
            options.optimized_model_filepath = str(cached)
            options.add_session_config_entry("session.save_model_format", format)
        data = cached.read_bytes() if way.startswith("cached") else artifact.read(variant.file)
        begun = time.perf_counter()
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        ms = (time.perf_counter() - begun) * 1e3
        session._model_bytes = None
    status = Path("/proc/self/status").read_text()
    digest = hashlib.sha256()
    for sample in json.loads(artifact.read("golden/golden.json"))["samples"]:
        pixels_HW3 = np.asarray(Image.open(artifact.folder / sample["pixels"]))
        for array in session.run(["probabilities", "logits"], {"image": pixels_HW3[None]}):
            digest.update(array.tobytes())
    rss_mb = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    return {"ms": ms, "rss_mb": rss_mb, "digest": digest.hexdigest()[:12]}


if __name__ == "__main__":
    main()
