"""The device's install: the built wheel and its pinned requirements in a fresh environment, no extras.

Measures the size on disk, the time to import the classifier, and the time of a cold start to the first prediction, in separate
processes; and checks that `edgeline check` and `edgeline predict` work there without torch.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Clock, report

from edgeline.flows.steps import run_pipeline
from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.samples import read_prepared

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifacts", default="artifacts", help="where the artifact of the digits is, or will be made")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    run, steps = run_pipeline(load_config(data="digits", artifacts=arguments.artifacts))
    artifact, image = steps[-1].folder.resolve(), read_prepared(run.step("prepare")).of("test")[0].path
    with tempfile.TemporaryDirectory() as temporary:
        python = install(Path(temporary))
        edgeline = str(python.with_name("edgeline"))
        packages = next(Path(temporary, "venv", "lib").glob("python*/site-packages"))
        megabytes = sum(p.stat().st_size for p in packages.rglob("*") if p.is_file() and "__pycache__" not in p.parts) / 1e6
        elsewhere = {"cwd": temporary, "env": {**os.environ, "PYTHONPATH": ""}}
        subprocess.run([edgeline, "check", str(artifact)], check=True, **elsewhere)
        subprocess.run([edgeline, "predict", str(artifact), image], check=True, **elsewhere)
        assert subprocess.run([python, "-c", "import torch"], capture_output=True, **elsewhere).returncode != 0
        figures = {
            "python_s": timed([python, "-c", "pass"], arguments.rounds, elsewhere),
            "import_s": timed([python, "-c", "import edgeline.serve.classifier"], arguments.rounds, elsewhere),
            "import_with_runtime_s": timed(
                [
                    python,
                    "-c",
                    "import edgeline.serve.classifier, edgeline.serve.runtime.session as session; session.load_onnxruntime()",
                ],
                arguments.rounds,
                elsewhere,
            ),
            "first_answer_s": timed([edgeline, "predict", str(artifact), image], arguments.rounds, elsewhere),
        }
    print(f"base install: {megabytes:.0f} MB")
    for name, seconds in figures.items():
        print(f"{name:22} {seconds:.2f}")
    report("base_install", megabytes=megabytes, rounds=arguments.rounds, **figures)


def install(folder: Path) -> Path:
    """Build the wheel and install it with the pinned requirements; returns the new environment's Python."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT], check=True, capture_output=True
    )
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    wheel = next(folder.glob("*.whl"))
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--require-hashes", "-r", ROOT / "requirements" / "device.txt"], check=True)
    subprocess.run([*pip, "--no-deps", wheel], check=True)
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "pip", "setuptools"], check=True)
    return python


def timed(command: list[object], rounds: int, options: dict[str, object]) -> float:
    """Median seconds of a command as a whole process, after one round to warm up."""
    seconds = []
    for number in range(rounds + 1):
        with Clock() as clock:
            subprocess.run(command, check=True, capture_output=True, **options)
        seconds += [clock.seconds] * (number > 0)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
