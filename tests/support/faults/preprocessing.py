"""Faults of preprocessing, planted in its code."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgeline.serve import preprocess
from edgeline.serve.preprocess import Box, PreprocessSpec

Patch = pytest.MonkeyPatch
FIT, BOX, TO_RGB = preprocess.fit, preprocess.crop_box, preprocess._to_rgb


def ignored_exif(patch: Patch) -> None:
    patch.setattr(preprocess, "UPRIGHT", {})


def swapped_red_and_blue(patch: Patch) -> None:
    patch.setattr(preprocess, "fit", lambda image, spec, box: FIT(image, spec, box)[..., ::-1])


def bilinear_for_bicubic(patch: Patch) -> None:
    patch.setitem(preprocess.INTERPOLATIONS, "bicubic", Image.Resampling.BILINEAR)


def nearest_for_bicubic(patch: Patch) -> None:
    patch.setitem(preprocess.INTERPOLATIONS, "bicubic", Image.Resampling.NEAREST)


def no_antialias(patch: Patch) -> None:
    def fit(image: Image.Image, spec: PreprocessSpec, box: Box | None) -> np.ndarray:
        cut = np.array(image.crop(box or BOX(image.width, image.height, spec)), np.float32)
        images_1CHW = torch.from_numpy(cut).permute(2, 0, 1)[None]
        size = (spec.height, spec.width)
        resized = nn.functional.interpolate(images_1CHW, size, mode="bicubic", antialias=False, align_corners=False)
        return resized[0].permute(1, 2, 0).clamp(0, 255).round().byte().numpy()

    patch.setattr(preprocess, "fit", fit)


def squashed_without_a_crop(patch: Patch) -> None:
    patch.setattr(preprocess, "crop_box", lambda width, height, spec: (0, 0, width, height))


def the_whole_shorter_side(patch: Patch) -> None:
    def crop_box(width: int, height: int, spec: PreprocessSpec) -> tuple[int, int, int, int]:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side

    patch.setattr(preprocess, "crop_box", crop_box)


def crop_off_by_one_pixel(patch: Patch) -> None:
    def beside(width: int, height: int, spec: PreprocessSpec) -> tuple[int, int, int, int]:
        left, top, right, bottom = BOX(width, height, spec)
        return left + 1, top + 1, right + 1, bottom + 1

    patch.setattr(preprocess, "crop_box", beside)


def resized_before_the_crop(patch: Patch) -> None:
    def fit(image: Image.Image, spec: PreprocessSpec, box: Box | None) -> np.ndarray:
        scale = spec.height / spec.crop_fraction / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - spec.width) // 2, (image.height - spec.height) // 2
        return np.asarray(image.crop((left, top, left + spec.width, top + spec.height)))

    patch.setattr(preprocess, "fit", fit)


def shrunk_in_two_steps(patch: Patch) -> None:
    def fit(image: Image.Image, spec: PreprocessSpec, box: Box | None) -> np.ndarray:
        cut = image.crop(box or BOX(image.width, image.height, spec))
        return np.asarray(cut.resize((spec.width, spec.height), Image.Resampling.BICUBIC, reducing_gap=1.01))

    patch.setattr(preprocess, "fit", fit)


def clipped_16_bits(patch: Patch) -> None:
    def to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
        if image.mode.startswith("I;16"):
            image = Image.fromarray(np.minimum(np.asarray(image), 255).astype(np.uint8))
        return TO_RGB(image, background)

    patch.setattr(preprocess, "_to_rgb", to_rgb)


def dropped_alpha(patch: Patch) -> None:
    patch.setattr(preprocess, "_to_rgb", lambda image, background: image.convert("RGB"))
