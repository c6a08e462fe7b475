"""What `/predict` answers: the JSON of its body, and what it tells of its time."""

import json
from typing import Any

from edgeline.serve.classifier import Classifier
from edgeline.serve.explain import METHOD
from edgeline.serve.inference.job import Answer

ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def identity(classifier: Classifier) -> dict[str, str | int]:
    """Whose answer it is."""
    manifest = classifier.manifest
    return {"model": manifest.name, "version": manifest.version, "variant": classifier.variant.name}


def ranked(classifier: Classifier, answer: Answer, top_k: int) -> list[dict[str, Any]]:
    """The likeliest classes as JSON types, best first."""
    ranking = classifier.rank(answer.probabilities_K, top_k)
    return [{"label": each.label, "probability": each.probability, "index": each.index} for each in ranking]


def said(classifier: Classifier, answer: Answer, top_k: int) -> dict[str, Any]:
    """What one image's answer says; of one that was asked for it, also why."""
    predictions = ranked(classifier, answer, top_k)
    if answer.evidence_Khw is None:
        return {"predictions": predictions}
    for each in predictions:
        each["evidence"] = answer.evidence_Khw[each["index"]].tolist()
    return {"predictions": predictions, "explanation": {"method": METHOD, "region": answer.region}}


def prediction(classifier: Classifier, answer: Answer, top_k: int) -> bytes:
    """The body of one image's answer."""
    return ENCODE({**identity(classifier), **said(classifier, answer, top_k)}).encode()


def server_timing(answer: Answer) -> str:
    """The `Server-Timing` header: what one image's answer took, in milliseconds."""
    queue_ms, decode_ms, infer_ms = answer.queue_s * 1e3, answer.decode_s * 1e3, answer.infer_s * 1e3
    return f"queue;dur={queue_ms:.2f}, decode;dur={decode_ms:.2f}, infer;dur={infer_ms:.2f}"
