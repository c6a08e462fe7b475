"""The output line of `edgeline predict` for one image; `docs/predict.md` has its schema.

Invariant: the numbers equal those of `Classifier.predict` and of the server, because the same methods compute them.
"""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ArtifactError, InputError
from edgeline.serve.explain import METHOD, region_of
from edgeline.serve.inputs.images import Picture
from edgeline.serve.preprocess import fit

if TYPE_CHECKING:
    from edgeline.serve.drift.collector import Drift, Origin


def answer(
    classifier: Classifier, picture: Picture, top_k: int, drift: "Drift | None" = None, *, explain: bool = False
) -> dict[str, Any]:
    """Classify one picture.

    Args:
        classifier: classifies it.
        picture: the image.
        top_k: how many classes to return, at most all of them.
        drift: records the image and its prediction.
        explain: whether to add class activation maps, if the artifact has them.

    Returns:
        The line, as JSON types: the source of the image, the model, and either `predictions` and `times` or `error` and `code`.
    """
    manifest = classifier.manifest
    line: dict[str, Any] = {
        **picture.where,
        "model": manifest.name,
        "version": manifest.version,
        "variant": classifier.variant.name,
    }
    try:
        started = time.perf_counter()
        pixels_HW3 = _pixels(classifier, picture)
        decoded = time.perf_counter()
        outputs = classifier.run(pixels_HW3[None], explain=explain and classifier.explains)
        inferred = time.perf_counter()
    except (InputError, ArtifactError) as error:
        return line | {"error": str(error), "code": error.code}
    probabilities_K = outputs.probabilities_NK[0]
    line["predictions"] = [asdict(prediction) for prediction in classifier.rank(probabilities_K, top_k)]
    if outputs.evidence_NKhw is not None:
        for each in line["predictions"]:
            each["evidence"] = outputs.evidence_NKhw[0, each["index"]].tolist()
        assert not isinstance(picture.content, InputError)
        line["explanation"] = {"method": METHOD, "region": region_of(picture.content, manifest.preprocess)}
    line["times"] = {"decode_ms": _ms(decoded - started), "infer_ms": _ms(inferred - decoded)}
    if drift is not None:
        embedding_C = None if outputs.embedding_NC is None else outputs.embedding_NC[0]
        drift.observe(pixels_HW3, probabilities_K, _origin(picture), embedding_C=embedding_C)
    return line


def _pixels(classifier: Classifier, picture: Picture) -> np.ndarray:
    if isinstance(picture.content, InputError):
        raise picture.content
    if isinstance(picture.content, bytes):
        return classifier.pixels(picture.content)
    return fit(picture.content, classifier.manifest.preprocess)


def _origin(picture: Picture) -> "Origin":
    from edgeline.serve.drift.collector import Origin, origin_of

    if isinstance(picture.content, bytes):
        return origin_of(picture.content)
    assert not isinstance(picture.content, InputError)
    return Origin(picture.content.width, picture.content.height)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
