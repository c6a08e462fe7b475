import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.data.stress_images import check_preprocessing
from edgeline.pipeline.evaluation.evaluate import compute_logits
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.checkpoint import CALIBRATION, load_checkpoint, read_settings
from edgeline.pipeline.models.weights_file import LoadedWeights
from edgeline.pipeline.runs.run import Run
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training.class_weights import EXPONENTS, class_weights
from edgeline.pipeline.training.context import TrainingContext
from edgeline.pipeline.training.train import STRATEGIES, build_checkpoint, find_in_weights, train
from edgeline.serve.errors import DataError, TrainingError
from edgeline.serve.preprocess import PreprocessSpec
from tests.support.layer_training import save_teacher

CPU = torch.device("cpu")
FILES = [
    "calibration.npz",
    "checkpoint.json",
    "checkpoint.safetensors",
    "findings.json",
    "out_of_fold.npz",
    "preprocessing_fingerprint.npz",
]


@pytest.fixture(name="make_context")
def context_on_shapes(shapes: Prepared, spec: PreprocessSpec, tmp_path: Path) -> Callable[..., TrainingContext]:
    """`make_context(network, config, **changes)`: train a network on the shapes, in the test's folder."""

    def make(network: Network, config: TrainConfig, **changes: Any) -> TrainingContext:
        given = {"spec": spec, "prepared": shapes, "seed": 0, "folder": tmp_path, "cache": tmp_path / "cache", "device": CPU}
        return TrainingContext(network=network, config=config, **given | changes)

    return make


def without(prepared: Prepared, split: str, *labels: str) -> Prepared:
    kept = tuple(s for s in prepared.samples if s.split != split or s.label not in labels)
    return replace(prepared, samples=kept)


def counted(prepared: Prepared, *counts: int) -> Prepared:
    """A data set with these numbers of training images, which may repeat."""
    train = [s for index, count in enumerate(counts) for s in [prepared.of("train")[12 * index]] * count]
    return replace(prepared, samples=(*train, *prepared.of("val")))


WEIGHINGS: dict[Literal["sqrt", "balanced"], float] = {"balanced": 4, "sqrt": 2}


@pytest.mark.parametrize(("weighing", "ratio"), WEIGHINGS.items())
def test_a_rare_class_has_a_higher_weight_and_the_mean_weight_of_an_image_is_one(
    shapes: Prepared, weighing: Literal["sqrt", "balanced"], ratio: float
) -> None:
    weights_K = class_weights(counted(shapes, 8, 4, 2), TrainConfig(class_weights=weighing))
    assert (weights_K[2] / weights_K[0]).item() == pytest.approx(ratio)
    assert (weights_K * torch.tensor([8, 4, 2])).sum().item() == pytest.approx(14)


def test_every_setting_of_class_weights_is_implemented() -> None:
    assert EXPONENTS.keys() == set(get_args(TrainConfig.model_fields["class_weights"].annotation))


def test_classes_can_have_equal_weights(shapes: Prepared) -> None:
    assert class_weights(counted(shapes, 8, 4, 2), TrainConfig(class_weights="none")).tolist() == [1, 1, 1]


UNUSABLE = {
    "no training image of a class": ("train", ("disc",), "no training image of disc; every class needs one", "empty_class"),
    "none of two": ("train", ("disc", "stripes"), "no training image of disc, stripes", "empty_class"),
    "one class in validation": ("val", ("disc", "frame"), "or raise prepare.val_share", "one_class_fold"),
    "no validation": ("val", ("disc", "frame", "stripes"), "fewer than two classes", "one_class_fold"),
}


