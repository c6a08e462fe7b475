"""Classifiers from elsewhere, as one thing to ask: ONNX files, TorchScript archives and exported PyTorch programs.

What a file is, its content says and not its name. An ONNX file is data: it is parsed, checked and run from its bytes, so
nothing outside it can be reached. TorchScript and exported programs are code, which can write files when it runs, so
nothing of them is loaded before the caller says that they are trusted; and even then no pickle and no machine code of
theirs is run. A PyTorch checkpoint is refused: it holds weights, and the network around them only its author has.

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

Kind = Literal["ONNX", "TorchScript", "torch.export"]
Precision = Literal["float32", "float16", "int8"]
DTYPES = ("float32", "float16", "uint8")
MOST_BYTES = 2**31
"""What protobuf reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Port:
    """The one tensor that a classifier takes: RGB images."""

    layout: Literal["NCHW", "NHWC"]
    dtype: str
    """`float32` or `float16`, normalized; or `uint8`, as they are."""
    height: int
    width: int
    batch: int | None
    """The only batch size that it takes, None where any."""

    def __str__(self) -> str:
        size = [str(side) for side in (self.height, self.width)]
        dims = ["3", *size] if self.layout == "NCHW" else [*size, "3"]
        return f"{self.dtype} [{', '.join([str(self.batch or 'batch'), *dims])}]"


