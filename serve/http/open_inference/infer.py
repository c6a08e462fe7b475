"""One inference of the Open Inference Protocol V2 over HTTP: its request read, its reply written.

Small bodies are handled on the event loop, which costs less than a thread; large ones, and those still packed, in a thread.
"""

import asyncio
from collections.abc import Sequence

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import InputError
from edgeline.serve.http.open_inference import decode as v2_codec
from edgeline.serve.http.open_inference.decode import Signature, Wanted
from edgeline.serve.http.open_inference.encode import Output, classify, compress, decompress, encode
from edgeline.serve.http.open_inference.models import Answer
from edgeline.serve.http.request_body import timeout_s

INLINE_BYTES = 32 * 2**10
INLINE_NUMBERS = 2_000
"""Up to here reading or writing takes under a few milliseconds, and stays on the event loop."""


async def read_request(request: Request, body: bytes, max_bytes: int, model: Signature) -> v2_codec.Request:
    """Read an inference request's body; where it is large, in a thread."""
    encoding = request.headers.get("content-encoding", "")
    lengths = request.headers.getlist("inference-header-content-length")
    if len(lengths) > 1:
        raise InputError("Inference-Header-Content-Length came twice, expected once", code="tensor_invalid")
    json_reply = "application/json" in request.headers.get("accept", "")

    def read() -> v2_codec.Request:
        plain = decompress(body, encoding, max_bytes)
        return v2_codec.decode(plain, lengths[0] if lengths else None, model, json_reply=json_reply)

    head_bytes = int(lengths[0]) if lengths and lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) < 20 else 0
    is_small = not encoding and (head_bytes or len(body)) <= INLINE_BYTES
    return read() if is_small else await asyncio.to_thread(read)


async def write_reply(
    request: Request, model: str, classifier: Classifier, answers: Sequence[Answer], asked: v2_codec.Request
) -> Response:
    """Write an inference reply; where it is large, in a thread."""
    rows = {
        "probabilities": np.stack([answer.probabilities_K for answer in answers]),
        "logits": np.stack([answer.logits_K for answer in answers]),
    }
    labels, accepted = classifier.manifest.labels, request.headers.get("accept-encoding", "")

    def write() -> tuple[bytes, str | None, int | None]:
        head = {
            "model_name": model,
            "model_version": str(classifier.manifest.version),
            **({"id": asked.id} if asked.id else {}),
        }
        body, head_bytes = encode(head, [_output(wanted, rows[wanted.name], labels) for wanted in asked.outputs])
        return *compress(body, accepted), head_bytes

    body, encoding, head_bytes = write() if rows["logits"].size <= INLINE_NUMBERS else await asyncio.to_thread(write)
    headers = {"Content-Type": "application/json" if head_bytes is None else "application/octet-stream"}
    if head_bytes is not None:
        headers["Inference-Header-Content-Length"] = str(head_bytes)
    if encoding is not None:
        headers |= {"Content-Encoding": encoding, "Vary": "Accept-Encoding"}
    return Response(body, headers=headers)


def _output(wanted: Wanted, values_NK: np.ndarray, labels: Sequence[str]) -> Output:
    if wanted.classes:
        return classify(wanted.name, values_NK, wanted.classes, labels, binary=wanted.binary)
    return Output(wanted.name, values_NK, values_NK.shape, wanted.binary)


def deadline_of(request: Request, timeout_us: int) -> float | None:
    """The nearer one of the two deadlines that a request may carry, in seconds from now."""
    found = [timeout_us / 1e6] if timeout_us else []
    if (header_s := timeout_s(request.headers)) is not None:
        found.append(header_s)
    return min(found, default=None)
