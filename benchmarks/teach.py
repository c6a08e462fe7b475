"""`edgeline teach`: the time until one more class is published, and the accuracy of versions that were taught a class.

    python benchmarks/teach.py --times 5
    python benchmarks/teach.py --classes all --cells cells/ --set verify.images=64

`--times`: the first run on all classes but one, then that class is taught from 20 photos, several times from the same state.
`--classes`: each class in turn is left out of the first run and taught from 20 of its photos. Its other photos are its test, in
no run's data. Old classes: the test photos of both versions, paired and pooled. New class: its photos, compared with a full run
on the same data in a folder of its own. With `--cells`, finished classes are kept and not measured again, and runs
share what is cached by content (`SHARED`), which has the same bits in every run. `verify.images`, the number of images that the
gate compares, changes the time and not the accuracies.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import Clock, photos, report

from edgeline.pipeline.evaluation.metrics import paired_drop
from edgeline.serve.classifier import Classifier

EDGELINE = str(Path(sys.executable).with_name("edgeline"))
SHOTS = 20
NAME = "taught"
SHARED = ("images.sqlite", "features.sqlite", "graphs.sqlite", "activations.sqlite")
"""Caches by content. `first_seen.sqlite` is a history, so every run has its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=photos("flowers17"), help="a folder of class folders")
    parser.add_argument("--times", type=int, default=0, help="how often one class is taught, for its time")
    parser.add_argument("--classes", nargs="*", default=[], help="classes to leave out in turn, or `all`")
    parser.add_argument("--cells", help="folder with the figures of finished classes")
    parser.add_argument("--set", action="append", default=[], help="settings of the first run, as for edgeline run")
    arguments = parser.parse_args()
    if arguments.data == "digits":
        sys.exit("needs a folder of class folders with photos: --data FOLDER")
    labels = sorted(path.name for path in Path(arguments.data).iterdir() if path.is_dir())
    chosen = labels if arguments.classes == ["all"] else arguments.classes
    figures: dict[str, Any] = {}
    if arguments.times or not chosen:
        figures["times"] = measure_times(arguments, labels[0], arguments.times or 5)
    if chosen:
        figures["accuracy"] = pool([cell(arguments, label) for label in chosen])
    report("teach", data=Path(arguments.data).name, shots=SHOTS, settings=arguments.set, **figures)


def measure_times(arguments: argparse.Namespace, label: str, times: int) -> dict[str, Any]:
    """Seconds and CPU seconds of the first run, and of each time that the class is taught."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = lay_out(Path(arguments.data), label, Path(temporary))
        first = timed("first run", run_command(folder, arguments.set))
        shutil.copytree(folder, f"{folder}.first")
        taught = []
        for number in range(times):
            shutil.rmtree(folder)
            shutil.copytree(f"{folder}.first", folder)
            taught.append(timed(f"taught {number + 1} of {times}", teach_command(folder, label)))
    seconds = [entry["seconds"] for entry in taught]
    print(f"{label}: published {min(seconds):.1f} to {max(seconds):.1f} s after the start, first run {first['seconds']:.1f} s")
    return {"label": label, "first": first, "taught": taught, "worst_s": max(seconds)}


def cell(arguments: argparse.Namespace, label: str) -> dict[str, Any]:
    """The accuracies for one class that was left out, or its stored figures."""
    stored = Path(arguments.cells, f"{label}.json") if arguments.cells else None
    if stored is not None and stored.exists():
        return dict(json.loads(stored.read_text()))
    before = children_cpu_s()
    with tempfile.TemporaryDirectory() as temporary:
        shared = Path(arguments.cells or temporary, "cache")
        folder = lay_out(Path(arguments.data), label, Path(temporary))
        copy_caches(shared, folder / "artifacts" / "cache")
        subprocess.run(run_command(folder, arguments.set), check=True, capture_output=True)
        done = subprocess.run(teach_command(folder, label), check=True, capture_output=True, text=True)
        old = json.loads(done.stdout.splitlines()[-1])["other_classes"]
        copy_caches(folder / "artifacts" / "cache", shared)
        full = Path(temporary, "full")
        shutil.copytree(folder / "photos", full / "photos")
        copy_caches(shared, full / "artifacts" / "cache")
        subprocess.run(run_command(full, arguments.set), check=True, capture_output=True)
        held_out = sorted((folder / "held-out").iterdir())
        taught, whole = (correct(each / "artifacts" / "store" / NAME, held_out, label) for each in (folder, full))
    found = {
        "label": label,
        "old": old,
        "new_images": len(held_out),
        "new_correct": int(taught.sum()),
        "full_correct": int(whole.sum()),
        "lost_to_full": int((whole & ~taught).sum()),
        "gained_to_full": int((taught & ~whole).sum()),
        "cpu_s": children_cpu_s() - before,
    }
    print(
        f"{label:20} old classes {old['after']:.4f} (before {old['before']:.4f}), new class {taught.mean():.3f} (full run "
        f"{whole.mean():.3f}), CPU {found['cpu_s']:.0f} s",
        flush=True,
    )
    if stored is not None:
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_text(json.dumps(found))
    return found


def pool(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The pooled loss of the old classes, and the mean difference of the new classes to full runs, with 95 % intervals."""
    images = sum(entry["old"]["images"] for entry in cells)
    lost, gained = (sum(entry["old"][name] for entry in cells) for name in ("lost", "gained"))
    loss, low, high = paired_drop(lost, gained, images)
    differences = np.array([(c["new_correct"] - c["full_correct"]) / c["new_images"] for c in cells])
    chance = np.random.default_rng(0)
    means = [differences[chance.integers(0, len(cells), len(cells))].mean() for _ in range(10_000)]
    pooled = {
        "classes": len(cells),
        "old_images": images,
        "old_loss_points": [100 * value for value in (loss, low, high)],
        "new_accuracy": float(np.mean([c["new_correct"] / c["new_images"] for c in cells])),
        "new_difference_points": [100 * float(v) for v in (differences.mean(), *np.percentile(means, (2.5, 97.5)))],
        "cells": cells,
    }
    print("old classes lose {:.2f} points (95 % interval {:.2f} to {:.2f})".format(*pooled["old_loss_points"]))
    print("new class against a full run: {:+.2f} points ({:+.2f} to {:+.2f})".format(*pooled["new_difference_points"]))
    return pooled


