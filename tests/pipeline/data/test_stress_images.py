from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeline.pipeline.data.stress_images import (
    MAX_FINGERPRINT_DIFFERENCE,
    check_preprocessing,
    preprocessing_fingerprint,
    stress_images,
    write_preprocessing_fingerprint,
)
from edgeline.serve import preprocess as preprocessing
from edgeline.serve.errors import VerificationError
from edgeline.serve.preprocess import INTERPOLATIONS, Box, PreprocessSpec, crop_box, decode_image, fit, jpeg_scale, preprocess

SPEC = PreprocessSpec(height=64, width=64)
NAMES = ["black", "white", "noise", "one_pixel", "strip", "huge", "scene", "exif_rotated", "cmyk", "gray", "gray_16_bit"]
NAMES += ["alpha", "palette_alpha"]


@pytest.fixture(scope="module", name="file")
def fingerprint_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preprocessing_fingerprint") / "preprocessing_fingerprint.npz"
    write_preprocessing_fingerprint(path, SPEC)
    return path


def test_the_stress_images_are_the_same_each_time() -> None:
    assert list(stress_images()) == NAMES
    assert stress_images.__wrapped__() == stress_images()


def test_every_stress_image_is_accepted_and_preprocessed_to_the_right_shape() -> None:
    for name, pixels_HW3 in preprocessing_fingerprint(SPEC).items():
        assert (pixels_HW3.shape, pixels_HW3.dtype) == ((64, 64, 3), np.uint8), name


# The difficulty that each name describes is really in the file.
HARD: dict[str, Callable[[Image.Image], bool]] = {
    "one_pixel": lambda image: image.size == (1, 1),
    "strip": lambda image: image.size == (2000, 3),
    "huge": lambda image: image.width * image.height == 24_000_000,
    "exif_rotated": lambda image: image.getexif()[0x0112] == 6,
    "cmyk": lambda image: (image.format, image.mode) == ("JPEG", "CMYK"),
    "gray": lambda image: image.mode == "L",
    "gray_16_bit": lambda image: image.mode == "I;16" and image.getextrema()[1] > 255,
    "alpha": lambda image: image.mode == "RGBA" and image.getextrema()[3] == (0, 255),
    "palette_alpha": lambda image: image.mode == "P" and "transparency" in image.info,
}


@pytest.mark.parametrize(("side", "scale"), [(64, 8), (224, 4), (380, 4)])
def test_a_large_jpeg_is_scaled_and_full_decoding_gives_other_pixels(side: int, scale: int) -> None:
    spec = replace(SPEC, height=side, width=side)
    full = replace(spec, jpeg_decoding="full")
    assert jpeg_scale(6000, 4000, spec) == scale
    scaled, whole = (preprocess(stress_images()["huge"], s).astype(int) for s in (spec, full))
    assert 0 < np.abs(scaled - whole).mean() < MAX_FINGERPRINT_DIFFERENCE


@pytest.mark.parametrize("name", HARD)
def test_a_stress_image_has_the_property_in_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(stress_images()[name])
    with Image.open(tmp_path / name) as image:
        assert HARD[name](image)


def test_the_scene_is_asymmetric() -> None:
    scene = np.asarray(decode_image(stress_images()["scene"]).resize((64, 64)), np.int16)
    turned = [np.rot90(side, turns) for side in (scene, scene[:, ::-1]) for turns in range(4)]
    assert min(np.abs(scene - other).mean() for other in turned[1:]) > 20


def test_the_same_preprocessing_makes_no_difference(file: Path) -> None:
    assert check_preprocessing(file, SPEC) == 0


def ignored_exif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing, "UPRIGHT", {})


def bgr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing, "fit", lambda image, spec, box: fit(image, spec, box)[..., ::-1])


def bilinear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INTERPOLATIONS, "bicubic", Image.Resampling.BILINEAR)


def no_antialias(monkeypatch: pytest.MonkeyPatch) -> None:
    def sampled(image: Image.Image, spec: PreprocessSpec, box: Box | None) -> np.ndarray:
        box = box or crop_box(image.width, image.height, spec)
        size = (spec.width, spec.height)
        return np.asarray(image.transform(size, Image.Transform.EXTENT, box, resample=Image.Resampling.BICUBIC))

    monkeypatch.setattr(preprocessing, "fit", sampled)


def no_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(width: int, height: int, spec: PreprocessSpec) -> tuple[int, int, int, int]:
        return crop_box(width, height, replace(spec, crop_fraction=1.0))

    monkeypatch.setattr(preprocessing, "crop_box", whole)


def squashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing, "crop_box", lambda width, height, spec: (0, 0, width, height))


def a_pixel_to_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(width: int, height: int, spec: PreprocessSpec) -> tuple[int, int, int, int]:
        left, top, right, bottom = crop_box(width, height, spec)
        return left + 1, top, right + 1, bottom

    monkeypatch.setattr(preprocessing, "crop_box", shifted)