@pytest.mark.parametrize(("split", "labels", "message", "code"), UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("strategy", ["head", "full"])
def test_data_that_cannot_be_trained_on_is_rejected_before_training_starts(
    strategy: str,
    split: str,
    labels: tuple[str, ...],
    message: str,
    code: str,
    shapes: Prepared,
    small: Network,
    make_context: Callable[..., TrainingContext],
    tmp_path: Path,
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        make_context(small, TrainConfig(strategy=strategy), prepared=without(shapes, split, *labels))
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


REMEDIES = {
    "head": "a batch of 8 images does not fit into memory .*; choose a smaller model",
    "full": "a batch of 1 images does not fit into memory .*; choose a smaller model or a smaller preprocess.size",
}


@pytest.mark.parametrize(("strategy", "message"), REMEDIES.items())
def test_running_out_of_memory_names_a_remedy_that_suits_the_strategy(
    strategy: str, message: str, small: Network, make_context: Callable[..., TrainingContext]
) -> None:
    def run_out(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if (
            len(inputs[0]) > 1 if strategy == "head" else module.training
        ):  # a stand-in: to fill this machine's memory would hit its other users
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    small.backbone.register_forward_pre_hook(run_out)
    with pytest.raises(TrainingError, match=message) as caught:
        train(make_context(small, TrainConfig(strategy=strategy, batch_size=16)))
    assert caught.value.code == "out_of_memory"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_leaves_a_network_ready_for_use(
    strategy: str,
    small: Network,
    make_context: Callable[..., TrainingContext],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    teacher = save_teacher(small, ("disc", "frame", "stripes"), tmp_path_factory.mktemp("teacher") / "run")
    settings = {"partial": {"unfreeze": ["features.12"]}, "distill": {"teacher": (str(teacher),)}}.get(strategy, {})
    result = train(make_context(small, TrainConfig(strategy=strategy, epochs=1, views=0, **settings)))
    assert not any(module.training for module in small.modules())
    assert small.classifier.weight.abs().sum() > 0
    assert result.history.best_epoch >= 1
    assert result.calibration.logits_NK.shape in ((12, 3), (48, 3))  # of the validation images, or of every image
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_a_checkpoint_has_everything_that_later_steps_need_and_no_pickle(trained_run: Run, shapes: Prepared) -> None:
    folder = trained_run.step("train")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    checkpoint = read_settings(folder)
    assert (checkpoint.model, checkpoint.weights, checkpoint.labels, checkpoint.strategy) == (
        "efficientnet_lite0",
        "imagenet",
        shapes.labels,
        "head",
    )
    assert 1 <= checkpoint.best_epoch <= len(checkpoint.history)
    assert checkpoint.versions["torch"] == torch.__version__.split("+")[0] or checkpoint.versions["torch"] == torch.__version__
    assert check_preprocessing(folder / "preprocessing_fingerprint.npz", checkpoint.preprocess) == 0
    with np.load(folder / CALIBRATION, allow_pickle=False) as calibration:
        assert calibration["logits"].shape == (48, 3)
        assert calibration["targets"].tolist() == [sample.index for sample in (*shapes.of("train"), *shapes.of("val"))]


def test_a_trained_network_classifies_images_it_has_not_seen(trained_run: Run, shapes: Prepared) -> None:
    network, checkpoint = load_checkpoint(trained_run.step("train"))
    predicted_N = compute_logits(network, shapes.of("test"), checkpoint.preprocess, CPU).argmax(1)
    assert (predicted_N == np.array([sample.index for sample in shapes.of("test")])).mean() >= 0.75  # a third by chance


def test_the_same_run_gives_the_same_checkpoint_bit_for_bit(
    trained_run: Run, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    again = make_run(tmp_path)
    shutil.copytree(trained_run.config.cache, again.config.cache)  # the backbone's features, which take most of the time
    again.step("train").mkdir()
    build_checkpoint(again, again.step("train"))
    for name in ("checkpoint.safetensors", "checkpoint.json", CALIBRATION):
        assert (again.step("train") / name).read_bytes() == (trained_run.step("train") / name).read_bytes()


@pytest.mark.long
def test_another_seed_gives_another_checkpoint(trained_run: Run, make_run: Callable[..., Run], tmp_path: Path) -> None:
    other = make_run(tmp_path, seed=1)
    shutil.copytree(trained_run.config.cache, other.config.cache)
    other.step("train").mkdir()
    build_checkpoint(other, other.step("train"))
    weights = [load_checkpoint(run.step("train"))[0].classifier.weight for run in (trained_run, other)]
    assert not torch.equal(*weights)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("strategy", ["head", "gradual"])
def test_a_network_trained_on_a_gpu_ends_on_the_cpu(
    strategy: str, lite0: Network, shapes: Prepared, spec: PreprocessSpec, make_context: Callable[..., TrainingContext]
) -> None:
    train(make_context(lite0, TrainConfig(strategy=strategy, epochs=2), device=torch.device("cuda")))
    assert {parameter.device.type for parameter in lite0.parameters()} == {"cpu"}
    assert np.isfinite(compute_logits(lite0, shapes.of("val"), spec, CPU)).all()


@pytest.mark.long
def test_random_weights_depend_on_the_seed_alone(make_run: Callable[..., Run], tmp_path: Path) -> None:
    weights = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(100 + number)  # whatever happened earlier in the process
        run = make_run(tmp_path / str(number), model="timm:test_efficientnet", weights="none", seed=seed, train={"epochs": 1})
        run.step("train").mkdir()
        build_checkpoint(run, run.step("train"))
        network, _ = load_checkpoint(run.step("train"))
        weights.append(network.state_dict())
    first, same, other = ({name: tensor for name, tensor in each.items() if tensor.is_floating_point()} for each in weights)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_weights_of_a_file_are_a_finding_and_a_warning_if_wrappings_were_undone() -> None:
    """F14."""
    plain = LoadedWeights(path="w.pth", matched=9, total=11, unused=2, container="", prefix="", others=())
    wrapped = replace(plain, container="state_dict", prefix="module.")
    assert find_in_weights(None) == []
    assert [found.level for found in find_in_weights(plain)] == ["note"]
    [found] = find_in_weights(wrapped)
    assert (found.level, found.message) == (
        "warning",
        "Weights w.pth: 9 of 11 tensors loaded, from its state_dict, without the prefix 'module.'.",
    )
