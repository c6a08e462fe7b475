from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeline.pipeline.data.samples import Sample
from edgeline.pipeline.training.augment import AUGMENTATIONS, augment


@pytest.fixture(name="samples")
def five_samples(tmp_path: Path, make_sample: Callable[..., Sample]) -> list[Sample]:
    for number in range(5):
        (tmp_path / f"{number}").write_text(f"content {number}")
    return [make_sample(tmp_path / f"{number}") for number in range(5)]


@pytest.fixture(name="pixels")
def five_pictures() -> Tensor:
    return torch.randint(0, 256, (5, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [kind for kind, make in AUGMENTATIONS.items() if make])
def test_a_view_does_not_depend_on_the_other_images_of_its_batch(kind: str, pixels: Tensor, samples: list[Sample]) -> None:
    together = augment(pixels, samples, kind=kind, view=3)
    for index, sample in enumerate(samples):
        assert torch.equal(augment(pixels[index, None], [sample], kind=kind, view=3)[0], together[index])
    backwards = augment(pixels.flip(0), samples[::-1], kind=kind, view=3)
    assert torch.equal(backwards.flip(0), together)


def test_every_view_of_every_image_is_different(pixels: Tensor, samples: list[Sample]) -> None:
    same = pixels[:1].expand(5, -1, -1, -1)  # one picture as five samples: only the random numbers differ
    views = [view for number in range(4) for view in augment(same, samples, kind="light", view=number)]
    assert len({view.numpy().tobytes() for view in views}) == 20


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_views_are_bytes_of_the_same_shape(kind: str, pixels: Tensor, samples: list[Sample]) -> None:
    view = augment(pixels, samples, kind=kind, view=0)
    assert (view.shape, view.dtype) == (pixels.shape, torch.uint8)


def test_none_changes_nothing(pixels: Tensor, samples: list[Sample]) -> None:
    assert torch.equal(augment(pixels, samples, kind="none", view=1), pixels)


def test_an_unknown_augmentation_is_an_error(pixels: Tensor, samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match="unknown augmentation 'heavy'; expected one of none, light, flip"):
        augment(pixels, samples, kind="heavy", view=1)


def mirrored(kind: str, sample: Sample) -> int:
    """Of 40 views of a picture that is bright on the right, how many are brighter on the left."""
    picture = torch.zeros(1, 16, 24, 3, dtype=torch.uint8)
    picture[:, :, 12:] = 200
    views = [augment(picture, [sample], kind=kind, view=number)[0].float() for number in range(40)]
    return sum(bool(view[:, :12].mean() > view[:, 12:].mean()) for view in views)


def test_light_never_mirrors_and_flip_mirrors_about_half_of_the_views(samples: list[Sample]) -> None:
    assert mirrored("light", samples[0]) == 0
    assert 10 <= mirrored("flip", samples[0]) <= 30


def test_augmentation_does_not_disturb_other_random_numbers(
    pixels: Tensor, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded: list[Any] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)  # a GPU's dropout would repeat itself
    torch.manual_seed(5)
    seeded.clear()
    expected = torch.rand(3)
    torch.manual_seed(5)
    seeded.clear()
    augment(pixels, samples, kind="flip", view=1)
    assert torch.equal(torch.rand(3), expected)
    assert seeded == []
