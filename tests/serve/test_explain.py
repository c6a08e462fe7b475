"""Class activation maps: they add up to the logits and show where a class is."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from edgeline.export.graph.cam_outputs import add_outputs
from edgeline.serve.artifact.training_features import read_features
from edgeline.serve.classifier import Classifier
from edgeline.serve.cli.output import answer
from edgeline.serve.drift.collector import BATCH, drift_of
from edgeline.serve.drift.snapshot import distance
from edgeline.serve.errors import ArtifactError, GoldenError, InputError
from edgeline.serve.explain import region_of
from edgeline.serve.inputs.images import Picture, read_picture
from edgeline.serve.preprocess import PreprocessSpec
from tests.support.explaining import COLUMNS, ROWS, by_hand, explain_itself, mapped_model

SIZE = (ROWS * 4, COLUMNS * 4)


@pytest.fixture(name="classifier", scope="module")
def opened(explaining_template: Path) -> Classifier:
    return Classifier.open(explaining_template)


@pytest.fixture(name="photo", scope="module")
def a_photo() -> bytes:
    """Red at the left, blue at the right."""
    picture = Image.new("RGB", (400, 300), (220, 20, 20))
    picture.paste((20, 20, 220), (200, 0, 400, 300))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(explaining_template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(explaining_template, tmp_path / "store" / "colors" / "1"))


def test_the_map_is_the_linear_layer_applied_to_each_position(classifier: Classifier, photo: bytes) -> None:
    pixels_HW3 = classifier.pixels(photo)
    [evidence_Khw] = classifier.evidence(pixels_HW3[None])
    assert evidence_Khw.dtype == np.float32
    np.testing.assert_allclose(evidence_Khw, by_hand(pixels_HW3), atol=1e-5)


def test_the_maps_add_up_to_the_logits(classifier: Classifier) -> None:
    noise_NHW3 = np.random.default_rng(0).integers(0, 256, (7, *SIZE, 3), np.uint8)
    outputs = classifier.run(noise_NHW3, explain=True)
    assert outputs.evidence_NKhw is not None
    np.testing.assert_allclose(outputs.evidence_NKhw.mean((2, 3)), outputs.logits_NK, atol=1e-5)


def test_explaining_does_not_change_predictions(classifier: Classifier, photo: bytes) -> None:
    pixels_NHW3 = classifier.pixels(photo)[None]
    plain, explained = classifier.run(pixels_NHW3), classifier.run(pixels_NHW3, explain=True)
    assert plain.evidence_NKhw is None
    for name in ("probabilities_NK", "logits_NK", "embedding_NC"):
        assert np.array_equal(getattr(plain, name), getattr(explained, name)), name


def test_each_class_has_its_maximum_where_it_is(classifier: Classifier, photo: bytes) -> None:
    [explanation] = classifier.explain([photo], top_k=2)
    assert [each.label for each in explanation.predictions] in (["red", "blue"], ["blue", "red"])
    sides = {each.label: e_hw for each, e_hw in zip(explanation.predictions, explanation.evidence_Khw, strict=True)}
    assert sides["red"][:, 0].min() > sides["red"][:, -1].max() + 5
    assert sides["blue"][:, -1].min() > sides["blue"][:, 0].max() + 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_region_refers_to_the_upright_image(orientation: int) -> None:
    spec = PreprocessSpec(height=100, width=100, crop_fraction=0.5)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored = (300, 200) if orientation < 5 else (200, 300)
    Image.new("RGB", stored).save(file, "JPEG", exif=exif)
    expected = (100 / 300, 50 / 200, 200 / 300, 150 / 200)
    assert region_of(file.getvalue(), spec) == pytest.approx(expected)
    assert region_of(Image.new("RGB", (300, 200)), spec) == pytest.approx(expected)


def test_an_artifact_without_explanations_is_an_error(artifact_template: Path, photo: bytes) -> None:
    classifier = Classifier.open(artifact_template)
    with pytest.raises(InputError, match=r"export\.explain = true") as rejection:
        classifier.explain([photo])
    assert rejection.value.code == "explain_not_available"


def test_top_k_under_one_is_rejected(classifier: Classifier, photo: bytes) -> None:
    with pytest.raises(InputError, match="at least 1"):
        classifier.explain([photo], top_k=0)


def planted(name: str, change: Any) -> Any:
    """The model with one tensor of its maps changed."""
    model = add_outputs(mapped_model(), *SIZE)
    [tensor] = [each for each in model.graph.initializer if each.name == name]
    own = numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(tensor))), f"explain.{name}")
    model.graph.initializer.append(own)
    for node in model.graph.node:
        if node.name.startswith("explain."):
            for index, each in enumerate(node.input):
                if each == name:
                    node.input[index] = own.name
    return model


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("weights", lambda weights_KC: weights_KC[::-1]),
        ("bias", np.zeros_like),
        ("temperature", np.ones_like),
        ("weights", lambda weights_KC: weights_KC[:, ::-1]),
    ],
    ids=["classes in another order", "no bias", "no temperature", "channels in another order"],
)
def test_golden_samples_reject_maps_that_do_not_add_up(folder: Path, seal: Any, name: str, change: Any) -> None:
    explain_itself(folder, seal, planted(name, change))
    with pytest.raises(GoldenError, match="do not add up to the logits"):
        Classifier.open(folder)


def test_a_graph_without_the_specified_outputs_is_rejected(folder: Path, seal: Any) -> None:
    (folder / "model.onnx").write_bytes(mapped_model().SerializeToString())
    with pytest.raises(ArtifactError, match="evidence") as rejection:
        Classifier.open(seal(folder))
    assert rejection.value.code == "spec_mismatch"


def test_outputs_that_are_not_in_the_manifest_are_rejected(folder: Path, seal: Any) -> None:
    held = json.loads((folder / "manifest.json").read_text())
    with pytest.raises(ArtifactError) as rejection:
        Classifier.open(seal(folder, outputs=held["outputs"][:2]))
    assert rejection.value.code == "spec_mismatch"


# Device mode


def test_an_output_line_has_maps_on_request(classifier: Classifier, photo: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(photo)
    picture = read_picture(str(tmp_path / "photo.png"), 2**24)
    line = json.loads(json.dumps(answer(classifier, picture, 2, explain=True)))
    [explanation] = classifier.explain([photo], top_k=2)
    assert line["explanation"] == {"method": "cam", "region": pytest.approx(list(explanation.region))}
    for each, evidence_hw in zip(line["predictions"], explanation.evidence_Khw, strict=True):
        np.testing.assert_array_equal(np.float32(each["evidence"]), evidence_hw)
    plain = answer(classifier, picture, 2)
    assert "explanation" not in plain
    assert "evidence" not in plain["predictions"][0]


def test_without_maps_the_output_line_has_only_predictions(artifact_template: Path, photo: bytes) -> None:
    line = answer(Classifier.open(artifact_template), Picture({"frame": 1}, photo), 1, explain=True)
    assert line["predictions"][0].keys() == {"label", "probability", "index"}
    assert "explanation" not in line


def test_predict_explain_prints_maps(explaining_template: Path, tmp_path: Path, photo: bytes, run: Any) -> None:
    (tmp_path / "photo.png").write_bytes(photo)
    code, out, _ = run("predict", explaining_template, tmp_path / "photo.png", "--json", "--explain", "--top-k", "1")
    assert code == 0
    line = json.loads(out)
    assert np.shape(line["predictions"][0]["evidence"]) == (ROWS, COLUMNS)
    assert line["explanation"]["method"] == "cam"


def test_predict_explain_needs_an_artifact_with_maps(
    artifact_template: Path, explaining_template: Path, tmp_path: Path, photo: bytes, run: Any
) -> None:
    (tmp_path / "photo.png").write_bytes(photo)
    code, out, err = run("predict", artifact_template, tmp_path / "photo.png", "--json", "--explain")
    assert (code, out) == (1, "")
    assert "[explain_not_available]" in err
    code, _, err = run("predict", explaining_template, tmp_path / "photo.png", "--explain")
    assert code == 2
    assert "--json" in err


def test_a_camera_frame_has_a_region(classifier: Classifier, photo: bytes) -> None:
    with Image.open(io.BytesIO(photo)) as picture:
        line = answer(classifier, Picture({"frame": 0}, picture.convert("RGB")), 1, explain=True)
    assert line["explanation"]["region"] == pytest.approx(list(region_of(photo, classifier.manifest.preprocess)))


# The distance of the features


def test_images_of_another_kind_have_a_larger_distance(classifier: Classifier, explaining_template: Path) -> None:
    features = read_features(classifier.artifact)
    assert features is not None
    samples = sorted((explaining_template / "golden").glob("*.jpg"))
    usual_NC = np.concatenate([classifier.run(classifier.pixels(p.read_bytes())[None]).embedding_NC for p in samples])  # type: ignore[misc]
    white_NC = classifier.run(np.full((1, *SIZE, 3), 255, np.uint8)).embedding_NC
    assert white_NC is not None
    assert np.sqrt(np.square(features.distance(usual_NC)).mean()) == pytest.approx(1, abs=0.02)
    assert features.distance(white_NC)[0] > 2


def test_rounding_of_a_constant_feature_is_a_small_distance(folder: Path, seal: Any) -> None:
    held = json.loads((folder / "embedding.json").read_text())
    held["variance"][0] = 0.0
    (folder / "embedding.json").write_text(json.dumps(held))
    features = read_features(Classifier.open(seal(folder)).artifact)
    assert features is not None
    off_NC = (features.mean_C + [1e-3, 0, 0])[None]
    assert features.distance(off_NC)[0] < 0.1


def test_drift_has_the_distance_of_every_image(classifier: Classifier, photo: bytes) -> None:
    drift = drift_of(classifier)
    pixels_HW3 = classifier.pixels(photo)
    outputs = classifier.run(pixels_HW3[None])
    assert outputs.embedding_NC is not None
    for _ in range(BATCH + 3):
        drift.observe(pixels_HW3, outputs.probabilities_NK[0], embedding_C=outputs.embedding_NC[0])
    features = read_features(classifier.artifact)
    assert features is not None
    found = drift.snapshot()["statistics"]["embedding"]
    assert found["count"] == BATCH + 3
    assert found["mean"] == pytest.approx(features.distance(outputs.embedding_NC)[0], rel=1e-6)
    assert found["variance"] == pytest.approx(0, abs=1e-9)


def test_a_variant_without_features_has_no_distances_and_can_be_compared(classifier: Classifier, photo: bytes) -> None:
    drift = drift_of(classifier)
    pixels_HW3 = classifier.pixels(photo)
    drift.observe(pixels_HW3, classifier.probabilities(pixels_HW3[None])[0])
    found = drift.snapshot()
    assert found["statistics"]["embedding"]["count"] == 0
    reference = drift_of(classifier)
    for _ in range(9):
        outputs = classifier.run(pixels_HW3[None])
        assert outputs.embedding_NC is not None
        reference.observe(pixels_HW3, outputs.probabilities_NK[0], embedding_C=outputs.embedding_NC[0])
    distances = distance(found, reference.snapshot())
    assert "embedding" not in distances
    assert distances["brightness"]["count"] == 1


def test_an_artifact_without_features_has_no_distances(artifact_template: Path) -> None:
    classifier = Classifier.open(artifact_template)
    assert read_features(classifier.artifact) is None
    assert "embedding" not in drift_of(classifier).snapshot()["statistics"]


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "edgeline.embedding/9"},
        {"mean": [0.0, 0.0]},
        {"variance": [1.0, -1.0, 1.0]},
        {"variance": [1.0, None, 1.0]},
        {"mean": [1e400, 0.0, 0.0]},
        {"mean": [10**400, 0, 0]},
        {"mean": "three"},
        {"schema": "x" * 10_000},
    ],
    ids=["another schema", "too few", "negative", "null", "infinite", "beyond any double", "text", "a long schema"],
)
def test_invalid_features_are_rejected(folder: Path, seal: Any, change: dict[str, Any]) -> None:
    held = json.loads((folder / "embedding.json").read_text()) | change
    (folder / "embedding.json").write_text(json.dumps(held))
    with pytest.raises(ArtifactError, match=r"embedding\.json cannot be read") as rejection:
        Classifier.open(seal(folder))
    assert rejection.value.code == "features_invalid"
    assert "\n" not in str(rejection.value)
    assert len(str(rejection.value)) < 400


ODD_OUTPUTS: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "a shape that is a number": lambda outputs: outputs[2].update(shape=4),
    "no shape": lambda outputs: outputs[2].update(shape=None),
    "nothing behind the batch": lambda outputs: outputs[2].update(shape=["batch"]),
    "one place too few": lambda outputs: outputs[2].update(shape=["batch", 4, 12]),
    "dimensions that are not numbers": lambda outputs: outputs[2].update(shape=["batch", 4, "h", "w"]),
    "another number of classes": lambda outputs: outputs[2].update(shape=["batch", 5, 3, 4]),
    "a flag": lambda outputs: outputs[3].update(shape=["batch", True]),
    "evidence alone": lambda outputs: outputs.pop(3),
    "embedding alone": lambda outputs: outputs.pop(2),
}


@pytest.mark.parametrize("change", ODD_OUTPUTS.values(), ids=ODD_OUTPUTS)
def test_invalid_output_shapes_are_rejected_with_one_line(
    folder: Path, seal: Any, change: Callable[[list[dict[str, Any]]], object]
) -> None:
    outputs = json.loads((folder / "manifest.json").read_text())["outputs"]
    change(outputs)
    with pytest.raises(ArtifactError, match="evidence") as rejection:
        Classifier.open(seal(folder, outputs=outputs))
    assert rejection.value.code == "spec_mismatch"
    assert "\n" not in str(rejection.value)


def test_maps_that_are_not_finite_are_an_error(folder: Path, seal: Any) -> None:
    def only_where_it_is_white(model: onnx.ModelProto) -> None:
        """0 / 0 for white pixels, which no golden sample has."""
        last = next(each for each in model.graph.node if each.name == "explain.evidence")
        last.output[0] = "sound"
        model.graph.node.extend(
            [
                helper.make_node("ReduceMean", ["levels"], ["level"], keepdims=1, axes=[1, 2, 3]),
                helper.make_node("Sub", ["level", "white"], ["short"]),
                helper.make_node("Div", ["short", "short"], ["one"]),
                helper.make_node("Mul", ["sound", "one"], ["evidence"]),
            ]
        )
        model.graph.initializer.append(numpy_helper.from_array(np.array(255, np.float32), "white"))

    model = add_outputs(mapped_model(), *SIZE)
    only_where_it_is_white(model)
    classifier = Classifier.open(explain_itself(folder, seal, model))
    white_1HW3 = np.full((1, *SIZE, 3), 255, np.uint8)
    assert np.isfinite(classifier.probabilities(white_1HW3)).all()
    with pytest.raises(ArtifactError, match="not finite") as rejection:
        classifier.run(white_1HW3, explain=True)
    assert rejection.value.code == "model_output_not_finite"
