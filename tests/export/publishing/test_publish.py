"""Only unchanged, verified results are published, and no artifact that fails its self-test, even with correct hashes."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeline.export.publishing.publish import content_digest, publish, read_verification
from edgeline.pipeline.runs.receipts import result_digest
from edgeline.pipeline.runs.run import Run, StepResult
from edgeline.serve.artifact.reader import names, open_artifact, versions
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import EdgelineError, GoldenError, StoreError, VerificationError

ROOT = Path(__file__).resolve().parents[3]
Redo = Callable[[Path], None]


def another_head(run: Run) -> bytes:
    """The run's file with a head that another training could have produced."""
    graph = onnx.load(run.step("export") / "model.onnx")
    [head] = [tensor for tensor in graph.graph.initializer if tensor.name == "network.head.1.weight"]
    weights = numpy_helper.to_array(head)
    noise = np.random.default_rng(0).normal(size=weights.shape)
    changed = (weights + 0.05 * weights.std() * noise).astype(np.float32)
    head.CopyFrom(numpy_helper.from_array(changed, head.name))
    return bytes(graph.SerializeToString())


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))


# Published results.


@pytest.fixture(scope="module")
def published(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, StepResult]:
    """A copy of the run, and what publishing it returned. Shared: tests that publish another version copy it first."""
    run = finished.copy(tmp_path_factory.mktemp("published"))
    return run, publish(run)


def test_a_run_becomes_a_version_that_passes_its_self_test(published: tuple[Run, StepResult]) -> None:
    run, result = published
    assert (result.folder, result.reused) == (run.config.store / "photos" / "1", False)
    self_test = Classifier.open(result.folder).self_test
    assert self_test is not None
    assert (self_test.samples, self_test.max_pixel_difference) == (5, 0)
    assert max(self_test.max_difference, self_test.max_logit_difference) < 1e-5


def test_a_run_publishes_the_same_files_wherever_and_whenever(finished: Any, published: tuple[Run, StepResult]) -> None:
    again = open_artifact(published[1].folder)
    first = open_artifact(finished.artifact)
    assert again.manifest.files == first.manifest.files
    assert again.manifest.to_dict() | {"created": ""} == first.manifest.to_dict() | {"created": ""}


def test_publishing_again_returns_the_same_version(published: tuple[Run, StepResult]) -> None:
    run, first = published
    again = publish(run)
    assert (again.folder, again.reused) == (first.folder, True)
    assert versions(run.config.store / "photos") == [1]


@pytest.mark.long
def test_other_publish_settings_make_a_new_version_next_to_the_old(published: tuple[Run, StepResult], tmp_path: Path) -> None:
    run, _ = published
    artifacts = Path(shutil.copytree(run.config.artifacts, tmp_path / "artifacts"))
    old = artifacts / "store" / "photos" / "1"
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    changes = {"artifacts": str(artifacts), "publish": run.config.publish.model_copy(update={"golden": 2})}
    other = Run(artifacts / "runs" / run.folder.name, run.config.model_copy(update=changes))
    assert content_digest(other) != content_digest(run)
    new = publish(other)
    assert (new.folder.name, new.reused) == ("2", False)
    assert len(json.loads((new.folder / "golden" / "golden.json").read_text())["samples"]) == 2
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before


@pytest.mark.long
def test_another_name_is_published_under_it(published: tuple[Run, StepResult]) -> None:
    run, _ = published
    other = Run(run.folder, run.config.model_copy(update={"name": "trees"}))
    assert publish(other).folder == run.config.store / "trees" / "1"
    assert content_digest(other) != content_digest(run)


# Results that are not published.


def no_verification(run: Run, redo: Redo) -> None:
    shutil.rmtree(run.step("verify"))


def a_verification_that_is_not_json(run: Run, redo: Redo) -> None:
    (run.step("verify") / "verification.json").write_text("passed")
    redo(run.step("verify"))


def a_verification_without_its_inputs(run: Run, redo: Redo) -> None:
    edit(run.step("verify") / "verification.json", lambda held: held.pop("inputs"))
    redo(run.step("verify"))


def a_verification_that_failed(run: Run, redo: Redo) -> None:
    edit(run.step("verify") / "verification.json", lambda held: held.update(passed=False))
    redo(run.step("verify"))


def a_later_verification_that_failed(run: Run, redo: Redo) -> None:
    shutil.copytree(run.step("verify"), run.step("verify.partial"))
    edit(run.step("verify.partial") / "verification.json", lambda held: held.update(passed=False))


def a_model_swapped_after_verification(run: Run, redo: Redo) -> None:
    (run.step("export") / "model.onnx").write_bytes(another_head(run))


def a_model_swapped_with_its_receipt(run: Run, redo: Redo) -> None:
    (run.step("export") / "model.onnx").write_bytes(another_head(run))
    redo(run.step("export"))


