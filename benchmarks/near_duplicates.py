"""Near-duplicates: recall and precision on copies of real photos, the largest groups, time and memory for 100,000 images.

Of each photo nine copies are made: reduced to 1/2 and 1/4, saved as JPEG of quality 40, cropped in four ways, 10 % brighter
and darker. Exact duplicates are removed first. Recall is the share of copies that are in one group with their photo. A pair of
copies of two photos is wrong, unless these photos are found themselves: those pairs are printed, and `--pictures` shows them.

The 100,000 hashes are blends of two real ones, turned and with noise; a tenth of them are copies of others with more noise.
"""

import argparse
import io
import random
import statistics
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import SHARED, Clock, report
from PIL import Image, ImageDraw

from edgeline.pipeline.data.near_duplicates import CONTRAST, SIDE, NearDuplicates, find_near_duplicates, perceptual_hash
from edgeline.pipeline.data.validation import pixel_digest
from edgeline.pipeline.sources.digits import write_digits
from edgeline.serve.errors import ImageError
from edgeline.serve.preprocess import decode_image

COPIED = ("flowers17", "xsdd_steel")
GROUPED = ("hymenoptera", "blood_cells", "imagenet_sample")
DIGIT_SIDES = (16, 64, 224)
THUMBNAIL = (200, 150)

Hashes = list[bytes | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000, help="hashes of the measurement of time and memory")
    parser.add_argument("--pictures", type=Path, help="write the pairs of photos to this folder")
    arguments = parser.parse_args()
    copies, groups, real = {}, {}, []
    for name in COPIED:
        if (SHARED / name).is_dir():
            paths, images = read(name)
            copies[name] = measure_copies(name, paths, images, arguments.pictures)
            real += [perceptual_hash(image) for image in images]
    for name in GROUPED:
        if (SHARED / name).is_dir():
            groups[name] = measure_groups(name, *read(name), arguments.pictures)
    digits = [Image.open(path).convert("RGB") for path in sorted(write_digits(Path("artifacts/digits")).glob("*/*.png"))]
    for side in DIGIT_SIDES:
        scaled = [image.resize((side, side), Image.Resampling.BICUBIC) for image in digits]
        groups[f"digits, {side} x {side}"] = measure_groups(f"digits at {side}", [], scaled, None)
        real += [perceptual_hash(image) for image in scaled] if not copies else []
    speed = measure_speed()
    large = measure_large(real, arguments.images)
    print(
        "{images:,} images: {seconds:.1f} s, {cpu_seconds:.1f} s of CPU, {peak_mb:.0f} MB, {recall:.3f} found".format(**large)
    )
    report("near_duplicates", copies=copies, groups=groups, speed=speed, large=large)


def read(name: str) -> tuple[list[Path], list[Image.Image]]:
    """Return the photos of a folder without exact duplicates."""
    images: dict[str, tuple[Path, Image.Image]] = {}
    for path in sorted(path for path in (SHARED / name).rglob("*") if path.is_file()):
        try:
            image = decode_image(path.read_bytes())
        except ImageError:  # not a photo, such as a list of labels
            continue
        images.setdefault(pixel_digest(image), (path, image))
    return [path for path, _ in images.values()], [image for _, image in images.values()]


