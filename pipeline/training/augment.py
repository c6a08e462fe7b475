"""Random views of training images, drawn on top of the pixels that `serve.preprocess` returns.

To add an augmentation, write a function that builds its transform, enter it in `AUGMENTATIONS`, add its name to
`pipeline/names.py`, and describe it at `train.augment` in `pipeline/train_config.py`.

The random numbers of a view are seeded by the image's content and the number of the view. A view is therefore the same
in every run, its features can be cached, and it does not matter which images share a batch.

Shapes: N images, H x W the model's input.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor

from edgeline.pipeline.data.samples import Sample
from edgeline.pipeline.names import AugmentationName

Transform = Callable[[Tensor], Tensor]
"""uint8 (3, H, W) to the same shape."""


def light(height: int, width: int) -> Transform:
    """Random crop, brightness, contrast and saturation."""
    return _crop_flip_and_color(height, width, flip_probability=0.0)


def flip(height: int, width: int) -> Transform:
    """As `light`, and mirrored with a probability of one half."""
    return _crop_flip_and_color(height, width, flip_probability=0.5)


def strong(height: int, width: int) -> Transform:
    """Random crop of half of the image or more, and two random operations: color, contrast, sharpness, shear or shift.

    RandAugment (Cubuk et al. 2020) without rotation: a 6 that is rotated enough is a 9.
    """
    from torchvision.transforms import v2

    class UprightRandAugment(v2.RandAugment):  # type: ignore[misc]
        _AUGMENTATION_SPACE = {name: entry for name, entry in v2.RandAugment._AUGMENTATION_SPACE.items() if name != "Rotate"}

    transform: Transform = v2.Compose(
        [
            v2.RandomResizedCrop((height, width), scale=(0.5, 1.0), ratio=(3 / 4, 4 / 3), antialias=True),
            UprightRandAugment(num_ops=2, magnitude=5),
        ]
    )
    return transform


def rotate(height: int, width: int) -> Transform:
    """As `flip`, and turned by a random multiple of 90 degrees: for pictures without an up, from above or of a microscope."""
    upright = _crop_flip_and_color(height, width, flip_probability=0.5)

    def transform(image_3HW: Tensor) -> Tensor:
        quarters = int(torch.randint(4, ()))
        return upright(torch.rot90(image_3HW, quarters, (1, 2)))

    return transform


AUGMENTATIONS: Mapping[AugmentationName, Callable[[int, int], Transform] | None] = {
    "none": None,
    "light": light,
    "flip": flip,
    "strong": strong,
    "rotate": rotate,
}
"""By the name in the configuration: what builds the transform for a height and a width; None leaves images unchanged."""

if AUGMENTATIONS.keys() != set(get_args(AugmentationName)):
    raise TypeError(f"AUGMENTATIONS has {sorted(AUGMENTATIONS)}, train.augment allows {sorted(get_args(AugmentationName))}")


def augment(
    pixels_NHW3: Tensor, samples: Sequence[Sample], *, kind: str, view: int, size: tuple[int, int] | None = None
) -> Tensor:
    """Draw one view of each image.

    Args:
        pixels_NHW3: uint8, on any device, where the views are computed too.
        samples: the samples that the pixels belong to, in the same order.
        kind: a name in `AUGMENTATIONS`.
        view: number of the view; each number gives a different draw.
        size: height and width of the views; by default those of the pixels. `none` does not change it.

    Returns:
        uint8, shape (N, H, W, 3), with the height and width of `size`.

    Raises:
        ValueError: there is no such augmentation.
    """
    if kind not in AUGMENTATIONS:
        raise ValueError(f"unknown augmentation {kind!r}; expected one of {', '.join(AUGMENTATIONS)}")
    make_transform = AUGMENTATIONS[kind]  # type: ignore[index]
    if make_transform is None:
        return pixels_NHW3
    height, width = size or pixels_NHW3.shape[1:3]
    transform = make_transform(height, width)
    views = []
    with torch.random.fork_rng(devices=[]):
        for image_HW3, sample in zip(pixels_NHW3, samples, strict=True):
            # Not torch.manual_seed: it also seeds the GPUs, and the network's dropout there would repeat itself.
            torch.default_generator.manual_seed(int(sample.sha256[:12], 16) + view)
            views.append(transform(image_HW3.permute(2, 0, 1)).permute(1, 2, 0))
    return torch.stack(views)


def _crop_flip_and_color(height: int, width: int, *, flip_probability: float) -> Transform:
    from torchvision.transforms import v2

    transform: Transform = v2.Compose(
        [
            v2.RandomResizedCrop((height, width), scale=(0.6, 1.0), ratio=(4 / 5, 5 / 4), antialias=True),
            # Also at probability 0: leaving it out would change the random numbers that the color jitter draws.
            v2.RandomHorizontalFlip(flip_probability),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        ]
    )
    return transform
