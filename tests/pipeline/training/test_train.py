import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeline.pipeline.config import TrainConfig
from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.data.stress_images import check_preprocessing
from edgeline.pipeline.evaluation.evaluate import compute_logits
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.checkpoint import load_checkpoint, read_settings
from edgeline.pipeline.runs.run import Run
from edgeline.pipeline.training.train import CALIBRATION, build_checkpoint, class_weights, train
from edgeline.serve.errors import DataError, TrainingError
from edgeline.serve.preprocess import PreprocessSpec

CPU = torch.device("cpu")
FILES = ["calibration.npz", "checkpoint.json", "checkpoint.safetensors", "preprocessing_fingerprint.npz"]


def without(prepared: Prepared, split: str, *labels: str) -> Prepared:
    kept = tuple(s for s in prepared.samples if s.split != split or s.label not in labels)
    return replace(prepared, samples=kept)


def counted(prepared: Prepared, *counts: int) -> Prepared:
    """As many training images of each class; they may be the same ones."""
    train = [s for index, count in enumerate(counts) for s in [prepared.of("train")[12 * index]] * count]
    return replace(prepared, samples=(*train, *prepared.of("val")))


WEIGHINGS: dict[Literal["sqrt", "balanced"], float] = {"balanced": 4, "sqrt": 2}


@pytest.mark.parametrize(("weighing", "ratio"), WEIGHINGS.items())
def test_a_rare_class_counts_for_more_and_an_image_for_one_on_average(
    shapes: Prepared, weighing: Literal["sqrt", "balanced"], ratio: float
) -> None:
    weights_K = class_weights(counted(shapes, 8, 4, 2), TrainConfig(class_weights=weighing))
    assert (weights_K[2] / weights_K[0]).item() == pytest.approx(ratio)
    assert (weights_K * torch.tensor([8, 4, 2])).sum().item() == pytest.approx(14)


def test_every_class_can_count_alike(shapes: Prepared) -> None:
    assert class_weights(counted(shapes, 8, 4, 2), TrainConfig(class_weights="none")).tolist() == [1, 1, 1]


UNUSABLE = {
    "no training image of a class": ("train", ("disc",), "no training image of disc; every class needs one", "empty_class"),
    "none of two": ("train", ("disc", "stripes"), "no training image of disc, stripes", "empty_class"),
    "one class in validation": ("val", ("disc", "frame"), "larger prepare.val_share", "one_class_fold"),
    "no validation": ("val", ("disc", "frame", "stripes"), "fewer than two classes", "one_class_fold"),
}


@pytest.mark.parametrize(("split", "labels", "message", "code"), UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("strategy", ["head", "full"])
def test_data_that_cannot_be_learned_from_is_refused_before_anything_is_done(
    strategy: str,
    split: str,
    labels: tuple[str, ...],
    message: str,
    code: str,
    shapes: Prepared,
    small: Network,
    spec: PreprocessSpec,
    tmp_path: Path,
) -> None:
    config, prepared = TrainConfig(strategy=strategy), without(shapes, split, *labels)
    with pytest.raises(DataError, match=message) as refusal:
        train(small, spec, prepared, config, seed=0, folder=tmp_path, cache=tmp_path / "cache", device=CPU)
    assert refusal.value.code == code
    assert list(tmp_path.iterdir()) == []


REMEDIES = {"head": "a batch of 8 images does not fit into memory; take a smaller model", "full": "a batch of 16 .* to 8 say"}


@pytest.mark.parametrize(("strategy", "message"), REMEDIES.items())
def test_running_out_of_memory_says_what_helps_the_strategy(
    strategy: str, message: str, shapes: Prepared, small: Network, spec: PreprocessSpec, tmp_path: Path
) -> None:
    def run_out(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > 1:  # a stand-in: to fill this machine's memory would hit its other users
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    small.backbone.register_forward_pre_hook(run_out)
    config = TrainConfig(strategy=strategy, batch_size=16)
    with pytest.raises(TrainingError, match=message) as refusal:
        train(small, spec, shapes, config, seed=0, folder=tmp_path, cache=tmp_path / "cache", device=CPU)
    assert refusal.value.code == "out_of_memory"


@pytest.mark.parametrize("strategy", ["head", "full", "differential", "gradual"])
def test_every_strategy_leaves_a_network_ready_for_use(
    strategy: str, shapes: Prepared, small: Network, spec: PreprocessSpec, tmp_path: Path
) -> None:
    config = TrainConfig(strategy=strategy, epochs=1)
    course = train(small, spec, shapes, config, seed=0, folder=tmp_path, cache=tmp_path / "cache", device=CPU)
    assert not any(module.training for module in small.modules())
    assert small.classifier.weight.abs().sum() > 0
    assert (len(course.history), course.best_epoch, course.val_logits_NK.shape) == (1, 1, (12, 3))
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_a_checkpoint_holds_all_that_the_later_steps_need_and_no_pickle(trained_run: Run, shapes: Prepared) -> None:
    folder = trained_run.step("train")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    held = read_settings(folder)
    assert (held.model, held.weights, held.labels, held.strategy) == ("efficientnet_lite0", "imagenet", shapes.labels, "head")
    assert 1 <= held.best_epoch <= len(held.history)
    assert held.versions["torch"] == torch.__version__.split("+")[0] or held.versions["torch"] == torch.__version__
    assert check_preprocessing(folder / "preprocessing_fingerprint.npz", held.preprocess) == 0
    with np.load(folder / CALIBRATION, allow_pickle=False) as calibration:
        assert calibration["logits"].shape == (12, 3)
        assert calibration["targets"].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_what_it_learned_holds_on_pictures_it_has_not_seen(trained_run: Run, shapes: Prepared) -> None:
    network, checkpoint = load_checkpoint(trained_run.step("train"))
    called_N = compute_logits(network, shapes.of("test"), checkpoint.preprocess, CPU).argmax(1)
    assert (called_N == np.array([sample.index for sample in shapes.of("test")])).mean() >= 0.75  # a third by chance


def test_the_same_run_gives_the_same_checkpoint_to_the_bit(
    trained_run: Run, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    again = make_run(tmp_path)
    shutil.copytree(trained_run.config.cache, again.config.cache)  # the backbone's features, which take most of the time
    again.step("train").mkdir()
    build_checkpoint(again, again.step("train"))
    for name in ("checkpoint.safetensors", "checkpoint.json", CALIBRATION):
        assert (again.step("train") / name).read_bytes() == (trained_run.step("train") / name).read_bytes()


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
    strategy: str, shapes: Prepared, lite0: Network, spec: PreprocessSpec, tmp_path: Path
) -> None:
    config, gpu = TrainConfig(strategy=strategy, epochs=2), torch.device("cuda")
    train(lite0, spec, shapes, config, seed=0, folder=tmp_path, cache=tmp_path / "cache", device=gpu)
    assert {parameter.device.type for parameter in lite0.parameters()} == {"cpu"}
    assert np.isfinite(compute_logits(lite0, shapes.of("val"), spec, CPU)).all()
