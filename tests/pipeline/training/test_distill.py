import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.data.validation import pixel_digest
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.weights import external_files
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training.context import HeldOutLogits, TrainingContext
from edgeline.pipeline.training.fine_tuning.teachers import Teacher, Teachers
from edgeline.pipeline.training.strategies import distill, lp_ft
from edgeline.serve.errors import ConfigError
from tests.support.layer_training import SPEC, save_teacher

LABELS = ("disc", "frame", "stripes")


def make_context(network: Network, prepared: Prepared, folder: Path, **settings: Any) -> TrainingContext:
    config = {"strategy": "distill", "epochs": 2, "batch_size": 12, "views": 0, "refit": False} | settings
    return TrainingContext(
        network=network,
        spec=SPEC,
        prepared=prepared,
        config=TrainConfig(**config),
        seed=1,
        folder=folder,
        cache=folder / "cache",
        device=torch.device("cpu"),
    )


@pytest.fixture(name="teacher", scope="module")
def folder_of_a_teacher(small_template: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a network that calls everything a frame, with the classes in another order than the data's."""
    network = copy.deepcopy(small_template)
    with torch.no_grad():
        network.classifier.bias.copy_(torch.tensor([0.0, 0.0, 30.0]))
    return save_teacher(network, ("stripes", "disc", "frame"), tmp_path_factory.mktemp("teacher") / "run")


@pytest.mark.long
def test_a_student_learns_the_answers_of_its_teacher_and_not_the_labels(
    teacher: Path, small: Network, shapes: Prepared, tmp_path: Path
) -> None:
    settings = {"teacher": (str(teacher),), "teacher_share": 1.0, "learning_rate": 3e-3, "epochs": 1, "batch_size": 2}
    result = distill.fit(make_context(small, shapes, tmp_path, **settings))
    assert set(result.calibration.logits_NK.argmax(1)) == {LABELS.index("frame")}


@pytest.mark.long
def test_with_a_share_of_zero_the_student_learns_the_labels_as_without_a_teacher(
    teacher: Path, small: Network, shapes: Prepared, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    twin = copy.deepcopy(small)
    distill.fit(make_context(small, shapes, tmp_path / "one", teacher=(str(teacher),), teacher_share=0.0))
    plain = make_context(twin, shapes, tmp_path / "two", strategy="lp-ft")
    lp_ft.fit(plain)
    for one, other in zip(small.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def teachers(network: Network, folder: Path, *more: Network, temperature: float = 1.0) -> Teachers:
    return Teachers(
        teachers=[Teacher(network=net, spec=SPEC) for net in (network, *more)],
        temperature=temperature,
        alpha=0.5,
        unlabeled=[],
        student=SPEC,
        cache=ContentCache(folder / "teachers.sqlite"),
    )


def with_bias(network: Network, *bias: float) -> Network:
    copied = copy.deepcopy(network)
    with torch.no_grad():
        copied.classifier.bias.copy_(torch.tensor(bias))
    return copied


def test_several_teachers_teach_their_mean_at_the_temperature(small: Network, shapes: Prepared, tmp_path: Path) -> None:
    given = teachers(with_bias(small, 4, 0, 0), tmp_path, with_bias(small, 0, 0, 2), temperature=2.0)
    taught = given.probabilities(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), shapes.samples[:1], "view")
    expected = (torch.softmax(torch.tensor([2.0, 0, 0]), 0) + torch.softmax(torch.tensor([0, 0, 1.0]), 0)) / 2
    torch.testing.assert_close(taught[0], expected, atol=1e-4, rtol=0)


def test_answers_are_cached_by_image_view_and_teacher(small: Network, shapes: Prepared, tmp_path: Path) -> None:
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts.append(len(inputs[0]))

    small.backbone.register_forward_pre_hook(count)
    pixels, samples = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8), shapes.samples[:3]
    given = teachers(small, tmp_path)
    first = given.probabilities(pixels[:2], samples[:2], "1")
    assert torch.equal(given.probabilities(pixels, samples, "1")[:2], first)
    given.probabilities(pixels[:2], samples[:2], "2")
    teachers(with_bias(small, 1, 0, 0), tmp_path).probabilities(pixels[:1], samples[:1], "1")
    assert counts == [2, 1, 2, 1]


def test_the_loss_is_that_of_hinton_et_al(small: Network, tmp_path: Path) -> None:
    given = teachers(small, tmp_path, temperature=3.0)
    logits, taught = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[0.2, 0.5, 0.3]])
    student = torch.softmax(logits / 3, 1)
    divergence = (taught * (taught / student).log()).sum()
    expected = 0.5 * torch.tensor(0.7) + 0.5 * 9 * divergence / 4
    torch.testing.assert_close(given.blend(torch.tensor(0.7), logits, taught, images=4), expected)


