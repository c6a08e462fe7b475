"""Core ML: converted and checked where it cannot run, and published with a note of that."""

import copy
import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.parity.report import OutputSimilarity
from edgeline.export.publishing.golden import GoldenSource, write_golden
from edgeline.export.publishing.report import write_card, write_report
from edgeline.export.publishing.variant_table import figures
from edgeline.export.variant_registry import VARIANTS
from edgeline.export.variants import build_variants
from edgeline.export.variants_report import VariantFile
from edgeline.export.verification import variant_checks
from edgeline.export.verification.context import VerificationContext
from edgeline.export.verification.coreml import check_structure, compare_weights, layer_weights
from edgeline.export.verification.findings import find_in_verification
from edgeline.export.verification.report import FailedVariant, PackageStructure, UnrunVariant, VerificationReport
from edgeline.export.verification.variants import verify_variants
from edgeline.pipeline.config import VerifyConfig
from edgeline.pipeline.data.samples import Sample
from edgeline.pipeline.evaluation.report import read_evaluation
from edgeline.pipeline.runs.run import Run
from edgeline.serve.errors import ArtifactError
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.backends import COREML_FILES, files_of, load_file, not_run_here
from tests.support.findings import run_with_findings

Check = Callable[..., tuple[PackageStructure, list[str]]]

FILE = VARIANTS["coreml-fp16"].file
ENVIRONMENTS = Path(__file__).resolve().parents[3] / "artifacts" / "cache" / "environments"
WHY = "Core ML runs on macOS and iOS"
SIMILARITY = OutputSimilarity(
    images=24,
    sqnr_db=44.2,
    cosine=1,
    kl=1e-5,
    max_difference=1e-3,
    top1_agreement=1.0,
    clear_agreement=1.0,
    top5_agreement=1.0,
    flips=0,
    largest_flipped_margin=0,
)
STRUCTURE = PackageStructure(kind="mlProgram", weights=100, similarity=SIMILARITY)
MADE = VariantFile(name="coreml-fp16", file=FILE, format="coreml", precision="float16")
UNRUN = UnrunVariant(**dict(MADE), sha256="0" * 64, bytes=6_700_000, not_run=WHY, structure=STRUCTURE)
needs_coreml = pytest.mark.skipif(
    "coreml" not in os.environ.get("EDGELINE_TEST_FORMATS", ""),
    reason="installs 5 GB of coremltools and PyTorch; EDGELINE_TEST_FORMATS=coreml runs it",
)
not_on_macos = pytest.mark.skipif(platform.system() == "Darwin", reason="Core ML runs here")


def test_a_package_consists_of_its_manifest_and_data_files() -> None:
    assert files_of("coreml", FILE) == (
        "model.mlpackage/Manifest.json",
        "model.mlpackage/Data/com.apple.CoreML/model.mlmodel",
        "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
    )


