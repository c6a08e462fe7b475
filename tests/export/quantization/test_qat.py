"""A small network like MobileNet on crops of the shared photos, with one channel so large that rounding does harm."""

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from torch import Tensor, nn

from edgeline.export.graph.to_onnx import CalibratedModel, GraphOptions, export
from edgeline.export.parity.compare import Outputs, run_session
from edgeline.export.parity.similarity import compare_outputs, sqnr_db
from edgeline.export.quantization import search
from edgeline.export.quantization.fake_quant import as_in_file, read_layers, simulate
from edgeline.export.quantization.qat import Tuning, tune
from edgeline.export.quantization.report import QatReport
from edgeline.export.quantization.search import Choice, SearchRequest, SearchStage, choose_int8, search_schedule
from edgeline.export.quantization.static_int8 import (
    Quantizable,
    Ranges,
    Recipe,
    input_means,
    make_ready,
    measure_ranges,
    quantize,
)
from edgeline.pipeline.config import ExportConfig
from edgeline.pipeline.data.samples import Sample, stream_pixels
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.pretrained import Normalization
from edgeline.pipeline.thresholds import Int8Thresholds
from edgeline.serve.errors import ExportError, TrainingError
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.session import create_session

SPEC = PreprocessSpec(height=32, width=32, crop_fraction=1.0)
PLANTED = 24.0
RECIPE = Recipe(per_channel=False)
"""One scale for all channels: the large channel leaves few of the 256 values to the others."""


