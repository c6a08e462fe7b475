"""Read the request and write the reply of one Open Inference Protocol V2 inference.

Small bodies are handled on the event loop, which costs less than a thread; large and compressed ones in a thread.
"""

import asyncio
from collections.abc import Sequence

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import InputError
from edgeline.serve.http.open_inference import decode as decoding
from edgeline.serve.http.open_inference.decode import RequestedOutput, Signature
from edgeline.serve.http.open_inference.encode import Output, classify, compress, decompress, encode
from edgeline.serve.http.open_inference.models import Answer
from edgeline.serve.http.request_body import timeout_s

INLINE_BYTES = 32 * 2**10
INLINE_NUMBERS = 2_000
"""Up to these sizes, reading or writing takes a few milliseconds at most and stays on the event loop."""


async def read_request(request: Request, body: bytes, max_bytes: int, model: Signature) -> decoding.Request:
    """Decode an inference request's body; a large one in a thread."""
    encoding = request.headers.get("content-encoding", "")
    lengths = request.headers.getlist("inference-header-content-length")
    if len(lengths) > 1:
        raise InputError("Inference-Header-Content-Length was sent twice, expected once", code="tensor_invalid")
    json_reply = "application/json" in request.headers.get("accept", "")

    def read() -> decoding.Request:
        plain = decompress(body, encoding, max_bytes)
        return decoding.decode(plain, lengths[0] if lengths else None, model, json_reply=json_reply)

    head_bytes = int(lengths[0]) if lengths and lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) < 20 else 0
    is_small = not encoding and (head_bytes or len(body)) <= INLINE_BYTES
    return read() if is_small else await asyncio.to_thread(read)


async def write_reply(
    request: Request, model: str, classifier: Classifier, answers: Sequence[Answer], decoded: decoding.Request
) -> Response:
    """Encode an inference reply; a large one in a thread."""
    rows = {
        "probabilities": np.stack([answer.probabilities_K for answer in answers]),
        "logits": np.stack([answer.logits_K for answer in answers]),
    }
    labels, accepted = classifier.manifest.labels, request.headers.get("accept-encoding", "")

    def write() -> tuple[bytes, str | None, int | None]:
        head = {
            "model_name": model,
            "model_version": str(classifier.manifest.version),
            **({"id": decoded.id} if decoded.id else {}),
        }
        body, head_bytes = encode(head, [_output(requested, rows[requested.name], labels) for requested in decoded.outputs])
        return *compress(body, accepted), head_bytes

    body, encoding, head_bytes = write() if rows["logits"].size <= INLINE_NUMBERS else await asyncio.to_thread(write)
    headers = {"Content-Type": "application/json" if head_bytes is None else "application/octet-stream"}
    if head_bytes is not None:
        headers["Inference-Header-Content-Length"] = str(head_bytes)
    if encoding is not None:
        headers |= {"Content-Encoding": encoding, "Vary": "Accept-Encoding"}
    return Response(body, headers=headers)


def _output(requested: RequestedOutput, values_NK: np.ndarray, labels: Sequence[str]) -> Output:
    if requested.classes:
        return classify(requested.name, values_NK, requested.classes, labels, binary=requested.binary)
    return Output(requested.name, values_NK, values_NK.shape, requested.binary)


def deadline_of(request: Request, timeout_us: int) -> float | None:
    """Return the earlier of the two deadlines that a request may have, in seconds from now."""
    found = [timeout_us / 1e6] if timeout_us else []
    if (header_s := timeout_s(request.headers)) is not None:
        found.append(header_s)
    return min(found, default=None)