@not_on_macos
def test_a_package_does_not_run_on_other_systems(tmp_path: Path) -> None:
    for name in files_of("coreml", FILE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert not_run_here("coreml") == WHY
    assert not_run_here("onnx") is None
    with pytest.raises(ArtifactError, match=f"cannot run on this system: {WHY}") as error:
        load_file("coreml", tmp_path / FILE)
    assert error.value.code == "not_run_here"


RESULTS = {"whole": ([], None), "with a fault": (["its kind is neuralNetwork, expected mlProgram"], False)}


@not_on_macos
@pytest.mark.parametrize(("problems", "passed"), RESULTS.values(), ids=RESULTS)
def test_a_valid_package_is_reported_as_not_run_and_an_invalid_one_fails(
    tiny: Callable[[], CalibratedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    problems: list[str],
    passed: bool | None,
) -> None:
    # `check_structure` has tests of its own, for which coremltools is needed.
    monkeypatch.setattr(variant_checks, "check_structure", lambda *_: (STRUCTURE, problems))
    for name in files_of("coreml", FILE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    context = VerificationContext(
        deployed=tiny(),
        model=b"",
        spec=PreprocessSpec(height=16, width=16),
        samples=[],
        config=VerifyConfig(),
        environments=tmp_path,
    )
    [found] = verify_variants([MADE], tmp_path, context)
    assert isinstance(found, UnrunVariant | FailedVariant)
    assert (found.passed, list(found.problems), found.not_run) == (passed, problems, WHY)
    assert list(found.files) == list(files_of("coreml", FILE))


def test_the_closing_table_and_the_manifest_note_that_it_was_not_run(finished: Any) -> None:
    assert figures(UNRUN) == {"passed": None, "not_run": WHY, "structure": STRUCTURE.to_dict(), "bytes": 6_700_000}
    verification = VerificationReport.read(finished.artifact / "verification.json")
    [finding] = find_in_verification(verification.model_copy(update={"variants": (UNRUN,)}))
    assert finding.message.startswith(f"coreml-fp16 (6.7 MB) is shipped and was not run here ({WHY}): its inputs, outputs and ")
    assert "same best class on 100.00% of 24 images, SQNR 44 dB" in finding.message


def test_the_report_and_the_card_note_that_it_was_not_run(finished: Any, tmp_path: Path) -> None:
    evaluation = read_evaluation(finished.run.step("evaluate"))
    verification = VerificationReport.read(finished.artifact / "verification.json")
    provenance = json.loads((finished.artifact / "manifest.json").read_text())["provenance"]
    verification = verification.model_copy(update={"variants": (*verification.variants, UNRUN)})
    run = run_with_findings(finished.run, tmp_path / "run", find_in_verification(verification))
    write_report(tmp_path / "report.html", run, evaluation, verification, provenance)
    write_card(tmp_path / "card.md", run, evaluation, verification, provenance)
    page = (tmp_path / "report.html").read_text()
    assert f"<li>coreml-fp16 (6.7 MB) is shipped and was not run here ({WHY})" in page
    assert "coreml-fp16 is not shipped" not in page
    assert f"coreml-fp16 (6.7 MB) is shipped and was not run here ({WHY})" in (tmp_path / "card.md").read_text()


def test_its_golden_samples_are_those_of_pytorch_with_a_float16_tolerance(
    finished: Any, deployed: CalibratedModel, spec: PreprocessSpec, held_out: list[Sample], tmp_path: Path
) -> None:
    labels = json.loads((finished.artifact / "manifest.json").read_text())["labels"]
    variants = [VARIANTS["coreml-fp16"]]
    source = GoldenSource(deployed=deployed, spec=spec, labels=labels, samples=held_out)
    write_golden(tmp_path, source, finished.config.publish, variants=variants)
    golden = json.loads((tmp_path / "golden" / "golden.json").read_text())
    assert golden["variants"] == {"coreml-fp16": {"tolerance": 0.03, "logit_tolerance": 0.02}}
    for sample in golden["samples"]:
        assert sample["variants"]["coreml-fp16"] == {name: sample[name] for name in ("probabilities", "logits")}


WEIGHTS = {
    "conv": np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32),
    "bias": np.random.default_rng(1).normal(size=8).astype(np.float32),
    "linear": np.random.default_rng(2).normal(size=(5, 8)).astype(np.float32),
}


def rounded(**changes: np.ndarray) -> list[np.ndarray]:
    return [array.astype(np.float16) for array in (WEIGHTS | changes).values()]


def test_weights_may_be_rounded_transposed_and_in_any_order() -> None:
    assert compare_weights(WEIGHTS, rounded(linear=WEIGHTS["linear"].T)[::-1]) == []


CHANGED: dict[str, Callable[[], list[np.ndarray]]] = {
    "one number off by a hundredth": lambda: rounded(
        conv=WEIGHTS["conv"] * np.where(np.arange(216) == 7, 1.01, 1).reshape(8, 3, 3, 3)
    ),
    "channels in another order": lambda: rounded(conv=WEIGHTS["conv"][::-1]),
    "a number that is NaN": lambda: rounded(conv=WEIGHTS["conv"] * np.nan),
    "another shape": lambda: rounded(conv=WEIGHTS["conv"][:, :, :1]),
    "left out": lambda: rounded()[1:],
}


@pytest.mark.parametrize("found", CHANGED.values(), ids=CHANGED)
def test_a_weight_that_differs_from_the_network_is_named(found: Callable[[], list[np.ndarray]]) -> None:
    [problem] = compare_weights(WEIGHTS, found())
    assert problem == "weights of the network are not in the package: conv; make the variants again"


def test_every_layer_of_a_network_is_compared(finished: Any) -> None:
    model = onnx.load_model_from_string(finished.model)
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 50
    assert len(layer_weights(model)) == 100


@pytest.fixture(name="package", scope="module")
def converted(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of the finished run's package."""
    return convert_again(finished, tmp_path_factory.mktemp("coreml"))


def convert_again(finished: Any, folder: Path) -> Path:
    export = finished.config.export.model_copy(update={"variants": ("coreml-fp16",), "require_variants": True})
    config = finished.config.model_copy(update={"export": export})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(config), "environments", ENVIRONMENTS)
        build_variants(Run(finished.run.folder, config), folder)
    return folder / FILE


@pytest.fixture(name="check", scope="module")
def checking(finished: Any, deployed: CalibratedModel, spec: PreprocessSpec, held_out: list[Sample]) -> Check:
    """`check(manifest, model=..., spec=...)`: the structure and the problems of a package of the finished run."""
    context = VerificationContext(
        deployed=deployed,
        model=finished.model,
        spec=spec,
        samples=held_out,
        config=finished.config.verify,
        environments=ENVIRONMENTS,
    )

    def check(manifest: Path, **changes: Any) -> tuple[PackageStructure, list[str]]:
        return check_structure(manifest, replace(context, **changes) if changes else context, finished.config.verify.fp16)

    return check


@needs_coreml
@pytest.mark.slow
def test_a_package_has_an_image_input_and_the_graph_of_the_network(package: Path, check: Check, spec: PreprocessSpec) -> None:
    structure, problems = check(package)
    found = structure.to_dict()
    assert problems == []
    assert found["input"] == ["image", spec.height, spec.width, "RGB"]
    assert found["outputs"] == {name: [[1, 3], "FLOAT32"] for name in ("probabilities", "logits")}
    assert (found["specification"], found["weights"], found["operators"]["conv"]) == (7, 100, 49)
    assert found["similarity"]["sqnr_db"] > 40


@needs_coreml
@pytest.mark.slow
def test_a_package_of_the_same_network_has_the_same_bytes(package: Path, finished: Any, tmp_path: Path) -> None:
    again = convert_again(finished, tmp_path)
    for name in COREML_FILES:
        assert (again.parent / name).read_bytes() == (package.parent / name).read_bytes(), name
    assert {p.relative_to(again.parent).as_posix() for p in again.parent.rglob("*") if p.is_file()} == set(COREML_FILES)


@needs_coreml
@pytest.mark.slow
def test_a_package_of_another_network_or_size_is_named(
    package: Path, check: Check, finished: Any, spec: PreprocessSpec, deployed: CalibratedModel, held_out: list[Sample]
) -> None:
    model = onnx.load_model_from_string(finished.model)
    [tensor] = [t for t in model.graph.initializer if t.name.endswith("blocks.4.0.conv_dw.weight")]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    reversed_classes = copy.deepcopy(deployed)
    for parameter in (reversed_classes.network.classifier.weight, reversed_classes.network.classifier.bias):
        parameter.data = parameter.data.flip(0)
    other = PreprocessSpec(height=spec.height + 32, width=spec.width)
    _, problems = check(package, model=model.SerializeToString(), deployed=reversed_classes)
    _, of_another_size = check(package, spec=other)
    assert "blocks.4.0.conv_dw.weight" in problems[0]
    assert problems[1].startswith("computed by PyTorch, SQNR")
    assert of_another_size[0] == "its input is ['image', 224, 224, 'RGB'], expected ['image', 256, 224, 'RGB']"


@needs_coreml
@pytest.mark.slow
def test_a_truncated_package_is_rejected_in_one_line(package: Path, check: Check, tmp_path: Path) -> None:
    shutil.copytree(package.parent, tmp_path / "model.mlpackage")
    cut = tmp_path / "model.mlpackage" / COREML_FILES[1]
    cut.write_bytes(cut.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="coremltools cannot read the package") as error:
        check(tmp_path / FILE)
    assert "\n" not in str(error.value)
