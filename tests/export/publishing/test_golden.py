"""Golden samples reveal faults of a device, contain nothing about the photographer, and stay small."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.publishing.golden import CLEAR_MARGIN, MAX_SIDE, GoldenSource, choose, write_golden
from edgeline.pipeline.config import PublishConfig
from edgeline.pipeline.data.samples import Sample
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.pretrained import Normalization
from edgeline.serve.preprocess import EXIF_ORIENTATION, PreprocessSpec, jpeg_scale, preprocess
from tests.support.cases import cases

LABELS = ("red", "green", "blue")
SPEC = PreprocessSpec(height=32, width=32)
GPS = 0x8825


class MeanColor(nn.Module):
    """A backbone whose outputs can be predicted."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.mean((2, 3))


@pytest.fixture(name="colors")
def of_the_mean_color() -> CalibratedModel:
    network = Network(MeanColor(), 3, 3, 0.0, Normalization((0.0,) * 3, (255.0,) * 3))
    network.classifier.weight.data = 8 * torch.eye(3)
    network.classifier.bias.data.zero_()
    return CalibratedModel(network, 1.0)


def textured(color: tuple[int, int, int], seed: int, size: tuple[int, int] = (90, 70), grain: float = 30) -> Image.Image:
    width, height = size
    pixels = np.array(color) + np.random.default_rng(seed).normal(0, grain, (height, width, 1))
    pixels[: height // 3, : width // 2] *= 0.6
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def picture(path: Path) -> Image.Image:
    """A picture without an open file."""
    return Image.open(io.BytesIO(path.read_bytes()))


SHADES = {"red": (200, 60, 40), "green": (50, 190, 60), "blue": (40, 60, 210)}


@pytest.fixture(name="keep")
def in_a_folder(tmp_path: Path) -> Callable[..., Sample]:
    """`keep(image, label, **options)`: save a picture as a held-out sample."""

    def save(image: Image.Image, label: str, kind: str = "JPEG", **options: Any) -> Sample:
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{len(list(folder.iterdir()))}.{kind.lower()}"
        image.save(path, kind, **options)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return Sample(
            path=str(path),
            label=label,
            index=LABELS.index(label),
            split="test",
            group=digest,
            sha256=digest,
            pixels=digest,
            width=image.width,
            height=image.height,
        )

    return save


Keep = Callable[..., Sample]


@pytest.fixture(name="write")
def writing(colors: CalibratedModel, tmp_path: Path) -> Callable[..., tuple[Path, list[dict[str, Any]]]]:
    """`write(samples, **settings)`: the artifact's folder and the samples in `golden.json`."""

    def make(samples: list[Sample], **settings: Any) -> tuple[Path, list[dict[str, Any]]]:
        folder = tmp_path / f"artifact-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        source = GoldenSource(deployed=colors, spec=SPEC, labels=LABELS, samples=samples)
        write_golden(folder, source, PublishConfig(**settings))
        return folder, json.loads((folder / "golden" / "golden.json").read_text())["samples"]

    return make


Write = Callable[..., tuple[Path, list[dict[str, Any]]]]


def test_each_sample_has_pytorchs_outputs_for_exactly_its_bytes(write: Write, keep: Keep, colors: CalibratedModel) -> None:
    folder, samples = write([keep(textured(SHADES[label], i), label) for i, label in enumerate(LABELS)], golden=4)
    assert len(samples) == 4
    for sample in samples:
        pixels_HW3 = preprocess((folder / sample["file"]).read_bytes(), SPEC)
        kept = picture(folder / sample["pixels"])
        assert kept.format == "PNG"
        np.testing.assert_array_equal(pixels_HW3, np.array(kept))
        with torch.inference_mode():
            probabilities_1K, logits_1K = colors(torch.from_numpy(pixels_HW3[None].copy()))
        np.testing.assert_array_equal(np.float32(sample["probabilities"]), probabilities_1K[0].numpy())
        np.testing.assert_array_equal(np.float32(sample["logits"]), logits_1K[0].numpy())
        assert sample["label"] == LABELS[int(probabilities_1K.argmax())]


def test_the_tolerances_are_those_of_the_settings(write: Write, keep: Keep) -> None:
    samples = [keep(textured(SHADES["red"], 0), "red")]
    folder, _ = write(samples, golden=2, golden_tolerance=0.25, golden_pixel_tolerance=3.5)
    golden = json.loads((folder / "golden" / "golden.json").read_text())
    assert (golden["tolerance"], golden["pixel_tolerance"]) == (0.25, 3.5)


def test_the_same_samples_write_the_same_files(write: Write, keep: Keep) -> None:
    samples = [keep(textured(SHADES[label], i), label, "PNG") for i, label in enumerate(LABELS * 2)]
    (one, _), (other, _) = write(samples, golden=5), write(samples[::-1], golden=5)
    files = [{p.name: p.read_bytes() for p in (folder / "golden").iterdir()} for folder in (one, other)]
    assert files[0].keys() == files[1].keys()
    again = write(samples, golden=5)[0] / "golden"
    for name in ("golden.json", "README.md"):
        assert files[0][name] == (again / name).read_bytes()


def test_one_sample_is_turned_and_has_the_exif_tag_for_it(write: Write, keep: Keep) -> None:
    folder, samples = write([keep(textured(SHADES["red"], 0), "red")], golden=2)
    turned, plain = samples
    assert turned["file"] == "golden/0.turned.jpg"
    image, upright = picture(folder / turned["file"]), picture(folder / plain["file"])
    assert image.getexif()[EXIF_ORIENTATION] == 6
    assert image.size == upright.size[::-1]
    pixels = [np.array(picture(folder / sample["pixels"])).astype(int) for sample in samples]
    assert np.abs(pixels[0] - pixels[1]).mean() < 3, "upright, they are the same picture"


def test_the_turned_photo_is_one_that_changes_when_turned(write: Write, keep: Keep, tmp_path: Path) -> None:
    flat = [keep(Image.new("RGB", (400, 400), SHADES[label]), label, "PNG") for label in LABELS]
    with_a_corner = Image.new("RGB", (400, 400), SHADES["green"])
    with_a_corner.paste((0, 0, 0), (60, 60, 200, 200))
    folder, samples = write([*flat, keep(with_a_corner, "green", "PNG")], golden=5)
    data = (folder / samples[0]["file"]).read_bytes()
    stripped = io.BytesIO()
    Image.open(io.BytesIO(data)).save(stripped, "JPEG", quality=92)
    ignored = preprocess(stripped.getvalue(), SPEC).astype(int)
    assert np.abs(ignored - preprocess(data, SPEC)).mean() > 10


def test_the_readme_has_the_tolerances_of_this_artifact(write: Write, keep: Keep) -> None:
    samples = [keep(textured(SHADES["red"], 0), "red")]
    folder, _ = write(samples, golden=2, golden_tolerance=0.25, golden_pixel_tolerance=3.5)
    page = (folder / "golden" / "README.md").read_text(encoding="utf-8")
    assert "\n2 held-out photos" in page
    assert "| every variant | 0.25 | 0.25 |" in page
    assert "most 3.5 of 255;" in page


def test_the_readme_of_an_artifact_has_the_tolerances_of_every_variant_and_names_its_files(finished: Any) -> None:
    page = (finished.artifact / "golden" / "README.md").read_text(encoding="utf-8")
    golden = json.loads((finished.artifact / "golden" / "golden.json").read_text())
    for name, own in golden["variants"].items():
        assert f"| {name} | {own['tolerance']:g} | {own.get('logit_tolerance', own['tolerance']):g} |" in page
    assert "| every other variant | 0.001 | 0.001 |" in page
    assert f"| `{Path(golden['samples'][0]['file']).name}` | stored on its side" in page


# What they reveal about their origin.


def place() -> Image.Exif:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 3
    exif[0x010F], exif[0x013B] = "Camera of Ada", "Ada Lovelace"
    exif[GPS] = {1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)}
    return exif