def to_rgb(monkeypatch: pytest.MonkeyPatch, modes: tuple[str, ...], convert: Callable[..., Image.Image]) -> None:
    true = preprocessing._to_rgb
    monkeypatch.setattr(
        preprocessing,
        "_to_rgb",
        lambda image, background: convert(image, true) if image.mode in modes else true(image, background),
    )


def clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    to_rgb(monkeypatch, ("I;16",), lambda image, true: image.convert("RGB"))


def alpha_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    to_rgb(monkeypatch, ("RGBA", "P"), lambda image, true: image.convert("RGB"))


def black_background(monkeypatch: pytest.MonkeyPatch) -> None:
    to_rgb(monkeypatch, ("RGBA", "P"), lambda image, true: true(image, (0, 0, 0)))


def inverted_cmyk(monkeypatch: pytest.MonkeyPatch) -> None:
    to_rgb(monkeypatch, ("CMYK",), lambda image, true: true(Image.eval(image, lambda v: 255 - v), (255, 255, 255)))


COLORED = {"noise", "one_pixel", "strip", "huge", "scene", "exif_rotated", "cmyk", "alpha", "palette_alpha"}
FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], set[str]]] = {
    "the EXIF tag ignored": (ignored_exif, {"exif_rotated"}),
    "red and blue swapped": (bgr, COLORED),
    "bilinear, not bicubic": (bilinear, {"noise", "strip", "huge", "palette_alpha"}),
    "no antialiasing": (no_antialias, set(NAMES) - {"black", "white", "one_pixel"}),
    "no crop": (no_crop, set(NAMES) - {"black", "white", "one_pixel", "strip"}),
    "squashed": (squashed, set(NAMES) - {"black", "white", "one_pixel"}),
    "16 bits clipped": (clipped, {"gray_16_bit"}),
    "transparency dropped": (alpha_dropped, {"alpha", "palette_alpha"}),
    "black behind transparency": (black_background, {"alpha", "palette_alpha"}),
    "inverted CMYK": (inverted_cmyk, {"cmyk"}),
}


@pytest.mark.parametrize(("change", "noticed"), FAULTS.values(), ids=FAULTS)
def test_changed_preprocessing_is_noticed_and_the_affected_images_are_named(
    change: Callable[[pytest.MonkeyPatch], None], noticed: set[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch)
    with pytest.raises(VerificationError, match="preprocessing differs from that at training time") as caught:
        check_preprocessing(file, SPEC)
    named = str(caught.value).split(": the stress images ")[1].split(" differ")[0]
    assert set(named.split(", ")) == noticed
    assert caught.value.code == "preprocess_changed"


def test_a_crop_that_is_off_by_a_pixel_is_noticed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_pixel_to_the_right(monkeypatch)
    with pytest.raises(VerificationError, match="scene"):
        check_preprocessing(file, SPEC)


def with_difference(file: Path, target: Path, levels: float) -> Path:
    """A fingerprint whose scene differs by this many levels on average, as with the rounding of another library."""
    with np.load(file) as saved:
        pixels: dict[str, Any] = {name: saved[name].astype(np.int16) for name in saved.files}
    size = pixels["scene"].size
    offset = np.zeros(size, np.int16)
    offset[: int(round(size * levels / 2))] = 2
    scene = pixels["scene"].reshape(-1)
    pixels["scene"] = np.where(scene > 127, scene - offset, scene + offset).reshape(64, 64, 3)
    np.savez_compressed(target, **{name: values.astype(np.uint8) for name, values in pixels.items()})
    return target


def test_only_differences_as_small_as_rounding_are_tolerated(file: Path, tmp_path: Path) -> None:
    little = check_preprocessing(with_difference(file, tmp_path / "little.npz", 0.95), SPEC)
    assert little == pytest.approx(0.95, abs=0.001)
    assert little < MAX_FINGERPRINT_DIFFERENCE == 1
    with pytest.raises(VerificationError, match=r": the stress images scene differ, by up to 1\.\d of 255 \(scene\)"):
        check_preprocessing(with_difference(file, tmp_path / "much.npz", 1.06), SPEC)


def test_another_resolution_is_changed_preprocessing(file: Path) -> None:
    with pytest.raises(VerificationError, match="255"):
        check_preprocessing(file, replace(SPEC, width=65))


def without_an_image(path: Path) -> None:
    with np.load(path) as saved:
        kept = {name: saved[name] for name in saved.files if name != "noise"}
    np.savez_compressed(path, **kept)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "absent": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-500]),
    "text": lambda path: path.write_text("not a fingerprint"),
    "without an image": without_an_image,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_fingerprint_is_rejected(damage: Callable[[Path], object], file: Path, tmp_path: Path) -> None:
    path = tmp_path / "preprocessing_fingerprint.npz"
    path.write_bytes(file.read_bytes())
    damage(path)
    with pytest.raises(VerificationError, match="is not a valid preprocessing fingerprint .*; train again"):
        check_preprocessing(path, SPEC)
