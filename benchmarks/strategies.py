"""All training strategies on the same split. One of them is also killed and resumed.

The killed training must end with the same weights as the uninterrupted one: their digests are compared.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

from common import Clock, photos, report

from edgeline.flows.steps import execute
from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.evaluation.report import read_evaluation
from edgeline.pipeline.names import StrategyName
from edgeline.pipeline.runs.atomic_files import file_digest

STRATEGIES = get_args(StrategyName)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=photos("hymenoptera"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="settings, as for edgeline run")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for strategy in STRATEGIES:
            overrides = [f"train.strategy={strategy}", *arguments.set]
            run, _ = prepare(load_config(None, overrides, data=arguments.data, seed=arguments.seed, artifacts=temporary))
            with Clock() as clock:
                execute("train", run)
            execute("evaluate", run)
            top1 = read_evaluation(run.step("evaluate")).top1
            rows.append(
                {"strategy": strategy, "accuracy": top1.value, "low": top1.low, "high": top1.high, "train_s": clock.seconds}
            )
            print(
                f"{strategy:13} test accuracy {top1.value:.4f} ({top1.low:.4f} to {top1.high:.4f})  {clock.seconds:6.1f} s",
                flush=True,
            )
            uninterrupted = file_digest(run.step("train") / "checkpoint.safetensors")
        same = kill_and_resume(arguments, uninterrupted)
    print(f"killed after its second epoch and resumed: {'the same weights bit for bit' if same else 'DIFFERENT WEIGHTS'}")
    report("strategies", data=Path(arguments.data).name, seed=arguments.seed, rows=rows, resumed_is_identical=same)


def kill_and_resume(arguments: argparse.Namespace, expected: str) -> bool:
    """Train with the last strategy in another folder, kill it with SIGKILL, resume, and compare the checkpoints."""
    with tempfile.TemporaryDirectory() as temporary:
        overrides = [f"train.strategy={STRATEGIES[-1]}", *arguments.set]
        run, _ = prepare(load_config(None, overrides, data=arguments.data, seed=arguments.seed, artifacts=temporary))
        process = subprocess.Popen([Path(sys.executable).with_name("edgeline"), "train", run.folder])
        resume, epochs, seen = run.step("train.partial") / "resume.pt", 0, 0.0
        while epochs < 2 and process.poll() is None:
            if resume.exists() and (changed := resume.stat().st_mtime) != seen:
                seen, epochs = changed, epochs + 1
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        execute("train", run)
        return file_digest(run.step("train") / "checkpoint.safetensors") == expected


if __name__ == "__main__":
    main()
