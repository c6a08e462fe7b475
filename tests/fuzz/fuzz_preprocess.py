"""Any bytes become pixels of the model's shape or raise an ImageError."""

import io
import sys
import warnings

import atheris

with atheris.instrument_imports(include=["serve", "PIL"]):
    from PIL import Image

    from edgeline.serve.errors import ImageError
    from edgeline.serve.preprocess import Limits, PreprocessSpec, preprocess

warnings.simplefilter("ignore")
SPEC = PreprocessSpec(height=12, width=16)
LIMITS = Limits(max_bytes=200_000, max_pixels=250_000)
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


def seed_of(kind: str, mode: str) -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").resize((24, 18)).convert(mode).save(file, kind)
    return file.getvalue()


SEEDS = [seed_of(kind, mode) for kind in KINDS for mode in ("RGB", "L", "P" if kind in ("PNG", "GIF", "BMP") else "RGB")]


def once(data: bytes) -> None:
    """The bytes themselves, or a valid file that they overwrite in up to eight places."""
    if len(data) < 2:
        return
    image = data[2:]
    if data[0] < 230:
        changed = bytearray(SEEDS[data[0] % len(SEEDS)])
        for at in range(1, min(len(data) - 3, 33), 4):
            place = int.from_bytes(data[at : at + 2], "big") % len(changed)
            changed[place : place + data[at + 2] % 4] = data[at + 3 : at + 4]
        image = bytes(changed[: len(changed) - data[1] % 8])
    try:
        assert preprocess(image, SPEC, LIMITS).shape == (12, 16, 3)
    except ImageError:
        return


atheris.Setup(sys.argv, once)
atheris.Fuzz()
