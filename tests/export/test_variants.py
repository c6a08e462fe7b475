import json
from pathlib import Path
from typing import Any

import pytest

from edgeline.export import variants
from edgeline.export.quantization.report import CalibrationImages, Int8Report, ValidationImages
from edgeline.export.quantization.search import Choice
from edgeline.export.variant_registry import VARIANTS
from edgeline.export.variants import build_variants
from edgeline.flows.steps import step_named
from edgeline.pipeline.config import load_config
from edgeline.pipeline.runs.atomic_files import write_json
from edgeline.pipeline.runs.receipts import RECEIPT
from edgeline.pipeline.runs.run import Run
from edgeline.serve.errors import ExportError


def asking(run: Run, *names: str, **settings: Any) -> Run:
    export = run.config.export.model_copy(update={"variants": names, **settings})
    return Run(run.folder, run.config.model_copy(update={"export": export}))


def report(**fields: Any) -> Int8Report:
    calibration, images = CalibrationImages(images=8, sha256=""), ValidationImages(images=1)
    return Int8Report(
        target="arm64", calibration=calibration, evaluated_on=images, exact_precision_setting=False, tried=(), **fields
    )


def listed(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "variants.json").read_text())["variants"]
    return found


def test_each_variant_is_made_under_its_own_name(finished: Any) -> None:
    folder = finished.run.step("variants")
    assert [(v["name"], v["file"], v["made"]) for v in listed(folder)] == [
        (name, VARIANTS[name].file, True) for name in ("onnx-int8", "onnx-fp16", "ort-fp32", "ort-int8")
    ]
    assert all((folder / variant["file"]).stat().st_size > 1e6 for variant in listed(folder))
    assert [v.get("saturates") for v in listed(folder)] == [True, None, None, True]
    assert json.loads((folder / "variants.json").read_text())["int8"]["measured_on"]["command"] == "edgeline variants RUN"


def test_without_variants_nothing_is_made(finished: Any, tmp_path: Path) -> None:
    build_variants(asking(finished.run), tmp_path)
    assert json.loads((tmp_path / "variants.json").read_text()) == {
        "schema": "edgeline.variants/2",
        "variants": [],
        "int8": None,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["variants.json"]


@pytest.fixture
def unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "choose_int8", lambda *_: Choice(None, report(why="no recipe passes")))


@pytest.mark.usefixtures("unfit")
def test_int8_that_fails_is_not_made_and_the_others_are(finished: Any, tmp_path: Path) -> None:
    build_variants(asking(finished.run, "onnx-int8", "onnx-fp16", "ort-int8"), tmp_path)
    assert [v["made"] for v in listed(tmp_path)] == [False, True, False]
    assert listed(tmp_path)[0]["why"] == "onnx-int8 is not made: no recipe passes"
    assert {path.name for path in tmp_path.iterdir()} == {"variants.json", "model.fp16.onnx"}


@pytest.mark.usefixtures("unfit")
def test_a_variant_that_the_run_requires_stops_it(finished: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="onnx-int8 is not made: no recipe passes"):
        build_variants(asking(finished.run, "onnx-int8", require_variants=True), tmp_path)


def test_int8_is_chosen_once_for_both_files(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    int8 = (finished.run.step("variants") / "model.int8.onnx").read_bytes()
    chosen = []
    monkeypatch.setattr(variants, "choose_int8", lambda *_: chosen.append(1) or Choice(int8, report()))
    build_variants(asking(finished.run, "ort-int8", "onnx-int8"), tmp_path)
    assert chosen == [1]
    assert (tmp_path / "model.int8.onnx").read_bytes() == int8
    before = (finished.run.step("variants") / "model.int8.ort").stat().st_size
    assert (tmp_path / "model.int8.ort").stat().st_size == before


def test_what_tuning_reads_is_part_of_the_steps_key(tmp_path: Path) -> None:
    def key(*overrides: str, trained: str = "a") -> str:
        for name in ("prepare", "train", "export"):
            (tmp_path / name).mkdir(exist_ok=True)
            content = trained if name == "train" else "a"
            write_json(tmp_path / name / RECEIPT, {"key": "", "files": {"file": {"size": 1, "sha256": content}}})
        return step_named("variants").key(Run(tmp_path, load_config(None, list(overrides))))

    others = [key("seed=1"), key("train.views=1"), key("train.augment=flip"), key("export.qat_epochs=0"), key(trained="b")]
    assert len({key(), *others}) == 6
    assert key("train.patience=3") == key()
