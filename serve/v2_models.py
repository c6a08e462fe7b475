"""What the Open Inference Protocol V2 sees of this server's models.

Every artifact is offered twice. `<name>` takes image files (BYTES), decoded and preprocessed here; `<name>.pixels` takes what
the graph itself takes (UINT8). Two names, so that what each says of its input is true. Both give `probabilities` and `logits`.

`Models` is all that the routes need of the machinery behind them. `OneModel` is that machinery for a `serve.predictor`.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from serve.classifier import Classifier
from serve.errors import DeadlineError
from serve.predictor import Predictor
from serve.v2_codec import Signature
from serve.v2_tensors import Spec

MAX_BATCH = 64
"""Images in one request; each is answered by itself, so this bounds the request and not a run of the model."""
PIXELS = ".pixels"
"""Ends the name under which an artifact takes pixels; artifact names hold no dot."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model gave for one image, and where its time went."""

    probabilities_K: np.ndarray
    logits_K: np.ndarray
    queue_ns: int
    decode_ns: int
    infer_ns: int
    batch_size: int = 1
    """Images that shared the run."""


class Models(Protocol):
    """Where the classifiers are, and who runs them."""

    def names(self) -> list[str]:
        """The artifacts that this server is for, ready or not."""

    def versions(self, name: str) -> list[int]:
        """The versions that answer, ascending."""

    def get(self, name: str, version: int | None) -> Classifier | None:
        """The classifier of a version, of the newest by default; None where it is unknown or not ready."""

    def index(self) -> list[dict[str, str]]:
        """Each version's `name`, `version`, `state` (READY or UNAVAILABLE) and `reason`."""

    async def answer(self, classifier: Classifier, item: bytes | np.ndarray, deadline_s: float | None) -> Answer:
        """Answer one image.

        Args:
            classifier: from `get`.
            item: a file's bytes, or uint8 (H, W, 3).
            deadline_s: seconds from now after which nobody wants the answer.

        Raises:
            InputError: it is no good image.
            EdgelineError: it cannot be answered now, or not in time.
        """


class OneModel:
    """The models of a server that has one."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def names(self) -> list[str]:
        """The artifact's name; before it is loaded, its folder's."""
        classifier, folder = self._predictor.classifier, self._predictor.artifact
        return [classifier.manifest.name if classifier else folder.parent.name if folder.name.isdigit() else folder.name]

    def versions(self, name: str) -> list[int]:
        """As `Models`."""
        classifier = self.get(name, None)
        return [classifier.manifest.version] if classifier else []

    def get(self, name: str, version: int | None) -> Classifier | None:
        """As `Models`."""
        classifier = self._predictor.classifier
        if classifier is None or classifier.manifest.name != name or version not in (None, classifier.manifest.version):
            return None
        return classifier

    def index(self) -> list[dict[str, str]]:
        """As `Models`."""
        [name] = self.names()
        if versions := self.versions(name):
            return [{"name": name, "version": str(versions[0]), "state": "READY", "reason": ""}]
        failure = self._predictor.failure
        return [{"name": name, "version": "", "state": "UNAVAILABLE", "reason": failure.reason if failure else "loading"}]

    async def answer(self, classifier: Classifier, item: bytes | np.ndarray, deadline_s: float | None) -> Answer:
        """As `Models`."""
        asked_ns = time.perf_counter_ns()
        running = self._predictor.run(_answer, classifier, item, asked_ns)
        try:
            return await asyncio.wait_for(running, deadline_s)  # what still waits for a thread is then never begun
        except TimeoutError as error:
            raise DeadlineError(
                f"the answer took longer than the {deadline_s:g} s that the request allows; allow more"
            ) from error


def _answer(classifier: Classifier, item: bytes | np.ndarray, asked_ns: int) -> Answer:
    begun_ns = time.perf_counter_ns()
    pixels_HW3 = item if isinstance(item, np.ndarray) else classifier.pixels(item)
    decoded_ns = time.perf_counter_ns()
    probabilities_NK, logits_NK = classifier.answer(pixels_HW3[None])
    run_ns = time.perf_counter_ns() - decoded_ns
    return Answer(probabilities_NK[0], logits_NK[0], begun_ns - asked_ns, decoded_ns - begun_ns, run_ns)


def artifact_name(model: str) -> tuple[str, bool]:
    """The artifact behind a model's name, and whether the model takes pixels."""
    return model.removesuffix(PIXELS), model.endswith(PIXELS)


def signature(classifier: Classifier, *, pixels: bool) -> Signature:
    """What a model takes and gives."""
    spec, classes = classifier.manifest.preprocess, len(classifier.manifest.labels)
    # perf_analyzer takes the first dimension for the batch, and wants one more even for a scalar.
    image = (
        Spec("image", "UINT8", (-1, spec.height, spec.width, 3)) if pixels else Spec("image", "BYTES", (-1, 1), is_text=False)
    )
    outputs = tuple(Spec(name, "FP32", (-1, classes)) for name in ("probabilities", "logits"))
    return Signature((image,), outputs, MAX_BATCH)


def metadata(model: str, classifier: Classifier, versions: list[int]) -> dict[str, Any]:
    """The metadata of a model; its `properties` name the artifact, the labels and the preprocessing."""
    found = signature(classifier, pixels=artifact_name(model)[1])
    manifest = classifier.manifest
    return {
        "name": model,
        "versions": [str(version) for version in versions],
        "platform": _platform(classifier),
        "inputs": [_tensor(spec) for spec in found.inputs],
        "outputs": [_tensor(spec) for spec in found.outputs],
        "properties": {
            "artifact": f"{manifest.name}/{manifest.version}",
            "manifest_sha256": classifier.artifact.manifest_sha256,
            "variant": classifier.variant.name,
            "labels": json.dumps(manifest.labels),
            "preprocess": json.dumps(manifest.preprocess.to_dict()),
        },
    }


def config(model: str, classifier: Classifier) -> dict[str, Any]:
    """The configuration of a model: as Triton writes it, dimensions without the batch."""
    found = signature(classifier, pixels=artifact_name(model)[1])
    inputs = [
        {"name": s.name, "data_type": f"TYPE_{'STRING' if s.datatype == 'BYTES' else s.datatype}", "dims": list(s.shape[1:])}
        for s in found.inputs
    ]
    outputs = [
        {"name": s.name, "data_type": f"TYPE_{s.datatype}", "dims": list(s.shape[1:]), "label_filename": "labels.txt"}
        for s in found.outputs
    ]
    return {
        "name": model,
        "platform": _platform(classifier),
        "max_batch_size": found.max_batch,
        "input": inputs,
        "output": outputs,
    }


def _platform(classifier: Classifier) -> str:
    return "onnx_onnxv1" if classifier.variant.format in ("onnx", "ort") else classifier.variant.format


def _tensor(spec: Spec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
