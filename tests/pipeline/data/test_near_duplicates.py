"""Near-duplicates of photos, and of images that must not be taken for such."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeline.pipeline.data import near_duplicates
from edgeline.pipeline.data.near_duplicates import SIDE, find_near_duplicates, perceptual_hash

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
PHOTOS = 40


def blotches(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture of soft shapes that no other seed resembles."""
    levels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(name="photos", scope="module", params=["drawn", "flowers17", "xsdd_steel"])
def different_photos(request: pytest.FixtureRequest) -> list[Image.Image]:
    """Some photos of every class, or drawn ones."""
    if request.param == "drawn":
        return [blotches(seed) for seed in range(PHOTOS)]
    folder = SHARED / request.param
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    paths = [path for group in sorted(folder.iterdir()) for path in sorted(group.iterdir())[:6]]
    return [Image.open(path).convert("RGB") for path in paths[:PHOTOS]]


@pytest.fixture(scope="module")
def hashes(photos: list[Image.Image]) -> list[bytes | None]:
    """Of the photos, each hashed once for all kinds of copies."""
    return [perceptual_hash(photo) for photo in photos]


def saved(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def cropped(left: float, top: float, right: float, bottom: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.crop(
        (round(left * image.width), round(top * image.height), round(right * image.width), round(bottom * image.height))
    )


def resized(divisor: int) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize((image.width // divisor, image.height // divisor), Image.Resampling.LANCZOS)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": resized(2),
    "a quarter of the size": resized(4),
    "JPEG of quality 40": saved,
    "cropped by 5 %": cropped(0.025, 0.025, 0.975, 0.975),
    "cropped at a corner": cropped(0, 0.05, 0.95, 1),
    "cropped at one side": cropped(0, 0, 0.95, 1),
    "cropped at every side": cropped(0.05, 0.05, 0.95, 0.95),
    "10 % brighter": lambda image: image.point(lambda level: min(255, round(1.1 * level))),
    "10 % darker": lambda image: image.point(lambda level: round(0.9 * level)),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_f6_a_copy_is_paired_with_its_photo_and_no_other(
    photos: list[Image.Image], hashes: list[bytes | None], change: Callable[[Image.Image], Image.Image]
) -> None:
    found = find_near_duplicates(hashes + [perceptual_hash(change(photo)) for photo in photos])
    assert not found.alike
    between_photos = {(one, other) for one, other, _ in found.pairs if other < len(photos) or one >= len(photos)}
    own = {(one, other) for one, other, _ in found.pairs} - between_photos
    assert {other - one for one, other in own} == {len(photos)}
    assert len(own) >= 0.9 * len(photos)  # of all photos of these data sets at least 97 %, see benchmarks/near_duplicates.py
    assert len(between_photos) <= 2  # real ones in flowers17


@pytest.mark.parametrize("size", [(23, 23), (23, 400)])
def test_an_image_without_detail_has_no_hash(size: tuple[int, int]) -> None:
    assert perceptual_hash(blotches(1, size)) is None


def test_an_image_without_contrast_has_no_hash() -> None:
    assert perceptual_hash(Image.new("RGB", (100, 80), (7, 7, 7))) is None
    assert find_near_duplicates([None] * 1000).pairs == ()


def test_the_hash_does_not_depend_on_brightness_or_contrast() -> None:
    image = blotches(3)
    levels = np.frombuffer(perceptual_hash(image) or b"", np.uint8)
    dark = np.frombuffer(perceptual_hash(image.point(lambda level: level // 4 + 90)) or b"", np.uint8)
    assert levels.shape == (SIDE * SIDE,)
    assert np.abs(levels.astype(int) - dark).max() <= 3


def test_indices_are_those_of_the_given_hashes() -> None:
    one, other = perceptual_hash(blotches(1)), perceptual_hash(blotches(2))
    found = find_near_duplicates([None, one, None, other, None, one, one])
    assert [pair[:2] for pair in found.pairs] == [(1, 5), (1, 6)]
    assert found.groups() == [[1, 5, 6]]
    assert all(similarity == pytest.approx(1, abs=1e-3) for *_, similarity in found.pairs)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images_are_no_special_case(count: int) -> None:
    assert find_near_duplicates([perceptual_hash(blotches(seed)) for seed in range(count)]).pairs == ()


def test_thousands_of_equal_images_make_as_many_pairs() -> None:
    one = perceptual_hash(blotches(1))
    found = find_near_duplicates([one] * 5000)
    assert [pair[:2] for pair in found.pairs] == [(0, index) for index in range(1, 5000)]


def test_images_of_one_layout_are_not_chained_into_one_group(digit_hashes: list[bytes | None]) -> None:
    found = find_near_duplicates(digit_hashes)
    assert found.alike
    assert max((len(group) for group in found.groups()), default=0) <= 10


@pytest.fixture(name="digit_hashes", scope="module")
def hashes_of_enlarged_digits() -> list[bytes | None]:
    from sklearn.datasets import load_digits

    images = [Image.fromarray((levels * 15.9).astype(np.uint8)) for levels in load_digits().images[:900]]
    return [perceptual_hash(image.resize((64, 64), Image.Resampling.BICUBIC).convert("RGB")) for image in images]


def test_a_copy_among_images_of_one_layout_is_still_found(digit_hashes: list[bytes | None]) -> None:
    found = find_near_duplicates([*digit_hashes, digit_hashes[77]])
    assert (77, len(digit_hashes)) in {pair[:2] for pair in found.pairs}


def test_no_pair_of_codes_within_the_radius_is_missed() -> None:
    """All pairs are compared here, of random codes and of codes with up to ten changed bits."""
    chance = np.random.default_rng(0)
    codes = chance.integers(0, 2**63, 600, dtype=np.uint64)
    for index in range(300, 600):
        for bit in chance.choice(63, int(chance.integers(1, 11)), replace=False):
            codes[index] = codes[index - 300] ^ (np.uint64(1) << np.uint64(bit)) if bit % 2 else codes[index]
            codes[index] ^= np.uint64(1) << np.uint64(bit)
    distances = np.bitwise_count(codes[:, None] ^ codes[None])
    for radius in (near_duplicates.RADIUS, near_duplicates.STRICT_RADIUS):
        expected = {(int(i), int(j)) for i, j in np.argwhere(distances <= radius) if i != j}
        first, second, _ = near_duplicates._candidates(codes[None], radius)
        assert len(expected) > 50
        assert set(zip(first.tolist(), second.tolist(), strict=True)) == expected


def test_many_similar_codes_reduce_the_radius_and_end_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(0)
    codes = np.uint64(0xABCDEF) ^ (np.uint64(1) << chance.integers(0, 63, 3000, dtype=np.uint64))
    assert near_duplicates._affordable(codes, near_duplicates.RADIUS) == 0
    assert near_duplicates._affordable(codes[:1000], near_duplicates.RADIUS) == near_duplicates.RADIUS
    assert near_duplicates._candidates(codes[None], 0)[0].size == 0