def test_only_the_pixels_of_a_photo_with_a_place_and_an_owner_are_stored(write: Write, keep: Keep) -> None:
    from PIL import ImageCms, PngImagePlugin

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Author", "Ada Lovelace")
    samples = [
        keep(textured(SHADES["red"], 0), "red", exif=place(), icc_profile=profile, comment=b"Ada Lovelace at home"),
        keep(textured(SHADES["green"], 1), "green", "PNG", exif=place(), pnginfo=notes, icc_profile=profile),
    ]
    for sample in samples:
        assert b"Ada Lovelace" in Path(sample.path).read_bytes()
    folder, written = write(samples, golden=3)
    assert len(written) == 3
    for path in (folder / "golden").iterdir():
        data = path.read_bytes()
        assert not [word for word in (b"Ada", b"Camera", b"ICC_PROFILE", b"iCCP", b"tEXt", b"xmp") if word in data], path
        if path.suffix in (".json", ".md"):
            continue
        image = picture(path)
        assert dict(image.getexif()) == ({EXIF_ORIENTATION: 6} if ".turned." in path.name else {})
        assert not image.getexif().get_ifd(GPS)
        assert image.info.keys() <= {"jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi", "exif"}


def test_published_photos_of_a_run_have_no_place(finished: Any) -> None:
    sources = [Path(path) for path in sorted(Path(finished.config.data).rglob("*.jpg"))]
    assert sources
    assert all(picture(path).getexif().get_ifd(GPS) for path in sources)
    published = [*(finished.artifact / "golden").glob("*.jpg"), *(finished.artifact / "golden").glob("*.png")]
    assert len(published) == 10
    for path in published:
        assert dict(picture(path).getexif()) == ({EXIF_ORIENTATION: 6} if ".turned." in path.name else {})


# Their size.


KINDS = {"JPEG": ("JPEG", {}), "PNG": ("PNG", {"compress_level": 1})}


