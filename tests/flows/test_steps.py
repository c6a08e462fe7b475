"""Which steps are executed and which are reused. What the steps do is tested elsewhere."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeline.flows.steps import is_up_to_date, run_pipeline
from edgeline.flows.summary import next_commands, summarize, summary_rows
from edgeline.pipeline.config import PipelineConfig, load_config
from edgeline.pipeline.runs.run import Run, StepResult
from tests.support.shared_results import shared_result

pytestmark = pytest.mark.slow


def make_photos(folder: Path) -> Path:
    """Two classes of small noisy pictures, red ones and blue ones."""
    draw = np.random.default_rng(0)
    for label, channel in (("red", 0), ("blue", 2)):
        (folder / label).mkdir(parents=True)
        for index in range(12):
            pixels = draw.integers(0, 90, (40, 48, 3), dtype=np.uint8)
            pixels[:, :, channel] += 120
            Image.fromarray(pixels).save(folder / label / f"{index}.png")
    return folder


TINY = ["model=timm:test_efficientnet", "weights=none", "preprocess.size=32"]
SETTINGS = ["verify.images=20", "export.variants=[]", *TINY]


@pytest.fixture(name="completed", scope="module")
def _completed(request: pytest.FixtureRequest) -> tuple[PipelineConfig, Run, list[StepResult]]:
    """A configuration with its finished run, and what each step returned when it was built."""

    def configure(folder: Path) -> PipelineConfig:
        return load_config(None, SETTINGS, data=str(folder / "photos"), artifacts=str(folder / "artifacts"))

    def build(folder: Path) -> None:
        make_photos(folder / "photos")
        run, steps = run_pipeline(configure(folder))
        results = [{**asdict(step), "folder": str(step.folder)} for step in steps]
        (folder / "results.json").write_text(json.dumps({"run": str(run.folder), "steps": results}))

    inputs = {"file": __file__, "config": load_config(None, SETTINGS).model_dump(mode="json")}
    folder = shared_result(request.config, "steps-run", build, code=("edgeline.flows.steps",), inputs=inputs)
    results = json.loads((folder / "results.json").read_text())
    steps = [StepResult(**{**step, "folder": Path(step["folder"])}) for step in results["steps"]]
    return configure(folder), Run(Path(results["run"]), configure(folder)), steps


@pytest.fixture(name="copied")
def _copied(completed: tuple[PipelineConfig, Run, list[StepResult]], tmp_path: Path) -> PipelineConfig:
    """The finished run's configuration on a copy of its artifacts, which tests may damage."""
    config = completed[0]
    shutil.copytree(config.artifacts, tmp_path / "artifacts")
    return config.model_copy(update={"artifacts": str(tmp_path / "artifacts")})


def reused(config: PipelineConfig) -> dict[str, bool]:
    return {step.name: step.reused for step in run_pipeline(config)[1]}


def test_the_pipeline_ends_with_a_published_artifact(completed: tuple[PipelineConfig, Run, list[StepResult]]) -> None:
    config, _, steps = completed
    assert [step.name for step in steps] == ["prepare", "train", "evaluate", "export", "variants", "verify", "publish"]
    assert steps[-1].folder == config.store / "photos" / "1"
    assert not any(step.reused for step in steps)


def test_every_step_is_reused_if_nothing_has_changed(completed: tuple[PipelineConfig, Run, list[StepResult]]) -> None:
    config = completed[0]
    assert is_up_to_date(config)
    assert all(reused(config).values())


def test_a_run_that_reuses_every_step_does_not_import_torch(completed: tuple[PipelineConfig, Run, list[StepResult]]) -> None:
    config = completed[0]
    program = (
        "import sys; from edgeline.flows.steps import run_pipeline; from edgeline.pipeline.config import load_config\n"
        f"run_pipeline(load_config(None, {SETTINGS!r}, data={config.data!r}, artifacts={config.artifacts!r}))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


DAMAGED = {
    "a deleted checkpoint": ("train/checkpoint.safetensors", None, "train"),
    "a changed evaluation": ("evaluate/evaluation.json", b"{}", "evaluate"),
    "a deleted ONNX file": ("export/model.onnx", None, "export"),
    "an empty receipt": ("verify/receipt.json", b"", "verify"),
}


@pytest.mark.parametrize(("path", "content", "redone"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_result_is_detected_and_rebuilt(
    copied: PipelineConfig, path: str, content: bytes | None, redone: str
) -> None:
    [run] = copied.runs.glob("photos-*")
    if content is None:
        (run / path).unlink()
    else:
        (run / path).write_bytes(content)
    assert not is_up_to_date(copied)
    done = reused(copied)
    assert not done[redone]
    assert done["prepare"]
    # The rebuilt result is identical, so there is nothing new to publish.
    assert done["publish"] or redone in ("verify", "evaluate")


def test_a_changed_setting_makes_a_run_out_of_date(copied: PipelineConfig) -> None:
    stricter = copied.model_copy(update={"verify": copied.verify.model_copy(update={"odd_batch": 3})})
    assert not is_up_to_date(stricter)


def test_an_added_photo_makes_a_run_out_of_date(copied: PipelineConfig, tmp_path: Path) -> None:
    shutil.copytree(copied.data, tmp_path / "photos")
    moved = copied.model_copy(update={"data": str(tmp_path / "photos")})
    Image.new("RGB", (40, 48), (250, 10, 10)).save(tmp_path / "photos" / "red" / "new.png")
    assert not is_up_to_date(moved)


def test_the_summary_has_every_figure_and_the_next_commands(completed: tuple[PipelineConfig, Run, list[StepResult]]) -> None:
    _, run, steps = completed
    summary = summarize(run, steps)
    rows = dict(summary_rows(summary))
    assert rows["artifact"] == "photos version 1"
    assert "95 % interval" in rows["accuracy (test)"]
    assert summary.max_difference <= 1e-4
    assert [figures["name"] for figures in summary.variants] == ["onnx-fp32"]
    assert summary.variants[0]["latency"]["threads_1"]["p95_ms"] > 0
    assert next_commands(summary, None)[0][0].endswith(f"edgeline serve {steps[-1].folder.parent}")


def test_a_second_process_on_the_same_step_fails_and_names_the_first(copied: PipelineConfig) -> None:
    [run] = copied.runs.glob("photos-*")
    program = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX)\n"
        "f.truncate(0); f.write('process 1 on elsewhere'); f.flush(); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(run / ".train.lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        (run / "train" / "checkpoint.safetensors").unlink()
        start = time.monotonic()
        with pytest.raises(Exception, match="process 1 on elsewhere"):
            run_pipeline(copied)
        assert time.monotonic() - start < 30
    finally:
        holder.kill()
        holder.communicate()
