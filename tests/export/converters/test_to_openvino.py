import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeline.export import variants
from edgeline.export.converters.environments import environment
from edgeline.export.publishing.publish import publish
from edgeline.export.quantization.search import Choice
from edgeline.export.variants import build_variants
from edgeline.export.variants_report import VariantsReport
from edgeline.export.verification.verify import build_verification
from edgeline.pipeline.runs.run import Run
from edgeline.serve.errors import ExportError
from edgeline.serve.runtime.cpu import CPUINFO, multiplies_exactly

NAMES = ("openvino-fp32", "openvino-int8")


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache") / "cache" / "environments"
    try:
        environment("openvino", cache)
    except ExportError as error:
        pytest.skip(str(error))
    return cache


@pytest.mark.long
@pytest.mark.skipif(
    not multiplies_exactly(CPUINFO), reason="on x86 without VNNI, OpenVINO's int8 products saturate, and the gate rejects them"
)
def test_openvino_variants_pass_the_release_gate_and_are_published_with_their_weights(
    run: Run, redo: Any, environments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    int8 = (run.step("variants") / "model.int8.onnx").read_bytes()
    report = VariantsReport.read(run.step("variants") / "variants.json").int8
    assert report is not None
    monkeypatch.setattr(variants, "choose_int8", lambda *_: Choice(int8, report))
    run.config.environments.parent.mkdir(parents=True, exist_ok=True)
    run.config.environments.symlink_to(environments)
    export = run.config.export.model_copy(update={"variants": NAMES, "require_variants": True})
    run = Run(run.folder, run.config.model_copy(update={"export": export}))
    for step, build in (("variants", build_variants), ("verify", build_verification)):
        shutil.rmtree(run.step(step))
        run.step(step).mkdir()
        build(run, run.step(step))
        (run.step(step) / "receipt.json").write_text(json.dumps({"key": "0", "files": {}}))
        redo(run.step(step))
    verified = json.loads((run.step("verify") / "verification.json").read_text())["variants"]
    assert [(entry["name"], entry["passed"]) for entry in verified] == [(name, True) for name in NAMES]
    assert verified[0]["similarity"]["sqnr_db"] > 100
    assert 15 < verified[1]["similarity"]["sqnr_db"] < 60
    assert {latency["runs"] for entry in verified for latency in entry["latency"].values()} == {50}
    artifact = publish(run).folder
    assert {path.name for path in artifact.glob("*.bin")} == {"model.bin", "model.int8.bin"}