def one_bit_of_the_model_flipped(run: Run, redo: Redo) -> None:
    data = bytearray((run.step("export") / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (run.step("export") / "model.onnx").write_bytes(data)


def no_model(run: Run, redo: Redo) -> None:
    (run.step("export") / "model.onnx").unlink()


def a_model_swapped_with_its_receipt_and_its_digest(run: Run, redo: Redo) -> None:
    model = another_head(run)
    (run.step("export") / "model.onnx").write_bytes(model)
    edit(run.step("verify") / "verification.json", lambda held: held.update(model_sha256=hashlib.sha256(model).hexdigest()))
    redo(run.step("export"))
    redo(run.step("verify"))


def a_checkpoint_that_was_touched(run: Run, redo: Redo) -> None:
    path = run.step("train") / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")


def a_verification_that_was_edited(run: Run, redo: Redo) -> None:
    edit(run.step("verify") / "verification.json", lambda held: held.update(max_difference=0))


def a_checkpoint_of_a_later_training(run: Run, redo: Redo) -> None:
    edit(run.step("train") / "checkpoint.json", lambda held: held.update(seed=1))
    redo(run.step("train"))


def an_evaluation_with_another_temperature(run: Run, redo: Redo) -> None:
    edit(run.step("evaluate") / "evaluation.json", lambda held: held["calibration"].update(temperature=3.0))
    redo(run.step("evaluate"))


def other_samples(run: Run, redo: Redo) -> None:
    path = run.step("prepare") / "samples.csv"
    path.write_text(path.read_text().replace('"test"', '"val"', 1))
    redo(run.step("prepare"))


NOT_VERIFIED: dict[Callable[[Run, Redo], None], str] = {
    no_verification: "verify has no verification .*; run `edgeline verify` first",
    a_verification_that_is_not_json: "verify has no verification",
    a_verification_without_its_inputs: "prepare, train, evaluate, export, variants is not what was verified",
    a_verification_that_failed: "model.onnx is not the file that passed verification; verify it again",
    a_later_verification_that_failed: "the last verification of this run did not finish or did not pass",
    a_model_swapped_after_verification: "model.onnx is not the file that passed verification",
    a_model_swapped_with_its_receipt: "model.onnx is not the file that passed verification",
    one_bit_of_the_model_flipped: "model.onnx is not the file that passed verification",
    no_model: "model.onnx is not the file that passed verification",
    a_model_swapped_with_its_receipt_and_its_digest: "export is not what was verified",
    a_checkpoint_that_was_touched: "the result of train has changed since it was made",
    a_verification_that_was_edited: "the result of verify has changed since it was made",
    a_checkpoint_of_a_later_training: "train is not what was verified",
    an_evaluation_with_another_temperature: "evaluate is not what was verified",
    other_samples: "prepare is not what was verified",
}


@pytest.mark.parametrize(
    ("change", "reason"), NOT_VERIFIED.items(), ids=lambda v: v.__name__.replace("_", " ") if callable(v) else ""
)
def test_results_that_were_not_verified_are_not_published(
    run: Run, redo: Redo, change: Callable[[Run, Redo], None], reason: str
) -> None:
    assert read_verification(run).passed
    change(run, redo)
    with pytest.raises(VerificationError, match=reason) as caught:
        publish(run)
    assert caught.value.code == "not_verified"
    assert not run.config.store.exists()


@pytest.mark.long
def test_an_older_model_with_every_record_forged_fails_its_self_test(run: Run, redo: Redo) -> None:
    """No hash reveals the swap, so PyTorch's outputs must."""
    a_model_swapped_with_its_receipt_and_its_digest(run, redo)
    digest = result_digest(run.step("export"))
    edit(run.step("verify") / "verification.json", lambda held: held["inputs"].update(export=digest))
    redo(run.step("verify"))
    assert read_verification(run).passed
    with pytest.raises(GoldenError, match="the model or the runtime computes something else on this machine"):
        publish(run)
    assert versions(run.config.store / "photos") == []
    assert [path.name for path in (run.config.store / "photos").iterdir()] == [".lock"]


KILLED = """
import os, signal, sys
from pathlib import Path
from edgeline.export.publishing.publish import publish
from edgeline.pipeline.runs.run import open_run


def hook(event, arguments):
    if event == "os.rename" and ".staging-" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(hook)
publish(open_run(Path(sys.argv[1])))
"""


@pytest.mark.long
def test_a_run_whose_publisher_was_killed_is_not_published_and_can_be_published_again(run: Run) -> None:
    """`test_store.py` kills the publication of a small artifact at every call; this one is complete."""
    ended = subprocess.run([sys.executable, "-c", KILLED, str(run.folder)], cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    folder = run.config.store / "photos"
    [left] = [path for path in folder.iterdir() if path.name != ".lock"]
    assert open_artifact(left).manifest.version == 1, "it was complete, but not renamed yet"
    assert (names(run.config.store), versions(folder)) == ([], [])
    assert publish(run).folder == folder / "1"
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "1"]


def test_a_step_that_was_never_run_is_named(run: Run) -> None:
    shutil.rmtree(run.step("train"))
    with pytest.raises(EdgelineError, match="the result of train has changed since it was made; run the step again"):
        publish(run)


def test_a_store_that_cannot_be_written_is_named(run: Run) -> None:
    run.config.store.parent.mkdir(exist_ok=True)
    run.config.store.write_text("not a folder")
    with pytest.raises(StoreError, match="store.*cannot be written: .*; nothing was published"):
        publish(run)
