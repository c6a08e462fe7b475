"""Predictions of an artifact."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeline.serve import classifier as classifier_module
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ArtifactError, GoldenError, ImageError, InputError, ManifestError

Seal = Callable[..., Path]


@pytest.fixture(name="classifier", scope="module")
def opened(artifact_template: Path) -> Classifier:
    return Classifier.open(artifact_template)


@pytest.fixture(name="photos", scope="module")
def golden_photos(artifact_template: Path) -> list[bytes]:
    return [(artifact_template / "golden" / f"{index}.jpg").read_bytes() for index in range(4)]


def test_each_photo_gets_its_label(classifier: Classifier, photos: list[bytes]) -> None:
    answers = classifier.predict(photos, top_k=2)
    assert [answer[0].label for answer in answers] == ["red", "green", "blue", "dark"]
    assert [answer[0].index for answer in answers] == [0, 1, 2, 3]
    assert all(len(answer) == 2 and answer[0].probability >= answer[1].probability for answer in answers)


def test_probabilities_sum_to_one(classifier: Classifier, photos: list[bytes]) -> None:
    for answer in classifier.predict(photos, top_k=99):
        assert len(answer) == 4
        assert sum(prediction.probability for prediction in answer) == pytest.approx(1, abs=1e-6)


def test_a_batch_over_the_limit_is_split_and_equals_single_images(classifier: Classifier, photos: list[bytes]) -> None:
    assert classifier.variant.max_batch == 4
    many = photos * 3 + photos[:1]
    for together, alone in zip(classifier.predict(many), (classifier.predict([photo])[0] for photo in many), strict=True):
        assert [prediction.index for prediction in together] == [prediction.index for prediction in alone]
        np.testing.assert_allclose([p.probability for p in together], [p.probability for p in alone], rtol=0, atol=1e-6)


def test_the_example_of_its_module_runs(artifact_template: Path, photos: list[bytes], capsys: Any) -> None:
    lines = [line[4:] for line in (classifier_module.__doc__ or "").splitlines() if line.startswith("    ")]
    code = "\n".join(lines).replace("artifacts/store/digits", str(artifact_template.parent))
    assert len(lines) == 3
    exec(code, {"Classifier": Classifier, "photo_bytes": photos[0]})
    assert capsys.readouterr().out.startswith("red 0.99")


def test_no_images_yield_no_predictions(classifier: Classifier) -> None:
    assert classifier.predict([]) == []


def test_equal_probabilities_are_ordered_by_index(classifier: Classifier) -> None:
    ranked = classifier.rank(np.array([0.2, 0.3, 0.2, 0.3], np.float32), 4)
    assert [prediction.index for prediction in ranked] == [1, 3, 0, 2]


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_under_one_is_rejected(classifier: Classifier, top_k: int) -> None:
    with pytest.raises(InputError, match="top_k must be at least 1"):
        classifier.predict([], top_k)


def test_an_invalid_image_raises(classifier: Classifier, photos: list[bytes]) -> None:
    with pytest.raises(ImageError):
        classifier.predict([photos[0], b"text"])


def test_an_unknown_variant_is_rejected(artifact_template: Path) -> None:
    with pytest.raises(ManifestError, match="no variant 'int4'"):
        Classifier.open(artifact_template, variant="int4")


def edit_model(folder: Path, seal: Seal, edit: Callable[[onnx.ModelProto], object]) -> Path:
    model = onnx.load(folder / "model.onnx")
    edit(model)
    onnx.save(model, folder / "model.onnx")
    return seal(folder)


def fix_the_batch(model: onnx.ModelProto) -> None:
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1


def rename_the_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "pixels"
    model.graph.node[0].input[0] = "pixels"


def drop_the_logits(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


def take_floats(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def add_an_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["batch", 3]))


BROKEN_CONTRACTS = [fix_the_batch, rename_the_input, drop_the_logits, take_floats, add_an_output]


@pytest.mark.parametrize("edit", BROKEN_CONTRACTS, ids=lambda edit: edit.__name__.replace("_", " "))
def test_a_graph_that_violates_its_contract_is_rejected(
    make_artifact: Callable[..., Path], seal: Seal, edit: Callable[[onnx.ModelProto], None]
) -> None:
    folder = edit_model(make_artifact(), seal, edit)
    with pytest.raises(ArtifactError, match="the manifest specifies") as rejection:
        Classifier.open(folder)
    assert rejection.value.code == "spec_mismatch"


def fail_at_every_image(model: onnx.ModelProto) -> None:
    output = model.graph.node[-1].output[0]
    model.graph.node[-1].output[0] = "before"
    model.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [1], [7]))
    model.graph.node.append(helper.make_node("Reshape", ["before", "shape"], ["seven"]))
    model.graph.node.append(helper.make_node("ReduceSum", ["seven"], ["sum"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["before", "sum"], [output]))


def test_a_model_that_loads_and_cannot_be_run_is_rejected_in_one_line(make_artifact: Callable[..., Path], seal: Seal) -> None:
    folder = edit_model(make_artifact(), seal, fail_at_every_image)
    with pytest.raises(GoldenError, match=r"model\.onnx cannot compute the golden samples .*cannot be reshaped") as rejection:
        Classifier.open(folder)
    assert "\n" not in str(rejection.value)


def test_an_additional_label_is_rejected(make_artifact: Callable[..., Path], seal: Seal) -> None:
    folder = make_artifact()
    (folder / "labels.txt").write_text("red\ngreen\nblue\ndark\npink\n")
    seal(folder, labels=["red", "green", "blue", "dark", "pink"])
    with pytest.raises(ArtifactError, match="the manifest specifies"):
        Classifier.open(folder)


def test_a_model_that_returns_nan_is_rejected(make_artifact: Callable[..., Path], seal: Seal, photos: list[bytes]) -> None:
    def divide_by_zero(model: onnx.ModelProto) -> None:
        [scale] = [value for value in model.graph.initializer if value.name == "scale"]
        scale.CopyFrom(numpy_helper.from_array(np.array(0, np.float32), "scale"))

    folder = edit_model(make_artifact(), seal, divide_by_zero)
    with pytest.raises(ArtifactError, match="not finite"):
        Classifier.open(folder)
    with pytest.raises(ArtifactError) as rejection:
        Classifier.open(folder, verify=False).predict(photos[:1])
    assert rejection.value.code == "model_output_not_finite"


def test_an_artifact_may_be_moved(artifact_template: Path, tmp_path: Path, photos: list[bytes]) -> None:
    shutil.copytree(artifact_template, tmp_path / "on a card")
    assert Classifier.open(str(tmp_path / "on a card")).predict(photos[:1])[0][0].label == "red"


def test_swapped_labels_without_golden_samples_are_rejected(make_artifact: Callable[..., Path], seal: Seal) -> None:
    def write_the_labels(model: onnx.ModelProto) -> None:
        model.metadata_props.add(key="edgeline.labels", value="red\ngreen\nblue\ndark")

    folder = edit_model(make_artifact(), seal, write_the_labels)
    assert Classifier.open(folder).self_test is not None
    golden = json.loads((folder / "golden" / "golden.json").read_text())
    golden["samples"] = golden["samples"][:2]
    (folder / "golden" / "golden.json").write_text(json.dumps(golden))
    (folder / "labels.txt").write_text("red\ngreen\ndark\nblue\n")
    seal(folder, labels=["red", "green", "dark", "blue"])
    with pytest.raises(ArtifactError, match="was exported with other labels than those of the manifest") as rejection:
        Classifier.open(folder)
    assert rejection.value.code == "spec_mismatch"
