"""`make bench` runs every benchmark, and the overview lists it."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

NOT_A_BENCHMARK = {
    "common": "shared by the benchmarks",
    "subsets": "shared by the benchmarks",
    "fine_tune_fastai": "the part of fine_tune that runs in the environment of fastai",
    "exports_ultralytics": "the part of exports that runs in the environment of ultralytics",
    "int8_rivals_nncf": "the part of int8_rivals that runs in the environment of NNCF",
    "serving/harness": "shared by the benchmarks of the server",
    "serving/load": "a process that harness starts, to send requests",
    "serving/stall": "a process that overload starts, to hold connections",
    "serving/peers/bare": "the loop without a server that harness starts",
    "serving/peers/bentoml_app": "a server that harness starts",
    "serving/peers/fastapi_app": "a server that harness starts",
    "serving/peers/litserve_app": "a server that harness starts",
    "serving/peers/mlserver_app": "a server that harness starts",
    "serving/peers/model": "shared by the peers",
}
"""Scripts that are not run by themselves, and why."""


def scripts() -> set[str]:
    folder = ROOT / "benchmarks"
    return {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.py")}


def test_make_bench_runs_every_script_that_is_a_benchmark() -> None:
    planned = subprocess.run(["make", "--dry-run", "bench"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line for line in planned.splitlines() if "benchmarks/" in line]
    words = {word.removeprefix("benchmarks/") for line in lines for word in re.findall(r"[\w/]+", line)}
    assert scripts() - words == NOT_A_BENCHMARK.keys()


def test_the_overview_lists_every_benchmark() -> None:
    overview = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`python benchmarks/([\w/]+)\.py", overview))
    assert listed == scripts() - NOT_A_BENCHMARK.keys()
