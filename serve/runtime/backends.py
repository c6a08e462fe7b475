"""Load a variant by its format: ONNX Runtime's own formats, and other runtimes, each behind its own extra.

    model = load(manifest.variant("openvino-fp32"), artifact.read, threads=1)
    probabilities_NK, logits_NK = model.run(["probabilities", "logits"], {"image": pixels_NHW3})

Every loaded model has the `run` of an ONNX Runtime session, so golden samples, classifier and verification treat all formats
alike. To add a format, add an entry to `BACKENDS`; loading, benchmarks, checks and the HTTP metadata follow from it.

    python -m edgeline.serve.runtime.backends FORMAT FILE THREADS

reads arrays from standard input until it ends and writes the outputs for each: a runtime that is installed in another
environment is called this way.

Shapes: N images, K classes, H x W the model's input.
"""

import importlib
import io
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Unpack

import numpy as np

from edgeline.serve.artifact.manifest import Variant
from edgeline.serve.errors import ArtifactError, EdgelineError, MissingExtraError
from edgeline.serve.runtime.cpu import usable_cores
from edgeline.serve.runtime.session import SessionOptions, create_session, options_for

Answer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""uint8 (N, H, W, 3) to probabilities and logits, float32 (N, K) each."""
COREML_FILES = ("Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin")
"""The files of a Core ML package; the manifest of an artifact refers to the first."""
_EXECUTORCH = threading.Lock()
"""ExecuTorch has one thread pool for the whole process, and a program may run for one caller at a time only."""
SIZE_BYTES = 8
"""Each array in a pipe is preceded by its length in bytes, little-endian."""


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded variant of another runtime."""

    answer: Answer

    def run(self, names: Sequence[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run the model as `onnxruntime.InferenceSession.run` does.

        Args:
            names: the outputs to return, of `probabilities` and `logits`.
            feeds: `image`, uint8 (N, H, W, 3).
        """
        found = dict(zip(("probabilities", "logits"), self.answer(feeds["image"]), strict=True))
        return [found[name] for name in names]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What runs the files of a format."""

    open: Callable[[Sequence[bytes], int], Answer] | None
    """Loads a variant's files with a number of threads; None for ONNX Runtime."""
    packages: tuple[str, ...] = ()
    """Distributions of the runtime, of which the versions are recorded with figures; they come with the extra named like the
    format."""
    files: Callable[[str], tuple[str, ...]] = lambda file: (file,)
    """All files of a variant, given the one in the manifest."""
    system: str | None = None
    """The only system that runs it, as `platform.system` names it."""
    system_reason: str = ""
    """Why it does not run on others."""


def backend(format: str) -> Backend:
    """The backend of a format.

    Raises:
        ArtifactError: this version has none for it.
    """
    if format not in BACKENDS:
        raise ArtifactError(
            f"unknown format {format!r}: this version of edgeline supports {', '.join(BACKENDS)}; install a newer version",
            code="format_unknown",
        )
    return BACKENDS[format]


def uses_onnxruntime(format: str) -> bool:
    """Whether ONNX Runtime runs a format.

    Raises:
        ArtifactError: the format is unknown.
    """
    return backend(format).open is None


def files_of(format: str, file: str) -> tuple[str, ...]:
    """All files of a variant, starting with the one that the manifest refers to.

    Raises:
        ArtifactError: the format is unknown.
    """
    return backend(format).files(file)


def not_run_here(format: str) -> str | None:
    """Why a format cannot run on this system, whatever is installed; None if it can.

    Raises:
        ArtifactError: the format is unknown.
    """
    found = backend(format)
    return found.system_reason if found.system not in (None, platform.system()) else None


def load(variant: Variant, read: Callable[[str], bytes], threads: int | None = None) -> Any:
    """Load a variant.

    Args:
        variant: of an artifact.
        read: returns the bytes of one of its files after comparing their digest. Bytes, so that what was hashed is what is
            loaded.
        threads: for one image; by default as many as this process may use.

    Returns:
        An object with ONNX Runtime's `run`; safe to share between threads.

    Raises:
        MissingExtraError: the format's runtime is not installed.
        ArtifactError: the runtime cannot load the model; or the format is unknown, or not for this system.
    """
    parts = [read(path) for path in files_of(variant.format, variant.file)]
    return _open(variant.format, variant.file, parts, **options_for(variant) | {"threads": threads})


def load_file(format: str, path: Path, **options: Unpack[SessionOptions]) -> Any:
    """Load a model file that is not part of an artifact; see `load`. Other runtimes use only the number of threads."""
    parts = [(path.parent / name).read_bytes() for name in files_of(format, path.name)]
    return _open(format, path.name, parts, **options)


def _open(format: str, file: str, parts: Sequence[bytes], **options: Unpack[SessionOptions]) -> Any:
    if (reason := not_run_here(format)) is not None:
        raise ArtifactError(f"{file} cannot run on this system: {reason}; check and run it there", code="not_run_here")
    opener = backend(format).open
    if opener is None:
        return create_session(parts[0], **options)
    try:
        return Model(opener(parts, options.get("threads") or usable_cores()))
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or format).partition(".")[0], format) from error
    except EdgelineError:
        raise
    except Exception as error:  # exceptions of the runtimes have no common base class
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(f"{format} cannot load {file}: {reason}", code="model_unloadable") from error


