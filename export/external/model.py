"""One interface to image classifiers from other tools: ONNX files, TorchScript archives and exported PyTorch programs.

The format of a file is detected from its content, not its name. An ONNX file is data: it is parsed, checked and run from its
bytes, so it cannot reach other files. TorchScript and exported programs are code that can write files when it runs, so they
are loaded only if the caller trusts them; even then their pickles and machine code are not run. PyTorch checkpoints are
rejected, because they hold weights without the network.

Shapes: N images, H x W the model's input, K classes.
"""

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgeline.export.parity.compare import in_batches
from edgeline.pipeline.progress import track
from edgeline.serve.errors import VerificationError

ModelFormat = Literal["ONNX", "TorchScript", "torch.export"]
Precision = Literal["float32", "float16", "int8"]
DTYPES = ("float32", "float16", "uint8")
MAX_BYTES = 2**31
"""Limit of protobuf."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """The one input of a classifier: RGB images."""

    layout: Literal["NCHW", "NHWC"]
    dtype: str
    """`float32` or `float16`, normalized; or `uint8`, raw pixels."""
    height: int
    width: int
    batch: int | None
    """The fixed batch size, None if it is free."""

    def __str__(self) -> str:
        size = [str(side) for side in (self.height, self.width)]
        dims = ["3", *size] if self.layout == "NCHW" else [*size, "3"]
        return f"{self.dtype} [{', '.join([str(self.batch or 'batch'), *dims])}]"


@dataclass(frozen=True, slots=True)
class InputNormalization:
    """Conversion of pixels to a model's input, on a scale of 0 to 1: (pixel - mean) / std. uint8 inputs get raw pixels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False
    """Whether the channels are reversed."""

    def __call__(self, pixels_NHW3: np.ndarray, spec: InputSpec) -> np.ndarray:
        """Convert uint8 pixels to the layout and type of a model's input."""
        images_NHW3 = pixels_NHW3[..., ::-1] if self.bgr else pixels_NHW3
        if spec.dtype != "uint8":
            scaled_NHW3 = images_NHW3.astype(np.float32) / np.float32(255)
            mean_3, std_3 = np.array(self.mean, np.float32), np.array(self.std, np.float32)
            images_NHW3 = ((scaled_NHW3 - mean_3) / std_3).astype(spec.dtype)
        return np.ascontiguousarray(images_NHW3 if spec.layout == "NHWC" else images_NHW3.transpose(0, 3, 1, 2))


