"""What the Open Inference Protocol V2 sees of this server's models.

Every artifact is offered twice. `<name>` takes image files (BYTES), decoded and preprocessed here; `<name>.pixels` takes what
the graph itself takes (UINT8). Two names, so that what each says of its input is true. Both give `probabilities` and `logits`.

`ServableModels` is all that the routes need of the machinery behind them, and `Served` is this server's.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edgeline.serve.classifier import Classifier
from edgeline.serve.http.open_inference.decode import Signature
from edgeline.serve.http.open_inference.tensors import Spec
from edgeline.serve.inference import job, repository

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


class ServableModels(Protocol):
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


class Served:
    """The models of this server, answered by its engine."""

    def __init__(
        self,
        models: repository.ModelRepository,
        answer: Callable[[Classifier, bytes | np.ndarray, float], Awaitable[job.Answer]],
        most_s: float,
    ) -> None:
        """Take what does the work.

        Args:
            models: what is loaded.
            answer: has the engine answer one image within so many seconds.
            most_s: the most that a request may take.
        """
        self._models, self._answer, self._most_s = models, answer, most_s

    def names(self) -> list[str]:
        """The artifacts' names; before one is loaded, its folder's."""
        return [slot.name for slot in self._models.slots]

    def versions(self, name: str) -> list[int]:
        """As `ServableModels`."""
        return self._models.versions(name)

    def get(self, name: str, version: int | None) -> Classifier | None:
        """As `ServableModels`; without a version the one that answers now, which after a rollback is not the newest."""
        return self._models.get(name, version)

    def index(self) -> list[dict[str, str]]:
        """As `ServableModels`."""
        return self._models.index()

    async def answer(self, classifier: Classifier, item: bytes | np.ndarray, deadline_s: float | None) -> Answer:
        """As `ServableModels`."""
        within_s = self._most_s if deadline_s is None else min(deadline_s, self._most_s)
        found = await self._answer(classifier, item, within_s)
        queue_ns, decode_ns, infer_ns = (int(seconds * 1e9) for seconds in (found.queue_s, found.decode_s, found.infer_s))
        return Answer(found.probabilities_K, found.logits_K, queue_ns, decode_ns, infer_ns, found.batch)


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