def _open_openvino(parts: Sequence[bytes], threads: int) -> Answer:
    import openvino

    core = openvino.Core()
    # On processors with bfloat16 it would compute in that precision, which was not verified.
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    network = core.compile_model(core.read_model(model=parts[0], weights=parts[1]), "CPU", options)

    def answer(pixels_NHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = network.create_infer_request().infer({"image": pixels_NHW3})
        return found["probabilities"], found["logits"]

    return answer


def _open_litert(parts: Sequence[bytes], threads: int) -> Answer:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=parts[0], num_threads=threads)
    interpreter.allocate_tensors()
    signature = interpreter.get_signature_runner()
    inputs, outputs = signature.get_input_details(), signature.get_output_details()
    if set(inputs) != {"image"} or set(outputs) != {"probabilities", "logits"}:
        raise ArtifactError(
            f"the LiteRT file has the inputs {sorted(inputs)} and the outputs {sorted(outputs)}, expected ['image'] and "
            "['logits', 'probabilities']; publish the artifact again",
            code="spec_mismatch",
        )
    image = inputs["image"]["index"]
    indices = [outputs[name]["index"] for name in ("probabilities", "logits")]
    lock = threading.Lock()  # an interpreter has one set of tensors

    def answer(pixels_NHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = []
        with lock:
            for index in range(len(pixels_NHW3)):  # its input is one image
                interpreter.set_tensor(image, pixels_NHW3[index : index + 1])
                interpreter.invoke()
                found.append([interpreter.get_tensor(index) for index in indices])
        probabilities, logits = zip(*found, strict=True)
        return np.concatenate(probabilities), np.concatenate(logits)

    return answer


def _open_executorch(parts: Sequence[bytes], threads: int) -> Answer:
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    torch = importlib.import_module("torch")  # ExecuTorch's Python runtime needs it; nothing else below serve/ may import it
    with _EXECUTORCH:
        # For the whole process: the program that is opened last sets the number of threads for all.
        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)
        program = Runtime.get().load_program(parts[0])
        program.load_method("forward")

    def answer(pixels_NHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        method = program.load_method("forward")  # cached by the program
        with _EXECUTORCH:
            rows = [method.execute((torch.from_numpy(np.array(pixels_HW3[None])),)) for pixels_HW3 in pixels_NHW3]
        probabilities, logits = (np.concatenate([row[i].numpy() for row in rows]) for i in range(2))
        return probabilities, logits

    return answer


def _open_coreml(parts: Sequence[bytes], threads: int) -> Answer:
    # Untested: written on Linux, where coremltools converts models but cannot run them. Core ML chooses the number of threads
    # and the processor itself.
    import coremltools
    from PIL import Image

    folder = tempfile.TemporaryDirectory(prefix="edgeline-")  # Core ML loads packages only from disk
    package = Path(folder.name, "model.mlpackage")
    for name, data in zip(COREML_FILES, parts, strict=True):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(data)
    model = coremltools.models.MLModel(str(package))
    lock = threading.Lock()

    def answer(pixels_NHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert folder.name, "keeps the package as long as the model"
        with lock:
            rows = [model.predict({"image": Image.fromarray(pixels_HW3)}) for pixels_HW3 in pixels_NHW3]
        probabilities, logits = (
            np.concatenate([np.asarray(row[name], np.float32).reshape(1, -1) for row in rows])
            for name in ("probabilities", "logits")
        )
        return probabilities, logits

    return answer


BACKENDS: dict[str, Backend] = {
    "onnx": Backend(open=None),
    "ort": Backend(open=None),
    "openvino": Backend(
        open=_open_openvino,
        packages=("openvino",),
        files=lambda file: (file, f"{file.removesuffix('.xml')}.bin"),
    ),
    "litert": Backend(open=_open_litert, packages=("ai-edge-litert",)),
    "executorch": Backend(open=_open_executorch, packages=("executorch", "torch")),
    "coreml": Backend(
        open=_open_coreml,
        packages=("coremltools",),
        files=lambda file: tuple(file.removesuffix(COREML_FILES[0]) + part for part in COREML_FILES),
        system="Darwin",
        system_reason="Core ML runs on macOS and iOS",
    ),
}
"""By format, as a manifest names it."""


def send(stream: BinaryIO, array: np.ndarray) -> None:
    """Write one array to a pipe."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    stream.write(buffer.tell().to_bytes(SIZE_BYTES, "little") + buffer.getvalue())
    stream.flush()


def receive(stream: BinaryIO) -> np.ndarray | None:
    """Read one array from a pipe; None at its end."""
    size = stream.read(SIZE_BYTES)
    if len(size) < SIZE_BYTES:
        return None
    data = stream.read(int.from_bytes(size, "little"))
    return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))


def serve_pipe(format: str, path: Path, threads: int) -> None:
    """Run a model on every array from standard input; writes probabilities and logits to standard output."""
    # A runtime may print while it loads, also from C++; the pipe may carry nothing but arrays.
    outputs = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    model = load_file(format, path, threads=threads)
    while (pixels_NHW3 := receive(sys.stdin.buffer)) is not None:
        for array_NK in model.run(["probabilities", "logits"], {"image": pixels_NHW3}):
            send(outputs, array_NK)


if __name__ == "__main__":
    try:
        serve_pipe(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    except EdgelineError as failure:
        sys.exit(str(failure))