@dataclass(frozen=True, kw_only=True)
class Model:
    """A loaded classifier of any format."""

    name: str
    """File name."""
    format: ModelFormat
    precision: Precision
    input: InputSpec
    outputs: Callable[[np.ndarray], dict[str, np.ndarray]]
    """Runs a batch in the layout and type of `input` and returns all outputs by name."""
    layers: Callable[[np.ndarray], dict[str, list[np.ndarray]]] | None = None
    """Runs a batch and returns the outputs of convolutions and linear layers, before and after a batch norm, by the path of
    the weight; None if the format does not expose them."""
    onnx_bytes: bytes | None = None
    """Content of an ONNX file."""

    def predict(self, pixels: Sequence[np.ndarray], normalization: InputNormalization, batch: int) -> np.ndarray:
        """Classify images, `batch` at a time; the last batch is padded with images from the start.

        Args:
            pixels: uint8 (H, W, 3) each.
            normalization: conversion to the model's input.
            batch: images per batch.

        Returns:
            Scores (logits or probabilities), float32 (N, K).

        Raises:
            VerificationError: the model fails, or does not return one score per class.
        """
        padded = [pixels[i % len(pixels)] for i in range(-(-len(pixels) // batch) * batch)]
        batches = track(in_batches(padded, batch), f"running {self.name}, batch {batch}", len(padded), step=batch)
        rows = [self._scores(normalization(pixels_NHW3, self.input)) for pixels_NHW3 in batches]
        if len({row_NK.shape[1] for row_NK in rows}) > 1:
            raise VerificationError(f"{self.name} does not return the same number of classes for every image")
        return np.concatenate(rows)[: len(pixels)]

    def _scores(self, images: np.ndarray) -> np.ndarray:
        try:
            outputs = self.outputs(images)
        except Exception as error:  # ONNX Runtime's and TorchScript's exceptions have no common base of their own
            raise VerificationError(f"{self.name} fails at batch {len(images)}: {last_line(error)}") from error
        floats = {name: a for name, a in outputs.items() if a.ndim == 2 and len(a) == len(images) and a.dtype.kind == "f"}
        candidates = [a for name, a in floats.items() if name == "logits"] or list(floats.values())
        if len(candidates) != 1 or candidates[0].shape[1] < 2:
            shapes = ", ".join(f"{name} {list(a.shape)}" for name, a in outputs.items())
            raise VerificationError(
                f"{self.name} is not a classifier that can be verified: for {len(images)} images it returns "
                f"{shapes or 'nothing'}, expected one float output [batch, classes], or one named `logits`; export it with "
                "that output only"
            )
        return candidates[0].astype(np.float32)


def detect_format(path: Path, data: bytes) -> ModelFormat:
    """The format of a model file, from its content. Everything that is not an archive counts as ONNX.

    Raises:
        VerificationError: it is not a format that can be run.
    """
    if data[:1] == b"\x80":
        raise _checkpoint(path)
    if data[:2] != b"PK":
        return "ONNX"
    names = archive_entries(path, data)
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "TorchScript"
    if any(name.startswith("models/") for name in names):
        return "torch.export"
    if "data.pkl" in names:
        raise _checkpoint(path)
    raise VerificationError(f"{path} is an archive of another kind; give an ONNX, TorchScript or torch.export file")


def read_file(path: Path) -> bytes:
    """The bytes of a model file.

    Raises:
        VerificationError: it does not exist, or is too large to parse.
    """
    if not path.is_file():
        raise VerificationError(f"{path}: no such file", code="no_such_file")
    if path.stat().st_size >= MAX_BYTES:
        raise VerificationError(f"{path} has {path.stat().st_size:,} bytes; a model in one file has less than {MAX_BYTES:,}")
    return path.read_bytes()


def last_line(error: Exception) -> str:
    """The last line of a third-party exception, at most 300 characters: TorchScript's messages end with the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def parse_input_spec(name: str, dims: Sequence[int | None], dtype: str, size: tuple[int, int] | None) -> InputSpec:
    """Derive the layout and size of an image input from its shape.

    Args:
        name: of the model, for messages.
        dims: its shape, None where free.
        dtype: its type.
        size: height and width, for dimensions that are free.

    Raises:
        VerificationError: it is not an RGB image, or its size is unknown.
    """
    shown = f"{dtype} [{', '.join(str(dim or 'any') for dim in dims)}]"
    layouts = [layout for layout, axis in (("NCHW", 1), ("NHWC", 3)) if len(dims) == 4 and dims[axis] == 3]
    if len(layouts) != 1 or dtype not in DTYPES:
        raise VerificationError(
            f"{name} has the input {shown}, which does not determine the layout of an image; expected float32, float16 or "
            "uint8 [batch, 3, height, width] or [batch, height, width, 3]; export it with such a shape",
            code="input_unclear",
        )
    height, width = dims[2:] if layouts == ["NCHW"] else dims[1:3]
    if size is None and (height is None or width is None):
        raise VerificationError(f"{name} has the input {shown}, of any size; set the size with --size", code="size_missing")
    if size is not None and (height or size[0], width or size[1]) != size:
        raise VerificationError(f"{name} has an input of {height} x {width}, not {size[0]} x {size[1]}; check --size")
    free_height, free_width = size or (0, 0)
    layout: Literal["NCHW", "NHWC"] = "NCHW" if layouts == ["NCHW"] else "NHWC"
    return InputSpec(layout=layout, dtype=dtype, height=height or free_height, width=width or free_width, batch=dims[0])


def archive_entries(path: Path, data: bytes) -> list[str]:
    """The names in a PyTorch archive, without its top-level folder.

    Raises:
        VerificationError: it is damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return [name.partition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise VerificationError(f"{path} is a damaged archive: {last_line(error)}; export it again") from error


def _checkpoint(path: Path) -> VerificationError:
    return VerificationError(
        f"{path} is a PyTorch checkpoint: weights (or a pickle, which is never loaded) without the network, which only your "
        "code can build; save the network with torch.jit.trace or torch.export, and give that file",
        code="eager_checkpoint",
    )