def lay_out(data: Path, label: str, temporary: Path) -> Path:
    """Write `photos/` without a class, `new/` with 20 photos of it, and `held-out/` with its others."""
    folder = temporary / "run"
    shutil.copytree(data, folder / "photos", ignore=lambda path, _: [label] if Path(path) == data else [])
    own = sorted(path for path in (data / label).iterdir() if path.is_file())
    order = np.random.default_rng(0).permutation(len(own))
    for name, chosen in (("new", order[:SHOTS]), ("held-out", order[SHOTS:])):
        (folder / name).mkdir()
        for index in chosen:
            shutil.copyfile(own[index], folder / name / own[index].name)
    return folder


def copy_caches(source: Path, target: Path) -> None:
    """Copy the caches by content from one artifacts folder to another; the runs that wrote them have ended."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.sqlite*"):
        if path.name.removesuffix("-wal").removesuffix("-shm") in SHARED:
            shutil.copyfile(path, target / path.name)


def children_cpu_s() -> float:
    """CPU seconds of the commands that have ended, with their children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_command(folder: Path, settings: list[str]) -> list[str]:
    options = [option for setting in settings for option in ("--set", setting)]
    artifacts = str(folder / "artifacts")
    return [
        EDGELINE,
        "run",
        "--data",
        str(folder / "photos"),
        "--name",
        NAME,
        "--artifacts",
        artifacts,
        "--no-prefect",
        *options,
    ]


def teach_command(folder: Path, label: str) -> list[str]:
    return [EDGELINE, "teach", NAME, f"{label}={folder / 'new'}", "--artifacts", str(folder / "artifacts"), "--json"]


def timed(title: str, command: list[str]) -> dict[str, Any]:
    """Run a command; its seconds, and CPU seconds with its children. When taught: until the version was published."""
    before, start = children_cpu_s(), time.time()
    with Clock() as clock:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    cpu_s = children_cpu_s() - before
    found: dict[str, Any] = {"seconds": clock.seconds, "cpu_s": cpu_s}
    if command[1] == "teach":
        printed = json.loads(done.stdout.splitlines()[-1])
        # The version's folder appears by a rename, which changes the folder that it is in.
        found |= {"whole_s": clock.seconds, "seconds": Path(printed["artifact"]).parent.stat().st_mtime - start}
        found["steps"] = {step["name"]: round(step["seconds"], 1) for step in printed["steps"]}
        manifest = json.loads((Path(printed["artifact"]) / "manifest.json").read_text())
        found["variants"] = [variant["name"] for variant in manifest["variants"]]
    more = f"{found.get('steps', '')} {found.get('variants', '')}"
    print(f"{title:16} {found['seconds']:6.1f} s, CPU {cpu_s:6.1f} s  {more}", flush=True)
    return found


def correct(artifact: Path, images: list[Path], label: str) -> np.ndarray:
    """Whether a published version gives each image this label."""
    classifier = Classifier.open(artifact)
    return np.array([classifier.predict([path.read_bytes()], top_k=1)[0][0].label == label for path in images])


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
