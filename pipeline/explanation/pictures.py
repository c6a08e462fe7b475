"""Small pictures for people: the model's input, heatmaps over it, and grids of feature maps.

Equal pixels and numbers give equal bytes. The files carry no metadata of the photos.

Shapes: H x W the model's input, h x w positions of a map, C channels.
"""

import base64
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

SIDE = 160
"""Longer side of a picture, in pixels."""
QUALITY = 80
STRONGEST = 0.75
"""Opacity of the hottest place of a heatmap."""
PERCENTILE = 99
"""Values above this percentile have the hottest color, so that a single pixel does not make the others invisible."""
GRID_CELL = 80
GRID_GAP = 4


def save_picture(path: Path, pixels_HW3: np.ndarray) -> None:
    """Save pixels, uint8 (H, W, 3), as a small JPEG."""
    picture = Image.fromarray(pixels_HW3)
    scale = SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    picture.resize(size, Image.Resampling.BICUBIC).save(path, "JPEG", quality=QUALITY)


def save_heatmap(path: Path, pixels_HW3: np.ndarray, heat_hw: np.ndarray) -> None:
    """Save a heatmap over the gray picture. What is negative counts as zero.

    Args:
        path: of the JPEG.
        pixels_HW3: uint8, the model's input.
        heat_hw: of any size; it is stretched over the picture.
    """
    height, width = pixels_HW3.shape[:2]
    heat_hw = np.maximum(heat_hw, 0).astype(np.float32)
    largest = float(np.percentile(heat_hw, PERCENTILE)) or float(heat_hw.max())
    stretched = Image.fromarray(heat_hw / (largest or 1.0)).resize((width, height), Image.Resampling.BICUBIC)
    heat_HW = np.asarray(stretched).clip(0, 1)
    color_HW3 = 255 * matplotlib.colormaps["inferno"](heat_HW)[..., :3]
    gray_HW1 = pixels_HW3.mean(2, keepdims=True)
    opacity_HW1 = STRONGEST * heat_HW[..., None] ** 0.5
    save_picture(path, (gray_HW1 * (1 - opacity_HW1) + color_HW3 * opacity_HW1).round().astype(np.uint8))


def save_grid(path: Path, maps_Chw: np.ndarray, columns: int = 4) -> None:
    """Save maps as a grid of small pictures, row by row, each from its own smallest to its own largest value."""
    rows = -(-len(maps_Chw) // columns)
    step = GRID_CELL + GRID_GAP
    grid = Image.new("RGB", (columns * step - GRID_GAP, rows * step - GRID_GAP), "white")
    for number, map_hw in enumerate(maps_Chw):
        low, high = float(map_hw.min()), float(map_hw.max())
        color_hw3 = matplotlib.colormaps["viridis"]((map_hw - low) / ((high - low) or 1.0))[..., :3]
        cell = Image.fromarray((255 * color_hw3).round().astype(np.uint8))
        place = number % columns * step, number // columns * step
        grid.paste(cell.resize((GRID_CELL, GRID_CELL), Image.Resampling.NEAREST), place)
    grid.save(path, "PNG")


def data_uri(path: Path) -> str:
    """A picture file as a URI that contains it."""
    kind = {".png": "png", ".jpg": "jpeg"}[path.suffix]
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def short_names(names: Sequence[str]) -> list[str]:
    """A short file name for each image: its number and the readable part of its name."""
    readable = ["".join(c if c.isascii() and c.isalnum() else "-" for c in Path(name).stem)[:40] for name in names]
    return [f"{number:02}-{name}" for number, name in enumerate(readable)]
