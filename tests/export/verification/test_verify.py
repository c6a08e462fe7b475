"""The report of a run, the files of a failed run, and the rejection of another model's export."""

import copy
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.parity.compare import Outputs, run_session
from edgeline.export.verification.context import VerificationContext
from edgeline.export.verification.verify import choose_samples, verify
from edgeline.flows import steps
from edgeline.flows.cli import main as cli
from edgeline.pipeline.config import VerifyConfig
from edgeline.pipeline.data.samples import Sample, read_prepared
from edgeline.pipeline.data.stress_images import stress_images
from edgeline.pipeline.evaluation.report import read_evaluation
from edgeline.pipeline.runs.receipts import result_digest
from edgeline.pipeline.runs.run import Run, create_run
from edgeline.serve.errors import ExportError, VerificationError
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.cpu import usable_cores
from edgeline.serve.runtime.session import SETTINGS

pytestmark = pytest.mark.usefixtures("measured_costs")

Redo = Callable[[Path], None]
TOO_STRICT = "verify.max_difference=1e-12"
"""A threshold that no float32 arithmetic satisfies."""


@pytest.fixture(name="report", scope="module")
def read(finished: Any) -> dict[str, Any]:
    return dict(json.loads((finished.run.step("verify") / "verification.json").read_text()))


def test_the_report_covers_every_held_out_image_and_the_stress_images(finished: Any, report: dict[str, Any]) -> None:
    held_out = read_prepared(finished.run.step("prepare")).of("test", "val")
    assert report["schema"] == "edgeline.verification/2"
    assert report["images"] == {"held_out": len(held_out), "stress_images": len(stress_images())}
    assert len(held_out) == 15
    worst = {entry["image"] for entry in report["comparisons"][0]["worst"]}
    assert worst <= {f"stress:{name}" for name in stress_images()} | {sample.name for sample in held_out}


def test_the_report_compares_at_batch_one_an_odd_one_and_the_largest(report: dict[str, Any]) -> None:
    assert [c["batch"] for c in report["comparisons"]] == [1, 7, 16]
    for comparison in report["comparisons"]:
        assert comparison["images"] == sum(report["images"].values())
        assert 0 < comparison["max_difference"] < report["thresholds"]["max_difference"] == 1e-4
        assert 0 < comparison["max_logit_difference"] < 1e-5
        assert comparison["top1_agreement_over_margin"] == 1
        assert comparison["problems"] == []
    for what in ("max_difference", "max_logit_difference"):
        assert report[what] == max(c[what] for c in report["comparisons"])


def test_the_report_has_its_machine_and_settings(report: dict[str, Any]) -> None:
    taken = report["measured_on"]
    assert taken["command"] == "edgeline verify RUN"
    assert taken["machine"]["cores"] == usable_cores()
    assert taken["options"]["torch_build"] == torch.__version__
    assert torch.__version__.startswith(taken["versions"]["torch"])
    assert taken["options"]["batches"] == [1, 7, 16]
    assert SETTINGS.items() <= taken["options"]["session"].items()
    for latency in report["reference"]["latency"].values():
        assert 0 < latency["p50_ms"] <= latency["p95_ms"]


def test_the_report_names_the_file_and_the_results_that_it_covers(finished: Any, report: dict[str, Any]) -> None:
    assert report["model_sha256"] == hashlib.sha256(finished.model).hexdigest()
    assert report["inputs"] == {
        name: result_digest(finished.run.step(name)) for name in ("prepare", "train", "evaluate", "export", "variants")
    }
    assert report["pixel_drift_since_training"] == 0


def test_what_ships_is_as_good_as_what_was_evaluated(finished: Any, report: dict[str, Any]) -> None:
    assert report["test_accuracy"] == read_evaluation(finished.run.step("evaluate")).top1.model_dump()


