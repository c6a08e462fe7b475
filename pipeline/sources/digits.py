"""The embedded data: scikit-learn's 1,797 handwritten digits as image files, so that the pipeline runs without photos.

They are written as 8-bit gray PNG files in class folders, 8 x 8 pixels with a black margin of 4, because the strokes touch
the borders, which preprocessing crops. From then on they are processed like any photos.

Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository (1998),
CC BY 4.0; the part that scikit-learn ships.
"""

import os
import shutil
from pathlib import Path
from uuid import uuid4

import numpy as np
from PIL import Image

from edgeline.pipeline.runs.atomic_files import sync_folder, sync_tree

MARGIN = 4
"""Width of the black margin, in pixels."""

COUNTS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
"""Number of images of each digit. A folder with other numbers is written again."""


def write_digits(folder: Path) -> Path:
    """Write the digits as `<folder>/<0..9>/<index>.png`, unless they exist.

    The folder appears complete or not at all, even if two processes write it at the same time.

    Returns:
        The folder.
    """
    if _is_complete(folder):
        return folder
    temporary = folder.with_name(f".{folder.name}-{uuid4().hex}.tmp")
    try:
        _write(temporary)
        sync_tree(temporary)
        if folder.exists() and not _is_complete(folder):
            shutil.rmtree(folder)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    except OSError:
        if not _is_complete(folder):
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_complete(folder: Path) -> bool:
    try:
        with Image.open(folder / "0" / "0000.png") as first:  # another size is from an older version
            if first.width != 8 + 2 * MARGIN:
                return False
    except OSError:
        return False
    return all(len(list(folder.glob(f"{digit}/*.png"))) == count for digit, count in enumerate(COUNTS))


def _write(folder: Path) -> None:
    from sklearn.datasets import load_digits  # takes seconds to import

    digits = load_digits()
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
    for index, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        gray = np.rint(pixels * (255 / 16)).astype(np.uint8)
        Image.fromarray(np.pad(gray, MARGIN)).save(folder / str(digit) / f"{index:04}.png")
