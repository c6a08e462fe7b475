"""The served artifacts as models of the Open Inference Protocol V2.

Every artifact is served as two models. `<name>` takes image files (BYTES), which the server decodes and preprocesses;
`<name>.pixels` takes the graph's own input (UINT8). Two names, so that the metadata of each describes its input exactly. Both
return `probabilities` and `logits`.

`ServableModels` is the interface that the routes need; `Served` implements it with this server's repository and engine.
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
"""Images in one request; each is answered separately, so this limits the request and not a run of the model."""
PIXELS = ".pixels"
"""Suffix of the model that takes pixels; artifact names contain no dot."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The model's outputs for one image, and how long each stage took."""

    probabilities_K: np.ndarray
    logits_K: np.ndarray
    queue_ns: int
    decode_ns: int
    infer_ns: int
    batch_size: int = 1
    """Images in the same run of the model."""


class ServableModels(Protocol):
    """Finds classifiers and runs them."""

    def names(self) -> list[str]:
        """Return the names of the artifacts, ready or not."""

    def versions(self, name: str) -> list[int]:
        """Return the ready versions, ascending."""

    def get(self, name: str, version: int | None) -> Classifier | None:
        """Return the classifier of a version, by default of the served one; None if it is unknown or not ready."""

    def index(self) -> list[dict[str, str]]:
        """Return each version's `name`, `version`, `state` (READY or UNAVAILABLE) and `reason`."""

    async def answer(self, classifier: Classifier, item: bytes | np.ndarray, deadline_s: float | None) -> Answer:
        """Answer one image.

        Args:
            classifier: from `get`.
            item: an encoded image, or uint8 (H, W, 3).
            deadline_s: seconds from now; None for the server's own limit.

        Raises:
            InputError: the item is not a valid image.
            EdgelineError: it cannot be answered now, or not in time.
        """


class Served:
    """The models of this server, run by its engine."""

    def __init__(
        self,
        models: repository.ModelRepository,
        answer: Callable[[Classifier, bytes | np.ndarray, float], Awaitable[job.Answer]],
        max_s: float,
    ) -> None:
        """Connect the repository and the engine.

        Args:
            models: the loaded models.
            answer: has the engine answer one image within a number of seconds.
            max_s: maximum duration of a request.
        """
        self._models, self._answer, self._max_s = models, answer, max_s

    def names(self) -> list[str]:
        """As `ServableModels`; an artifact that is not loaded has the name of its folder."""
        return [slot.name for slot in self._models.slots]

    def versions(self, name: str) -> list[int]:
        """As `ServableModels`."""
        return self._models.versions(name)

    def get(self, name: str, version: int | None) -> Classifier | None:
        """As `ServableModels`; after a rollback, the served version is not the newest."""
        return self._models.get(name, version)

    def index(self) -> list[dict[str, str]]:
        """As `ServableModels`."""
        return self._models.index()

    async def answer(self, classifier: Classifier, item: bytes | np.ndarray, deadline_s: float | None) -> Answer:
        """As `ServableModels`."""
        within_s = self._max_s if deadline_s is None else min(deadline_s, self._max_s)
        found = await self._answer(classifier, item, within_s)
        queue_ns, decode_ns, infer_ns = (int(seconds * 1e9) for seconds in (found.queue_s, found.decode_s, found.infer_s))
        return Answer(found.probabilities_K, found.logits_K, queue_ns, decode_ns, infer_ns, found.batch)


def artifact_name(model: str) -> tuple[str, bool]:
    """Return the name of a model's artifact, and whether the model takes pixels."""
    return model.removesuffix(PIXELS), model.endswith(PIXELS)


def signature(classifier: Classifier, *, pixels: bool) -> Signature:
    """Return the inputs and outputs of a model."""
    spec, classes = classifier.manifest.preprocess, len(classifier.manifest.labels)
    # perf_analyzer treats the first dimension as the batch, and needs another one even for a scalar.
    image = (
        Spec("image", "UINT8", (-1, spec.height, spec.width, 3)) if pixels else Spec("image", "BYTES", (-1, 1), is_text=False)
    )
    outputs = tuple(Spec(name, "FP32", (-1, classes)) for name in ("probabilities", "logits"))
    return Signature((image,), outputs, MAX_BATCH)


def metadata(model: str, classifier: Classifier, versions: list[int]) -> dict[str, Any]:
    """Return a model's metadata; `properties` has the artifact, the labels and the preprocessing."""
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
    """Return a model's configuration in Triton's form, with dimensions that exclude the batch."""
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
