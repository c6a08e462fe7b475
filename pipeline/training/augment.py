"""Augmented views of preprocessed images, drawn on top of the pixels that `serve.preprocess` gives.

Each image's draw is seeded by its content and the number of the view, so a view is the same picture in every run and its
features can be kept, and it does not matter which images share a batch.

Shapes: N images, H x W the model's input.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeline.pipeline.data.samples import Sample


def augment(pixels_NHW3: Tensor, samples: Sequence[Sample], *, kind: str, view: int) -> Tensor:
    """Draw one view of each image.

    Args:
        pixels_NHW3: uint8.
        samples: whose pixels they are.
        kind: `light` (random crop, brightness, contrast, saturation), `flip` (that, mirrored every other time) or `none`.
        view: another number is another draw.

    Returns:
        uint8, shape (N, H, W, 3).
    """
    if kind == "none":
        return pixels_NHW3
    from torchvision.transforms import v2

    height, width = pixels_NHW3.shape[1:3]
    transform = v2.Compose(
        [
            v2.RandomResizedCrop((height, width), scale=(0.6, 1.0), ratio=(4 / 5, 5 / 4), antialias=True),
            v2.RandomHorizontalFlip(0.5 if kind == "flip" else 0.0),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        ]
    )
    views = []
    with torch.random.fork_rng(devices=[]):
        for image_HW3, sample in zip(pixels_NHW3, samples, strict=True):
            # Not torch.manual_seed: that seeds the GPUs too, and the network's dropout there with them.
            torch.default_generator.manual_seed(int(sample.sha256[:12], 16) + view)
            views.append(transform(image_HW3.permute(2, 0, 1)).permute(1, 2, 0))
    return torch.stack(views)
