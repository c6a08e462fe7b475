"""The embedded data: scikit-learn's 1,797 handwritten digits as image files, so that the line runs without any photos.

They are written as 8-bit gray PNG files in class folders, 8 x 8 pixels with a black margin of 4 around them, because the
strokes touch the borders and preprocessing cuts those off; from there on they are treated like anybody's photos.

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
"""Black pixels around the 8 x 8."""

COUNTS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
"""Images of each digit; a folder that has other numbers is written again."""


def write_digits(folder: Path) -> Path:
    """Write the digits as `<folder>/<0..9>/<index>.png`, unless they are there.

    The folder appears whole or not at all, also where two processes write it at once.

    Returns:
        The folder.
    """
    if _is_whole(folder):
        return folder
    temporary = folder.with_name(f".{folder.name}-{uuid4().hex}.tmp")
    try:
        _write(temporary)
        sync_tree(temporary)
        if folder.exists() and not _is_whole(folder):
            shutil.rmtree(folder)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    except OSError:
        if not _is_whole(folder):
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        with Image.open(folder / "0" / "0000.png") as first:  # written by this version?
            if first.width != 8 + 2 * MARGIN:
                return False
    except OSError:
        return False
    return all(len(list(folder.glob(f"{digit}/*.png"))) == count for digit, count in enumerate(COUNTS))


def _write(folder: Path) -> None:
    from sklearn.datasets import load_digits  # takes seconds to import, and is needed once

    digits = load_digits()
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
    for index, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        gray = np.rint(pixels * (255 / 16)).astype(np.uint8)
        Image.fromarray(np.pad(gray, MARGIN)).save(folder / str(digit) / f"{index:04}.png")