class Recorder:
    """A session that records its batch sizes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def run(self, _: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        images_NHW3 = inputs["image"]
        self.sizes.append(len(images_NHW3))
        return [images_NHW3.mean((1, 2, 3))[:, None].astype(np.float32)] * 2


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1] * 5), (2, [2] * 3), (5, [5]), (16, [16])])
def test_every_batch_has_the_verified_size(batch: int, sizes: list[int]) -> None:
    session = Recorder()
    outputs = run_session(session, [np.full((4, 4, 3), level, np.uint8) for level in range(5)], batch)
    assert session.sizes == sizes
    np.testing.assert_array_equal(outputs.logits_NK, [[0], [1], [2], [3], [4]])
    assert isinstance(outputs, Outputs)


def test_test_images_are_chosen_before_validation_and_the_same_each_time(finished: Any) -> None:
    prepared = read_prepared(finished.run.step("prepare"))
    held_out = [*prepared.of("val"), *prepared.of("test")]
    chosen = choose_samples(held_out, 11)
    assert [sample.split for sample in chosen] == ["test"] * 9 + ["val"] * 2
    assert choose_samples(held_out[::-1], 11) == chosen
    assert choose_samples(held_out, 3) == chosen[:3]


@pytest.mark.long
def test_nan_from_pytorch_is_a_problem(
    finished: Any, deployed: CalibratedModel, spec: PreprocessSpec, thresholds: VerifyConfig
) -> None:
    broken = copy.deepcopy(deployed)
    broken.network.classifier.weight.data[0, 0] = torch.nan
    context = VerificationContext(deployed=broken, model=finished.model, spec=spec, samples=[], config=thresholds)
    expected = "batch 1: PyTorch returns NaN or infinite probabilities or logits for stress:black"
    assert verify(context).problems[0].startswith(expected)


# A run that fails.


def fail(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["edgeline", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


@pytest.fixture(name="strict")
def with_a_threshold_that_cannot_be_satisfied(run: Run) -> Run:
    config = json.loads((run.folder / "config.json").read_text())
    config["verify"]["max_difference"] = 1e-12
    config["artifacts"] = run.config.artifacts
    (run.folder / "config.json").write_text(json.dumps(config))
    return run


def test_a_run_that_fails_reports_why_on_one_line_and_publishes_nothing(
    strict: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail(monkeypatch, "verify", strict.folder) == 1
    [message] = capsys.readouterr().err.splitlines()
    assert message.startswith(
        "edgeline: the exported file does not compute what PyTorch computes: batch 1: the probabilities of"
    )
    assert "images differ by more than 1e-12" in message
    assert "; worst images: " in message
    assert message.endswith("nothing is published [verification_failed]")
    report = json.loads((strict.step("verify.partial") / "verification.json").read_text())
    assert (report["passed"], report["reference"]) == (False, None)
    assert len(report["problems"]) >= 3, "one a batch size"
    assert fail(monkeypatch, "publish", strict.folder) == 1
    assert "[not_verified]" in capsys.readouterr().err
    assert not list(strict.config.store.rglob("*"))


@pytest.mark.long
def test_the_report_of_a_run_that_fails_is_printed_as_json(
    strict: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail(monkeypatch, "verify", strict.folder, "--json") == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


@pytest.mark.long
def test_the_pipeline_stops_where_verification_fails(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verify_settings = finished.config.verify.model_copy(update={"max_difference": 1e-12})
    config = finished.config.model_copy(update={"verify": verify_settings, "artifacts": str(tmp_path)})
    fingerprint = read_prepared(finished.run.step("prepare")).fingerprint
    made = create_run(config, fingerprint)
    for step in ("prepare", "train", "evaluate", "export"):
        finished.copy_step(step, made.step(step))
    settings = [word for setting in (*finished.settings, TOO_STRICT) for word in ("--set", setting)]
    arguments = ["run", "--no-prefect", "--data", finished.config.data, "--artifacts", tmp_path, *settings]
    assert fail(monkeypatch, *arguments) == 1
    assert "nothing is published [verification_failed]" in capsys.readouterr().err
    assert sorted(path.name for path in config.runs.iterdir()) == [made.folder.name]
    assert (made.step("verify.partial") / "verification.json").is_file()
    assert not made.step("verify").exists()
    assert not config.store.exists()


# An export of another model, with every hash corrected.


@pytest.mark.long
def test_a_file_of_another_checkpoint_is_rejected_by_its_metadata(run: Run, redo: Redo) -> None:
    path = run.step("export") / "model.onnx"
    graph = onnx.load(path)
    for entry in graph.metadata_props:
        if entry.key == "edgeline.checkpoint_sha256":
            entry.value = "0" * 64
    onnx.save(graph, path)
    redo(run.step("export"))
    with pytest.raises(
        VerificationError, match="the file's metadata has edgeline.checkpoint_sha256 = '0{64}', this run has '[0-9a-f]{64}'"
    ):
        steps.execute("verify", run)


def test_labels_in_another_order_than_in_the_data_are_rejected(run: Run, redo: Redo) -> None:
    path = run.step("train") / "checkpoint.json"
    settings = json.loads(path.read_text())
    settings["labels"] = settings["labels"][1:] + settings["labels"][:1]
    path.write_text(json.dumps(settings))
    redo(run.step("train"))
    with pytest.raises(
        VerificationError, match="labels differ between the run's steps .*data: bark, leaf, sky; checkpoint: leaf, sky"
    ):
        steps.execute("verify", run)


def test_a_file_of_a_newer_operator_set_than_the_run_allows_is_rejected(run: Run, redo: Redo) -> None:
    path = run.step("export") / "model.onnx"
    graph = onnx.load(path)
    graph.opset_import[0].version = 19
    onnx.save(graph, path)
    redo(run.step("export"))
    with pytest.raises(ExportError, match=r"it uses operator set \[19\], at most 18 is allowed"):
        steps.execute("verify", run)


def test_a_photo_that_changed_since_it_was_prepared_is_not_compared_with(run: Run, held_out: list[Sample], redo: Redo) -> None:
    path = run.step("prepare") / "samples.csv"
    path.write_text(path.read_text().replace(held_out[0].sha256, "0" * 64))
    redo(run.step("prepare"))
    with pytest.raises(Exception, match="has changed since it was prepared") as error:
        steps.execute("verify", run)
    assert error.value.code == "content_changed"  # type: ignore[attr-defined]