def copies_of(image: Image.Image, chance: random.Random) -> Iterator[tuple[str, Image.Image]]:
    width, height = image.size
    for name, divisor in (("1/2", 2), ("1/4", 4)):
        yield name, image.resize((max(1, width // divisor), max(1, height // divisor)), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    yield "JPEG quality 40", decode_image(file.getvalue())
    across, down = round(0.95 * width), round(0.95 * height)
    left, top = (width - across) // 2, (height - down) // 2
    yield "cropped by 5 %, middle", image.crop((left, top, left + across, top + down))
    left, top = chance.choice([0, width - across]), chance.choice([0, height - down])
    yield "cropped by 5 %, corner", image.crop((left, top, left + across, top + down))
    yield "cropped by 5 %, right", image.crop((0, 0, across, height))
    yield "cropped by 5 % on each side", image.crop((width - across, height - down, across, down))
    yield "10 % brighter", image.point(lambda level: min(255, round(1.1 * level)))
    yield "10 % darker", image.point(lambda level: round(0.9 * level))


def measure_copies(name: str, paths: list[Path], images: list[Image.Image], pictures: Path | None) -> dict[str, object]:
    """Recall of each kind of copy, and precision of all pairs."""
    chance = random.Random(0)
    hashes: list[dict[str, bytes | None]] = []
    for image in images:
        copied = {kind: perceptual_hash(copy) for kind, copy in copies_of(image, chance)}
        hashes.append({"photo": perceptual_hash(image), **copied})
    kinds = list(hashes[0])
    photos = find_near_duplicates([of_image["photo"] for of_image in hashes])
    found = find_near_duplicates([value for of_image in hashes for value in of_image.values()])
    group = {index: number for number, members in enumerate(found.groups()) for index in members}
    known = {(first, second) for first, second, _ in photos.pairs}
    origins = [(first // len(kinds), second // len(kinds)) for first, second, _ in found.pairs]
    wrong = [pair for pair in origins if pair[0] != pair[1] and pair not in known]
    recall = {
        kind: statistics.fmean(
            group.get(photo * len(kinds), -1) == group.get(photo * len(kinds) + number, -2) for photo in range(len(images))
        )
        for number, kind in enumerate(kinds)
        if number
    }
    precision = 1 - len(wrong) / len(found.pairs)
    print(f"{name}: {len(images):,} photos, {len(found.pairs):,} pairs, precision {precision:.4f}; recall of their copies:")
    print("".join(f"  {kind:28} {value:.4f}\n" for kind, value in recall.items()), end="")
    print(f"  wrong: {sorted({(paths[one].stem, paths[other].stem) for one, other in wrong})}")
    show(name, paths, photos, pictures)
    return {
        "photos": len(images),
        "pairs": len(found.pairs),
        "precision": precision,
        "recall": recall,
        "pairs_of_photos": len(photos.pairs),
        "largest_group_of_photos": largest(photos),
    }


def measure_groups(name: str, paths: list[Path], images: list[Image.Image], pictures: Path | None) -> dict[str, object]:
    """The largest group among images that are not copies."""
    found = find_near_duplicates([perceptual_hash(image) for image in images])
    print(f"{name}: {len(images):,} images, {len(found.pairs)} pairs, largest group {largest(found)}, alike: {found.alike}")
    show(name, paths, found, pictures)
    return {"images": len(images), "pairs": len(found.pairs), "largest_group": largest(found), "alike": found.alike}


def largest(found: NearDuplicates) -> int:
    return max((len(group) for group in found.groups()), default=0)


def show(name: str, paths: list[Path], found: NearDuplicates, pictures: Path | None) -> None:
    """Print the pairs of photos, and write them side by side into a picture."""
    if not paths or not found.pairs:
        return
    width, height = THUMBNAIL
    sheet = Image.new("RGB", (8 * width, (height + 12) * -(-len(found.pairs) // 4)), "white")
    for number, (first, second, similarity) in enumerate(sorted(found.pairs, key=lambda pair: pair[2])):
        print(f"  {similarity:.3f}  {paths[first].relative_to(SHARED)}  {paths[second].relative_to(SHARED)}")
        for side, path in enumerate((paths[first], paths[second])):
            at = (number % 4 * 2 + side) * width, number // 4 * (height + 12)
            sheet.paste(decode_image(path.read_bytes()).resize(THUMBNAIL), (at[0], at[1] + 12))
            ImageDraw.Draw(sheet).text(at, f"{path.stem} {similarity:.3f}", "black")
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        sheet.save(pictures / f"{name}.png")


def measure_speed() -> dict[str, dict[str, float]]:
    """Milliseconds of decoding and of the hash, alternately, and their ratio."""
    figures = {}
    chance = np.random.default_rng(0)
    for side in (128, 500, 4000):
        file = io.BytesIO()
        blotches = Image.fromarray(chance.integers(0, 256, (side // 8, side // 6, 3), dtype=np.uint8))
        blotches.resize((side, side * 3 // 4), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        rounds = [one_round(file.getvalue()) for _ in range(15)]
        decoding, hashing = (1000 * statistics.median(times) for times in zip(*rounds, strict=True))
        share = statistics.median(of_hash / of_decoding for of_decoding, of_hash in rounds)
        figures[f"{side} px"] = {"decode_and_digest_ms": decoding, "hash_ms": hashing, "share": share}
        print(f"{side} px: decoding and digest {decoding:.2f} ms, hash {hashing:.2f} ms ({share:.1%})")
    return figures


def one_round(data: bytes) -> tuple[float, float]:
    start = time.process_time()
    image = decode_image(data)
    pixel_digest(image)
    middle = time.process_time()
    perceptual_hash(image)
    return middle - start, time.process_time() - middle


def measure_large(real: Hashes, count: int) -> dict[str, object]:
    """Seconds, and the most memory allocated beyond the hashes, for many of them; the share of copies that is found."""
    hashes, sources = synthetic(np.frombuffer(b"".join(filter(None, real)), np.uint8).reshape(-1, SIDE, SIDE), count)
    tracemalloc.start()
    start = time.process_time()
    with Clock() as clock:
        found = find_near_duplicates(hashes)
    cpu = time.process_time() - start
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    pairs = {(first, second) for first, second, _ in found.pairs}
    recall = statistics.fmean((source, count - len(sources) + at) in pairs for at, source in enumerate(sources))
    figures = {"images": count, "seconds": clock.seconds, "cpu_seconds": cpu, "peak_mb": peak, "recall": recall}
    return figures | {"pairs": len(pairs), "largest_group": largest(found)}


def synthetic(real_NSS: np.ndarray, count: int) -> tuple[list[bytes], list[int]]:
    """Hashes, and for the last tenth of them the index of what each is a copy of."""
    chance = np.random.default_rng(1)
    different = count - count // 10
    made_NSS = np.empty((count, SIDE, SIDE), np.uint8)
    for start in range(0, different, 5000):
        size = min(5000, different - start)
        one, other = chance.integers(0, len(real_NSS), (2, size))
        part = chance.uniform(0.3, 0.7, (size, 1, 1))
        turned = np.rot90(real_NSS[other], start // 5000, (1, 2))
        made_NSS[start : start + size] = normalized(part * real_NSS[one] + (1 - part) * turned + noise(chance, size, 3))
    sources = chance.permutation(different)[: count // 10]
    made_NSS[different:] = normalized(made_NSS[sources] + noise(chance, len(sources), 8))
    return [levels.tobytes() for levels in made_NSS], sources.tolist()


def noise(chance: np.random.Generator, count: int, deviation: float) -> np.ndarray:
    return chance.normal(0, deviation, (count, SIDE, SIDE)).astype(np.float32)


def normalized(levels_NSS: np.ndarray) -> np.ndarray:
    levels_NSS = levels_NSS - levels_NSS.mean((1, 2), keepdims=True)
    return np.clip(np.rint(levels_NSS * (CONTRAST / levels_NSS.std((1, 2), keepdims=True)) + 128), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
