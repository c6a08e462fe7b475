"""Load a variant by its format: ONNX Runtime's own two, and those of other runtimes, each behind an extra of its own.

    model = load(manifest.variant("openvino-fp32"), artifact.read, threads=1)
    probabilities_NK, logits_NK = model.run(["probabilities", "logits"], {"image": pixels_NHW3})

Whatever computes, what is loaded answers as ONNX Runtime's session does, so the golden samples, the classifier and the gate
have one way to ask.

    python -m edgeline.serve.runtime.backends FORMAT FILE THREADS

answers arrays on standard input until it ends: a runtime that lives in another environment is asked in that way.

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
from typing import Any, BinaryIO

import numpy as np

from edgeline.serve.artifact.manifest import Variant
from edgeline.serve.errors import ArtifactError, EdgelineError, MissingExtraError
from edgeline.serve.runtime.session import create_session, usable_cores

Answer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""uint8 (N, H, W, 3) to probabilities and logits, float32 (N, K) each."""
COREML_FILES = ("Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin")
"""What a Core ML package holds; the first stands for it."""
_EXECUTORCH = threading.Lock()
"""ExecuTorch has one pool of threads a process, and a program is no one's but its caller's while it runs."""
SIZE_BYTES = 8
"""Before every array that is sent: its length in bytes, little-endian."""