@pytest.mark.long
def test_photos_without_labels_are_learned_from_except_copies_of_held_out_images(
    teacher: Path, small: Network, shapes: Prepared, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(3):
        noise = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(noise).resize((80, 64)).save(photos / "deep" / f"{number}.png")
    shutil.copy(shapes.of("test")[0].path, photos / "copy.png")
    Image.open(shapes.of("val")[0].path).resize((160, 128)).save(photos / "enlarged.png")
    (photos / "broken.jpg").write_bytes(b"no image")
    seen: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            seen.append(len(inputs[0]))

    small.backbone.register_forward_pre_hook(count)
    settings = {"teacher": (str(teacher),), "unlabeled": str(photos), "epochs": 1}
    digest = pixel_digest(Image.open(shapes.of("test")[0].path))
    samples = tuple(replace(s, pixels=digest if s == shapes.of("test")[0] else s.sha256) for s in shapes.samples)
    result = distill.fit(make_context(small, replace(shapes, samples=samples), tmp_path, **settings))
    assert sum(seen) == len(shapes.of("train")) + 3
    message = next(finding.message for finding in result.findings if finding.code == "unlabeled_photos")
    assert "3 photos of" in message
    assert "left out: 1 that cannot be read, 1 that are copies, 1 that are nearly the same" in message


def held_out(correct: list[int]) -> HeldOutLogits:
    logits = np.zeros((len(correct), 2), np.float32)
    logits[np.arange(len(correct)), 1 - np.array(correct)] = 1
    return HeldOutLogits(logits_NK=logits, targets_N=np.zeros(len(correct), int), images=[str(n) for n in range(len(correct))])


@pytest.mark.parametrize(
    ("before", "after", "verdict", "level"),
    [
        ([1] * 60 + [0] * 40, [1] * 80 + [0] * 20, "+20.0 points, 95 % interval +12.2 to +27.8: a gain.", "note"),
        ([1] * 60 + [0] * 40, [1] * 62 + [0] * 38, "no clear difference.", "warning"),
        ([1] * 60 + [0] * 40, [1] * 30 + [0] * 70, "a loss.", "warning"),
    ],
)
def test_a_gain_is_reported_only_if_its_interval_excludes_zero(
    before: list[int], after: list[int], verdict: str, level: str
) -> None:
    finding = distill.compare_with_head(held_out(before), held_out(after))
    assert finding.message.endswith(verdict)
    assert finding.level == level


def test_a_teacher_for_other_classes_is_an_error_before_training(small: Network, shapes: Prepared, tmp_path: Path) -> None:
    teacher = save_teacher(small, ("disc", "frame", "spiral"), tmp_path / "other")
    with pytest.raises(ConfigError, match="classifies 3 classes, the data has 3; they differ in spiral, stripes") as caught:
        distill.fit(make_context(small, shapes, tmp_path, teacher=(str(teacher),)))
    assert caught.value.code == "teacher_mismatch"


def test_a_folder_without_a_checkpoint_is_no_teacher(tmp_path: Path) -> None:
    config = load_config(None, ["train.strategy=distill", f'train.teacher=["{tmp_path}"]'])
    with pytest.raises(ConfigError, match="contains no trained network; expected the folder of a trained run"):
        external_files(config)


def test_another_checkpoint_of_the_teacher_or_another_photo_trains_again(teacher: Path, small: Network, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"1")
    settings = ["train.strategy=distill", f'train.teacher=["{teacher}"]', f"train.unlabeled={tmp_path}"]
    config = load_config(None, settings)
    before = external_files(config)
    assert external_files(config) == before
    (tmp_path / "photo.jpg").write_bytes(b"12")
    after = external_files(config)
    assert {name for name in before if before[name] != after[name]} == {"unlabeled"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.strategy=distill"], "needs one to learn from in teacher"),
        (["train.strategy=lp-ft", 'train.teacher=["resnet18"]'], "are settings of strategy=distill"),
        (["train.strategy=distill", 'train.teacher=["resnet18"]', "train.mixup=0.2"], "remove mixup"),
        (
            [
                "train.strategy=distill",
                'train.teacher=["resnet18"]',
                "train.unlabeled=more",
                "train.sampling=balanced",
                "train.class_weights=none",
            ],
            "needs a label for each image",
        ),
        (["train.strategy=head", "train.processes=2"], "trains no layers and uses one process"),
        (["train.strategy=scratch", "train.processes=2"], "learns the statistics of batch norms"),
    ],
)
def test_contradicting_settings_are_rejected(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, settings)


@pytest.mark.long
def test_a_backbone_by_name_gets_a_head_first(shared: Path, small: Network, shapes: Prepared, tmp_path: Path) -> None:
    context = make_context(small, shapes, tmp_path, teacher=("efficientnet_lite0",), epochs=1)
    teacher = distill.load_teacher(context, "efficientnet_lite0")
    assert teacher.network.classifier.weight.abs().sum() > 0
    assert (teacher.spec.height, teacher.spec.width) == (224, 224)


def test_without_pretrained_weights_all_layers_are_trained_with_their_batch_norms(
    small: Network, shapes: Prepared, tmp_path: Path
) -> None:
    context = make_context(small, shapes, tmp_path, teacher=("x",))
    assert not distill.plan(context).batch_norm
    assert distill.plan(replace(context, pretrained=False)).batch_norm
