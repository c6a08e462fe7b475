"""Which steps are executed and which are reused. What the steps do is tested elsewhere."""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from edgeline.flows.steps import execute, is_up_to_date, run_pipeline
from edgeline.flows.summary import next_commands, summarize, summary_rows
from edgeline.pipeline.config import PipelineConfig
from edgeline.pipeline.runs.run import Run, StepResult
from tests.support.cases import cases

pytestmark = pytest.mark.slow


Completed = tuple[PipelineConfig, Run, list[StepResult]]


@pytest.fixture(name="completed")
def _completed(finished: PipelineConfig, finished_folder: Path) -> Completed:
    """A configuration with its finished run, and what each step returned when it was built."""
    returned = json.loads((finished_folder / "steps.json").read_text())
    steps = [StepResult(**{**step, "folder": Path(step["folder"])}) for step in returned]
    [run] = finished.runs.iterdir()
    return finished, Run(run, finished), steps


@pytest.fixture(name="copied")
def _copied(completed: Completed, tmp_path: Path) -> PipelineConfig:
    """The finished run's configuration on a copy of its artifacts, which tests may damage."""
    config = completed[0]
    shutil.copytree(config.artifacts, tmp_path / "artifacts")
    return config.model_copy(update={"artifacts": str(tmp_path / "artifacts")})


def reused(config: PipelineConfig) -> dict[str, bool]:
    return {step.name: step.reused for step in run_pipeline(config)[1]}


def test_the_pipeline_ends_with_a_published_artifact(completed: Completed) -> None:
    config, _, steps = completed
    assert [step.name for step in steps] == ["prepare", "train", "evaluate", "export", "variants", "verify", "publish"]
    assert steps[-1].folder == config.store / "tints" / "1"
    assert not any(step.reused for step in steps)


def test_every_step_is_reused_if_nothing_has_changed(completed: Completed) -> None:
    config = completed[0]
    assert is_up_to_date(config)
    assert all(reused(config).values())


def test_a_run_that_reuses_every_step_does_not_import_torch(completed: Completed) -> None:
    config = completed[0]
    program = (
        "import sys; from edgeline.flows.steps import run_pipeline; from edgeline.pipeline.config import PipelineConfig\n"
        "run_pipeline(PipelineConfig.model_validate_json(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, config.model_dump_json()], check=True)


DAMAGED = {
    "a deleted checkpoint": ("train/checkpoint.safetensors", None, "train"),
    "a changed evaluation": ("evaluate/evaluation.json", b"{}", "evaluate"),
    "a deleted ONNX file": ("export/model.onnx", None, "export"),
    "an empty receipt": ("verify/receipt.json", b"", "verify"),
}


@pytest.mark.parametrize(("path", "content", "redone"), cases(DAMAGED, quick=["a changed evaluation"]))
def test_a_damaged_result_is_detected_and_rebuilt(
    copied: PipelineConfig, path: str, content: bytes | None, redone: str
) -> None:
    [run] = copied.runs.glob("tints-*")
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


BESIDE = ("evaluate", "export", "variants")
VARIANTS: dict[str, list[str]] = {"float32 alone": [], "variants": ["onnx-int8", "onnx-fp16"]}


@pytest.mark.long
@pytest.mark.parametrize("variants", cases(VARIANTS, quick=["float32 alone"]))
def test_steps_that_ran_side_by_side_wrote_the_same_bytes_as_one_after_the_other(
    copied: PipelineConfig, variants: list[str]
) -> None:
    export = copied.export.model_copy(update={"variants": tuple(variants)})
    config = copied.model_copy(update={"export": export} if variants else {})
    run, _ = run_pipeline(config)
    found, threads = [], dict[str, int]()

    def execute_step(name: str, run: Run) -> StepResult:
        threads[name] = threading.get_ident()
        return execute(name, run)

    for beside in (True, False):
        for name in BESIDE:
            shutil.rmtree(run.step(name))
        if beside:
            steps = run_pipeline(config, call_step=execute_step)[1]
            assert {step.name for step in steps if not step.reused} >= set(BESIDE)
        else:
            assert not any(execute(name, run).reused for name in BESIDE)
        found.append({path.relative_to(run.folder): path.read_bytes() for name in BESIDE for path in files_of(run.step(name))})
    assert threads["evaluate"] != threads["variants"] == threading.get_ident()
    assert {str(path) for path in found[0] if found[0][path] != found[1].get(path)} == set()
    assert found[0].keys() == found[1].keys()
    assert Path("export/model.onnx") in found[0]
    assert not variants or Path("variants/model.fp16.onnx") in found[0]


def files_of(folder: Path) -> list[Path]:
    """The files whose bytes do not depend on the time."""
    timed = {"receipt.json", "variants.json"}
    return [path for path in folder.rglob("*") if path.is_file() and path.name not in timed]


def test_a_changed_setting_makes_a_run_out_of_date(copied: PipelineConfig) -> None:
    stricter = copied.model_copy(update={"verify": copied.verify.model_copy(update={"odd_batch": 3})})
    assert not is_up_to_date(stricter)


def test_an_added_photo_makes_a_run_out_of_date(copied: PipelineConfig, tmp_path: Path) -> None:
    shutil.copytree(copied.data, tmp_path / "photos")
    moved = copied.model_copy(update={"data": str(tmp_path / "photos")})
    Image.new("RGB", (40, 48), (250, 10, 10)).save(tmp_path / "photos" / "warm" / "new.png")
    assert not is_up_to_date(moved)


def test_the_summary_has_every_figure_and_the_next_commands(completed: Completed) -> None:
    _, run, steps = completed
    summary = summarize(run, steps)
    rows = dict(summary_rows(summary))
    assert rows["artifact"] == "tints version 1"
    assert "95 % interval" in rows["accuracy (test)"]
    assert summary.max_difference <= 1e-4
    assert [figures["name"] for figures in summary.variants] == ["onnx-fp32"]
    assert summary.variants[0]["latency"]["threads_1"]["p95_ms"] > 0
    serve, *_, again = (command for command, _ in next_commands(summary, None, run))
    assert serve.endswith(f"edgeline serve {steps[-1].folder.parent}")
    assert again.endswith(f"edgeline retrain --config {run.folder / 'config.json'}")
    digits = next_commands(summary, None, Run(run.folder, PipelineConfig()))[-1][0]
    assert digits.endswith("edgeline run --data FOLDER")


def test_a_second_process_on_the_same_step_fails_and_names_the_first(copied: PipelineConfig) -> None:
    [run] = copied.runs.glob("tints-*")
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