@dataclass(frozen=True, slots=True)
class Model:
    """A variant of another runtime, loaded."""

    answer: Answer

    def run(self, names: Sequence[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Answer as `onnxruntime.InferenceSession.run` does.

        Args:
            names: of `probabilities` and `logits`, those to return.
            feeds: `image`, uint8 (N, H, W, 3).
        """
        found = dict(zip(("probabilities", "logits"), self.answer(feeds["image"]), strict=True))
        return [found[name] for name in names]


def files_of(format: str, file: str) -> tuple[str, ...]:
    """Every file of a variant, the one that its manifest names first."""
    if format == "openvino":
        return file, f"{file.removesuffix('.xml')}.bin"
    if format == "coreml":
        return tuple(file.removesuffix(COREML_FILES[0]) + part for part in COREML_FILES)
    return (file,)


def not_run_here(format: str) -> str | None:
    """Why a format runs on no machine like this one, whatever is installed; None where it may."""
    if format == "coreml" and platform.system() != "Darwin":
        return "Core ML runs on macOS and iOS"
    return None


def load(variant: Variant, read: Callable[[str], bytes], threads: int | None = None, *, saturates: bool = True) -> Any:
    """Load a variant.

    Args:
        variant: of an artifact.
        read: the bytes of one of its files, which were compared with their digest. Bytes, so that what was hashed is what is
            loaded.
        threads: for one image; by default as many as this process may use.
        saturates: as `serve.runtime.session.create_session` takes it.

    Returns:
        What has ONNX Runtime's `run`; safe to share between threads.

    Raises:
        MissingExtraError: the format's runtime is not installed.
        ArtifactError: it is, and cannot load the model; or the format is none that edgeline knows, or none for this system.
    """
    parts = [read(path) for path in files_of(variant.format, variant.file)]
    return _open(variant.format, variant.file, parts, threads or usable_cores(), saturates)


def load_file(format: str, path: Path, threads: int, *, saturates: bool = True) -> Any:
    """Load a model that lies in no artifact; see `load`."""
    parts = [(path.parent / name).read_bytes() for name in files_of(format, path.name)]
    return _open(format, path.name, parts, threads, saturates)


def _open(format: str, file: str, parts: Sequence[bytes], threads: int, saturates: bool) -> Any:
    if (why := not_run_here(format)) is not None:
        raise ArtifactError(f"{file} is not run here: {why}; prove and run it there", code="not_run_here")
    if format in ("onnx", "ort"):
        return create_session(parts[0], threads=threads, saturates=saturates)
    if format not in OPENERS:
        raise ArtifactError(
            f"{file} is of the format {format!r}, this edgeline knows onnx, ort, {', '.join(OPENERS)}; install a newer one",
            code="format_unknown",
        )
    try:
        return Model(OPENERS[format](parts, threads))
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or format).partition(".")[0], format) from error
    except EdgelineError:
        raise
    except Exception as error:  # each runtime raises what it likes
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(f"{format} cannot load {file}: {reason}", code="model_unloadable") from error


def _open_openvino(parts: Sequence[bytes], threads: int) -> Answer:
    import openvino

    core = openvino.Core()
    # On processors that have bfloat16 it would compute in that, which is not what was proven.
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
    taken, given = signature.get_input_details(), signature.get_output_details()
    if set(taken) != {"image"} or set(given) != {"probabilities", "logits"}:
        raise ArtifactError(
            f"the LiteRT file takes {sorted(taken)} and gives {sorted(given)}, expected image to give logits and "
            "probabilities; publish the artifact again",
            code="spec_mismatch",
        )
    image = taken["image"]["index"]
    outputs = [given[name]["index"] for name in ("probabilities", "logits")]
    lock = threading.Lock()  # an interpreter has one set of tensors

    def answer(pixels_NHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = []
        with lock:
            for index in range(len(pixels_NHW3)):  # its input is one image
                interpreter.set_tensor(image, pixels_NHW3[index : index + 1])
                interpreter.invoke()
                found.append([interpreter.get_tensor(output) for output in outputs])
        probabilities, logits = zip(*found, strict=True)
        return np.concatenate(probabilities), np.concatenate(logits)

    return answer


def _open_executorch(parts: Sequence[bytes], threads: int) -> Answer:
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    torch = importlib.import_module("torch")  # its Python runtime is built on torch; nothing else here may be
    with _EXECUTORCH:
        # For the whole process: the program that was opened last says how many threads all have.
        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)
        program = Runtime.get().load_program(parts[0])
        program.load_method("forward")

    def answer(pixels_NHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        method = program.load_method("forward")  # the one from above; the program holds the bytes that it reads
        with _EXECUTORCH:
            rows = [method.execute((torch.from_numpy(np.array(pixels_HW3[None])),)) for pixels_HW3 in pixels_NHW3]
        probabilities, logits = (np.concatenate([row[i].numpy() for row in rows]) for i in range(2))
        return probabilities, logits

    return answer


def _open_coreml(parts: Sequence[bytes], threads: int) -> Answer:
    # Written on Linux, where coremltools converts and cannot run: nobody has seen this function work yet. Core ML decides on
    # its own how many threads it takes, and which of the processors.
    import coremltools
    from PIL import Image

    folder = tempfile.TemporaryDirectory(prefix="edgeline-")  # the bytes that were checked, as a package again
    package = Path(folder.name, "model.mlpackage")
    for name, data in zip(COREML_FILES, parts, strict=True):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(data)
    model = coremltools.models.MLModel(str(package))
    lock = threading.Lock()

    def answer(pixels_NHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert folder.name, "the package stays as long as its model"
        with lock:
            rows = [model.predict({"image": Image.fromarray(pixels_HW3)}) for pixels_HW3 in pixels_NHW3]
        probabilities, logits = (
            np.concatenate([np.asarray(row[name], np.float32).reshape(1, -1) for row in rows])
            for name in ("probabilities", "logits")
        )
        return probabilities, logits

    return answer


OPENERS: dict[str, Callable[[Sequence[bytes], int], Answer]] = {
    "openvino": _open_openvino,
    "litert": _open_litert,
    "executorch": _open_executorch,
    "coreml": _open_coreml,
}
"""By format: the variant's files and a number of threads to what answers."""


def send(stream: BinaryIO, array: np.ndarray) -> None:
    """Write one array to a pipe."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    stream.write(buffer.tell().to_bytes(SIZE_BYTES, "little") + buffer.getvalue())
    stream.flush()


def receive(stream: BinaryIO) -> np.ndarray | None:
    """Read one array from a pipe; None where it has ended."""
    size = stream.read(SIZE_BYTES)
    if len(size) < SIZE_BYTES:
        return None
    data = stream.read(int.from_bytes(size, "little"))
    return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))


def answer_pipe(format: str, path: Path, threads: int) -> None:
    """Answer every array of standard input with two on standard output."""
    # A runtime may print as it loads, from C++ too; only arrays may go where the asker reads.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    model = load_file(format, path, threads)
    while (pixels_NHW3 := receive(sys.stdin.buffer)) is not None:
        for array_NK in model.run(["probabilities", "logits"], {"image": pixels_NHW3}):
            send(answers, array_NK)


if __name__ == "__main__":
    try:
        answer_pipe(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    except EdgelineError as failure:
        sys.exit(str(failure))