@pytest.mark.long
@pytest.mark.parametrize(("kind", "options"), cases(KINDS, quick=["JPEG"]))
def test_a_photo_of_twelve_megapixels_becomes_a_small_sample(
    write: Write, keep: Keep, kind: str, options: dict[str, int]
) -> None:
    large = textured(SHADES["blue"], 0, size=(4000, 3000))
    folder, samples = write([keep(large, "blue", kind, **options)], golden=2)
    for sample in samples:
        assert sorted(picture(folder / sample["file"]).size) == [768, MAX_SIDE]
    sizes = {path.name: path.stat().st_size for path in (folder / "golden").iterdir()}
    assert sizes["0.turned.jpg"] < 700_000
    assert max(sizes.values()) < 3 * 1024 * 768 + 10_000
    assert sizes["0.pixels.png"] < 3 * 32 * 32 + 1000


LARGE = {"a photo of twelve megapixels": ((4000, 3000), 2048, 2), "one that is too small for it": ((1200, 900), 1024, 1)}


@pytest.mark.parametrize(("size", "side", "scale"), cases(LARGE, quick=["one that is too small for it"]))
def test_the_turned_sample_is_large_enough_to_be_decoded_scaled_where_the_photo_is(
    size: tuple[int, int], side: int, scale: int, keep: Keep, colors: CalibratedModel, tmp_path: Path
) -> None:
    spec = PreprocessSpec(height=224, width=224)
    sample = keep(textured(SHADES["blue"], 0, size=size), "blue")
    source = GoldenSource(deployed=colors, spec=spec, labels=LABELS, samples=[sample])
    write_golden(tmp_path, source, PublishConfig(golden=2))
    turned = picture(tmp_path / "golden" / "0.turned.jpg")
    assert turned.height == side
    assert jpeg_scale(turned.height, turned.width, spec) == scale
    assert max(picture(tmp_path / "golden" / "1.jpg").size) == MAX_SIDE


def test_a_small_photo_is_not_enlarged(write: Write, keep: Keep) -> None:
    folder, samples = write([keep(textured(SHADES["blue"], 0, size=(50, 40)), "blue", "PNG")], golden=2)
    assert picture(folder / samples[1]["file"]).size == (50, 40)


def test_transparency_is_flattened_as_in_preprocessing(write: Write, keep: Keep) -> None:
    image = textured(SHADES["green"], 0).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    sample = keep(image, "green", "PNG")
    folder, samples = write([sample], golden=2)
    assert picture(folder / samples[1]["file"]).mode == "RGB"
    np.testing.assert_array_equal(
        preprocess((folder / samples[1]["file"]).read_bytes(), SPEC), preprocess(Path(sample.path).read_bytes(), SPEC)
    )


# Which photos are chosen.


def test_samples_are_chosen_from_as_many_classes_as_possible(keep: Keep) -> None:
    samples = [keep(textured(SHADES[label], i), label, "PNG") for i, label in enumerate(["red"] * 5 + ["green"] * 3 + ["blue"])]
    chosen = choose(samples, 6, SPEC)
    assert [sample.label for sample in chosen[:3]] == ["red", "green", "blue"]
    assert [sample.label for sample in chosen[3:]] == ["red", "green", "red"]


def test_photos_with_most_detail_come_first(keep: Keep) -> None:
    size = (200, 160)
    flat, soft, sharp = (keep(textured(SHADES["red"], i, size, grain), "red", "PNG") for i, grain in enumerate((0, 5, 40)))
    assert choose([flat, soft, sharp], 3, SPEC) == [sharp, soft, flat]


def test_photos_that_are_not_shrunk_come_after_those_that_are(keep: Keep) -> None:
    small = keep(textured(SHADES["red"], 0, (32, 32), 60), "red", "PNG")
    large = keep(textured(SHADES["red"], 1, (300, 300), 30), "red", "PNG")
    assert choose([small, large], 2, SPEC) == [large, small]


def test_photos_with_a_small_margin_are_left_out_where_there_are_others(
    write: Write, keep: Keep, colors: CalibratedModel
) -> None:
    doubtful = [keep(textured((120, 120, 60), i, (300, 240)), "red", "PNG") for i in range(3)]
    clear = [keep(textured(SHADES["red"], i, (100, 80), 5), "red", "PNG") for i in range(2)]
    for sample in doubtful:
        pixels_1HW3 = torch.from_numpy(preprocess(Path(sample.path).read_bytes(), SPEC)[None].copy())
        second, first = colors(pixels_1HW3)[0][0].sort().values[-2:].tolist()
        assert first - second < CLEAR_MARGIN
    _, samples = write([*doubtful, *clear], golden=3)
    assert all(max(sample["probabilities"]) > 0.9 for sample in samples)


def test_photos_with_a_small_margin_are_used_rather_than_too_few(write: Write, keep: Keep) -> None:
    doubtful = [keep(textured((120, 120, 60), i), "red", "PNG") for i in range(3)]
    _, samples = write(doubtful, golden=4)
    assert len(samples) == 4
    _, samples = write(doubtful, golden=8)
    assert len(samples) == 4, "three pictures and one of them turned is all there is"