class Residual(nn.Module):
    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
        layers += [nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
        layers += [nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def samples(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Crops of the photos: 6 of each, in an order that mixes the classes."""
    folder = tmp_path_factory.mktemp("pieces")
    found = []
    for number, path in enumerate(sorted(photos.rglob("*.*"))):
        with Image.open(path) as image:
            image.thumbnail((120, 120))
            for piece in range(6):
                left, upper = 40 * (piece % 2), 25 * (piece // 2)
                name = folder / f"{number}-{piece}.png"
                image.convert("RGB").crop((left, upper, left + 48, upper + 48)).save(name)
                sha256 = hashlib.sha256(name.read_bytes()).hexdigest()
                about: dict[str, Any] = {"label": "", "index": 0, "split": "train", "group": "", "pixels": "", "width": 48}
                found.append(Sample(path=str(name), sha256=sha256, height=48, **about))
    return sorted(found, key=lambda sample: sample.sha256)


@pytest.fixture(scope="module")
def pixels(samples: list[Sample]) -> np.ndarray:
    """Figures on images that are not used for tuning or calibration."""
    return next(stream_pixels(samples[-64:], SPEC, 64))


@dataclass(frozen=True)
class Case:
    deployed: CalibratedModel
    reference: bytes
    ready: Quantizable
    ranges: Ranges
    means: dict[str, np.ndarray]
    tuning: Tuning

    def int8(self, recipe: Recipe) -> bytes:
        return quantize(self.ready, self.ranges, recipe, self.means if recipe.correct_bias else None)

    def tuned(self, epochs: int) -> tuple[bytes, QatReport]:
        tuned = tune(self.tuning, self.ready, self.int8(replace(RECIPE, correct_bias=True)), epochs)
        return quantize(tuned.ready, self.ranges, RECIPE), tuned.report


def small_network(pixels: np.ndarray) -> Network:
    """Untrained, but its logits differ between images, as those of a trained network do."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), Residual(16, 48), Residual(16, 48)]
    layers += [nn.Conv2d(16, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = Network(nn.Sequential(*layers), 64, 10, 0.0, Normalization((127.0,) * 3, (128.0,) * 3))
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None  # the mean over all batches
    with torch.no_grad():
        logits_NK = network(torch.from_numpy(pixels))
        network.eval()
        network.head[1].weight *= 3 / logits_NK.std(0).mean()  # type: ignore[operator]
        network.head[1].bias -= network(torch.from_numpy(pixels)).mean(0)  # type: ignore[operator]
        # One depthwise channel is scaled up and the next layer scales it back: the same network, harder to round.
        _, _, _, depthwise, norm, _, after, _ = network.backbone[3].layers  # type: ignore[index, union-attr, misc]
        norm.weight[5] *= PLANTED
        norm.bias[5] *= PLANTED
        after.weight[:, 5] /= PLANTED
    return network


@pytest.fixture(scope="module")
def case(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Case:
    train = samples[:-64]
    deployed = CalibratedModel(small_network(next(stream_pixels(train, SPEC, 64))), 1.3)
    path = tmp_path_factory.mktemp("small") / "model.onnx"
    export(deployed, SPEC, path, GraphOptions(classes=10, opset=18))
    ready = make_ready(path.read_bytes())
    calibration = train[:24]
    ranges = measure_ranges(ready, stream_pixels(calibration, SPEC, 8))
    means = input_means(ready, stream_pixels(calibration, SPEC, 8))
    # A network of few layers tolerates a larger rate.
    tuning = Tuning(reference=path.read_bytes(), deployed=deployed, spec=SPEC, samples=train, learning_rate=1e-3)
    return Case(deployed, path.read_bytes(), ready, ranges, means, tuning)


def outputs(model: bytes, pixels: np.ndarray) -> Outputs:
    return run_session(create_session(model), list(pixels), 32)


def weights(model: bytes) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_model_from_string(model).graph.initializer}


RECIPES = {
    "a scale a channel": Recipe(),
    "one scale": Recipe(per_channel=False),
    "7 bits": Recipe(reduce_range=True),
    "signed activations": Recipe(activations="int8"),
    "corrected biases": Recipe(correct_bias=True),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_simulation_equals_the_runtime_on_the_int8_file(case: Case, pixels: np.ndarray, recipe: Recipe) -> None:
    int8 = case.int8(recipe)
    layers = read_layers(case.ready.model, int8)
    network = as_in_file(case.deployed, SPEC, case.ready, layers, pixels[:8])
    simulate(network, layers, pixels[:8])
    with torch.inference_mode():
        simulated_NK = network(torch.from_numpy(pixels)).numpy() / case.deployed.temperature
    observed_NK = outputs(int8, pixels).logits_NK
    expected_NK = outputs(case.reference, pixels).logits_NK
    alike, lost = sqnr_db(observed_NK, simulated_NK), sqnr_db(expected_NK, observed_NK)
    assert alike > 30
    assert alike > lost + 10


@pytest.fixture(scope="module")
def tuned(case: Case) -> tuple[bytes, QatReport]:
    return case.tuned(epochs=4)


@pytest.mark.long
def test_tuning_recovers_what_rounding_loses_in_a_few_dozen_steps(
    case: Case, tuned: tuple[bytes, QatReport], pixels: np.ndarray
) -> None:
    int8, report = tuned
    expected = outputs(case.reference, pixels)
    untuned = [case.int8(replace(RECIPE, correct_bias=corrected)) for corrected in (False, True)]
    before_db = max(compare_outputs(expected, outputs(model, pixels)).sqnr_db for model in untuned)
    assert before_db < 15
    assert compare_outputs(expected, outputs(int8, pixels)).sqnr_db > before_db + 3
    assert report.losses[-1] < report.losses[0] / 2
    assert (report.epochs, report.images) == (4, len(case.tuning.samples))


def test_the_same_seed_tunes_to_the_same_bytes(case: Case) -> None:
    assert case.tuned(epochs=1)[0] == case.tuned(epochs=1)[0]


@pytest.mark.long
def test_tuning_changes_neither_the_float_file_nor_the_network(case: Case) -> None:
    state = {name: tensor.clone() for name, tensor in case.deployed.state_dict().items()}
    before = case.ready.model.SerializeToString(deterministic=True)
    case.tuned(epochs=1)
    assert case.ready.model.SerializeToString(deterministic=True) == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in case.deployed.state_dict().items())


def test_a_loss_that_is_not_finite_stops_tuning_with_what_to_do(case: Case) -> None:
    spoilt = replace(case.tuning, learning_rate=float("inf"))
    with pytest.raises(TrainingError, match="the loss became nan in epoch 1; set export.qat_epochs=0") as caught:
        tune(spoilt, case.ready, case.int8(RECIPE), 1)
    assert caught.value.code == "loss_not_finite"


def test_a_network_that_is_not_the_file_is_not_tuned(case: Case, samples: list[Sample]) -> None:
    other = CalibratedModel(small_network(next(stream_pixels(samples[:64], SPEC, 64))), case.deployed.temperature * 1.01)
    with pytest.raises(ExportError, match=r"does not compute what the ONNX file does \(SQNR 40 dB, at least 60 expected"):
        tune(replace(case.tuning, deployed=other), case.ready, case.int8(RECIPE), 1)


def test_a_layer_that_the_network_lacks_is_named(case: Case) -> None:
    network = Network(
        nn.Sequential(*list(case.deployed.network.backbone)[:4]), 16, 10, 0.0, Normalization((127.0,) * 3, (128.0,) * 3)
    )  # type: ignore[arg-type]
    other = CalibratedModel(network.eval(), 1.0)
    with pytest.raises(ExportError, match=r"network.backbone.4.layers.0.weight of the ONNX file is not in the network"):
        tune(replace(case.tuning, deployed=other), case.ready, case.int8(RECIPE), 1)


def test_a_rounded_sum_is_rounded_for_its_shortcut_too(case: Case, pixels: np.ndarray) -> None:
    layers = read_layers(case.ready.model, case.int8(RECIPE))
    network = as_in_file(case.deployed, SPEC, case.ready, layers, pixels[:8])
    simulate(network, layers, pixels[:8])
    seen: dict[str, np.ndarray] = {}
    network.backbone[4].register_forward_pre_hook(lambda _, inputs: seen.update(sum=inputs[0].numpy()))  # type: ignore[index, operator]
    with torch.inference_mode():
        network(torch.from_numpy(pixels[:8]))
    assert len(np.unique(seen["sum"])) <= 256


STAGES = (SearchStage(name="quick", quick=True, recipes=(Recipe(),)), SearchStage(name="tuned", recipes=(Recipe(tuned=4),)))


def choose(case: Case, samples: list[Sample], tuning: Tuning | None, min_sqnr_db: float) -> Choice:
    thresholds = Int8Thresholds(min_sqnr_db=min_sqnr_db, min_agreement=0, min_clear_agreement=0, max_kl=9, max_difference=1)
    config = ExportConfig(calibration_images=24, min_speedup=0)
    fine_tune = partial(tune, tuning) if tuning else None
    return choose_int8(
        SearchRequest(
            reference=case.reference,
            spec=SPEC,
            train=case.tuning.samples,
            val=samples[-64:],
            config=config,
            thresholds=thresholds,
            tune=fine_tune,
        )
    )


@pytest.fixture
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "search_schedule", lambda _: STAGES)


@pytest.mark.long
@pytest.mark.usefixtures("short_search")
def test_the_search_tunes_where_nothing_else_passes(case: Case, samples: list[Sample]) -> None:
    choice = choose(case, samples, case.tuning, min_sqnr_db=17)
    assert [(entry.recipe, entry.holds) for entry in choice.report.tried] == [
        ("U8S8 channel minmax", False),
        ("U8S8 channel minmax tuned 4", True),
    ]
    assert choice.report.chosen == "U8S8 channel minmax tuned 4"
    assert choice.report.tuning is not None
    assert choice.report.tuning.epochs == 4
    assert choice.model is not None


@pytest.mark.usefixtures("short_search")
def test_the_search_does_not_tune_where_a_recipe_passes(case: Case, samples: list[Sample]) -> None:
    choice = choose(case, samples, case.tuning, min_sqnr_db=5)
    assert [entry.recipe for entry in choice.report.tried] == ["U8S8 channel minmax"]
    assert choice.report.tuning is None


@pytest.mark.usefixtures("short_search")
def test_without_the_network_nothing_is_tuned(case: Case, samples: list[Sample]) -> None:
    choice = choose(case, samples, None, min_sqnr_db=17)
    assert [entry.recipe for entry in choice.report.tried] == ["U8S8 channel minmax"]
    assert choice.model is None


@pytest.mark.usefixtures("short_search")
def test_tuning_that_fails_leaves_the_figures_of_what_was_tried_before(case: Case, samples: list[Sample]) -> None:
    choice = choose(case, samples, replace(case.tuning, learning_rate=float("inf")), min_sqnr_db=17)
    assert choice.model is None
    assert [entry.recipe for entry in choice.report.tried] == ["U8S8 channel minmax"]
    assert "at least 17 required; tuning for int8: the loss became nan in epoch 1" in str(choice.report.why)


def test_tuning_is_the_last_stage_of_the_search() -> None:
    assert search_schedule(ExportConfig(qat_epochs=3))[-1].name == "quantization-aware training"


def test_without_epochs_there_is_no_tuning_stage() -> None:
    names = [stage.name for stage in search_schedule(ExportConfig(qat_epochs=0, thorough=True))]
    assert "quantization-aware training" not in names
    assert len(names) == 4