@dataclass(frozen=True, slots=True)
class Feed:
    """How pixels become what a program takes, in units of 0 to 1: (pixel - mean) / std. Bytes are handed on as they are."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False
    """Channels the other way round."""

    def __call__(self, pixels_NHW3: np.ndarray, port: Port) -> np.ndarray:
        """Lay out uint8 pixels as a program takes them."""
        images_NHW3 = pixels_NHW3[..., ::-1] if self.bgr else pixels_NHW3
        if port.dtype != "uint8":
            scaled_NHW3 = images_NHW3.astype(np.float32) / np.float32(255)
            mean_3, std_3 = np.array(self.mean, np.float32), np.array(self.std, np.float32)
            images_NHW3 = ((scaled_NHW3 - mean_3) / std_3).astype(port.dtype)
        return np.ascontiguousarray(images_NHW3 if port.layout == "NHWC" else images_NHW3.transpose(0, 3, 1, 2))


@dataclass(frozen=True, kw_only=True)
class Program:
    """A classifier that can be asked."""

    name: str
    """Of its file."""
    kind: Kind
    precision: Precision
    port: Port
    outputs: Callable[[np.ndarray], dict[str, np.ndarray]]
    """Everything that it gives for a batch as its port wants it, by name."""
    layers: Callable[[np.ndarray], dict[str, list[np.ndarray]]] | None = None
    """What its convolutions and linear layers give, before and after a batch norm, by the weight's path; if it can be had."""
    model: bytes | None = None
    """Of an ONNX file."""

    def ask(self, pixels: Sequence[np.ndarray], feed: Feed, batch: int) -> np.ndarray:
        """Classify images, `batch` at a time; the last batch is filled up with images that were there already.

        Returns:
            Scores (logits or probabilities), float32 (N, K).

        Raises:
            VerificationError: it fails, or does not give one score for each class.
        """
        filled = [pixels[i % len(pixels)] for i in range(-(-len(pixels) // batch) * batch)]
        batches = track(in_batches(filled, batch), f"asking {self.name}, batch {batch}", len(filled), step=batch)
        rows = [self._scores(feed(pixels_NHW3, self.port)) for pixels_NHW3 in batches]
        if len({row_NK.shape[1] for row_NK in rows}) > 1:
            raise VerificationError(f"{self.name} does not give the same number of classes for every image")
        return np.concatenate(rows)[: len(pixels)]

    def _scores(self, images: np.ndarray) -> np.ndarray:
        try:
            found = self.outputs(images)
        except Exception as error:  # of ONNX Runtime or of TorchScript: neither's errors share a base of their own
            raise VerificationError(f"{self.name} cannot run at batch {len(images)}: {last_line(error)}") from error
        floats = {name: a for name, a in found.items() if a.ndim == 2 and len(a) == len(images) and a.dtype.kind == "f"}
        chosen = [a for name, a in floats.items() if name == "logits"] or list(floats.values())
        if len(chosen) != 1 or chosen[0].shape[1] < 2:
            shapes = ", ".join(f"{name} {list(a.shape)}" for name, a in found.items())
            raise VerificationError(
                f"{self.name} is no classifier that can be judged: for {len(images)} images it gives {shapes or 'nothing'}, "
                "expected one output of floats [batch, classes], or one named `logits`; export it with that one alone"
            )
        return chosen[0].astype(np.float32)


def kind_of(path: Path, data: bytes) -> Kind:
    """What a program's file is, by its content; what is nothing else is taken for ONNX.

    Raises:
        VerificationError: nothing that can be run.
    """
    if data[:1] == b"\x80":
        raise _checkpoint(path)
    if data[:2] != b"PK":
        return "ONNX"
    names = records(path, data)
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "TorchScript"
    if any(name.startswith("models/") for name in names):
        return "torch.export"
    if "data.pkl" in names:
        raise _checkpoint(path)
    raise VerificationError(f"{path} is an archive of something else; give an ONNX, TorchScript or torch.export file")


def read_file(path: Path) -> bytes:
    """The bytes of a model's file.

    Raises:
        VerificationError: there is none, or it is larger than any that can be read.
    """
    if not path.is_file():
        raise VerificationError(f"{path}: there is no such file", code="no_such_file")
    if path.stat().st_size >= MOST_BYTES:
        raise VerificationError(f"{path} has {path.stat().st_size:,} bytes; a model of one file has less than {MOST_BYTES:,}")
    return path.read_bytes()


def last_line(error: Exception) -> str:
    """What an error of somebody else's code says, short and on one line: TorchScript's end with the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def port_of(name: str, dims: Sequence[int | None], dtype: str, size: tuple[int, int] | None) -> Port:
    """Tell what a tensor of images looks like.

    Args:
        name: of the program, for the error.
        dims: its shape, None where free.
        dtype: its type.
        size: height and width, where it leaves them free.

    Raises:
        VerificationError: it takes no RGB images, or does not say how large.
    """
    shown = f"{dtype} [{', '.join(str(dim or 'any') for dim in dims)}]"
    layouts = [layout for layout, axis in (("NCHW", 1), ("NHWC", 3)) if len(dims) == 4 and dims[axis] == 3]
    if len(layouts) != 1 or dtype not in DTYPES:
        raise VerificationError(
            f"{name} takes {shown}, from which nobody can tell how it wants its images; expected float32, float16 or uint8 "
            "[batch, 3, height, width] or [batch, height, width, 3]; export it with such a shape",
            code="input_unclear",
        )
    height, width = dims[2:] if layouts == ["NCHW"] else dims[1:3]
    if size is None and (height is None or width is None):
        raise VerificationError(f"{name} takes {shown}, images of any size; say which with --size", code="size_missing")
    if size is not None and (height or size[0], width or size[1]) != size:
        raise VerificationError(f"{name} takes images of {height} x {width}, not {size[0]} x {size[1]}; look at --size")
    free_height, free_width = size or (0, 0)
    layout: Literal["NCHW", "NHWC"] = "NCHW" if layouts == ["NCHW"] else "NHWC"
    return Port(layout=layout, dtype=dtype, height=height or free_height, width=width or free_width, batch=dims[0])


def records(path: Path, data: bytes) -> list[str]:
    """The names in an archive of PyTorch's, below its one folder.

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
        f"{path} is a PyTorch checkpoint: weights (or a pickle, which is never read) without their network, which only your "
        "code can build; save the network with torch.jit.trace or torch.export, and give that",
        code="eager_checkpoint",
    )
