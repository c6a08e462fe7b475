"""Encode replies of the Open Inference Protocol V2, and compress or decompress bodies. Pure functions, no HTTP.

Rules without which clients break, each with a test: JSON data is one flat list; an output has `parameters` only together with
`binary_data_size`; raw bytes follow the JSON in the order of the outputs; no number that is not finite is ever written.
"""

import gzip
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeline.serve.errors import ArtifactError, InputError

MAX_CLASSIFIED = 1_000_000
"""Largest output, in elements, that is sorted for the classification extension."""
WINDOWS = {"gzip": 31, "deflate": 15}
"""Supported encodings, with zlib's `wbits` for each; in HTTP, deflate means zlib's format."""
CHUNK_BYTES = 64 * 2**10
LEVEL = 1


@dataclass(frozen=True, slots=True)
class Output:
    """One output of a reply."""

    name: str
    data: np.ndarray | list[bytes]
    """float32 with its shape, or elements of BYTES."""
    shape: tuple[int, ...]
    binary: bool


def encode(head: dict[str, Any], outputs: Sequence[Output]) -> tuple[bytes, int | None]:
    """Encode a reply.

    Args:
        head: the members before the outputs: model, version, id.
        outputs: in the order in which they were requested.

    Returns:
        The body, and the length of its JSON if raw tensors follow it.

    Raises:
        ArtifactError: the model returned a number that is not finite.
    """
    described, blobs = [], []
    for output in outputs:
        is_text = isinstance(output.data, list)
        entry: dict[str, Any] = {"name": output.name, "datatype": "BYTES" if is_text else "FP32", "shape": list(output.shape)}
        if isinstance(output.data, np.ndarray) and not np.isfinite(output.data).all():
            raise ArtifactError(f"the model's {output.name} have a number that is not finite", code="model_output_not_finite")
        if output.binary:
            blobs.append(_blob(output.data))
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        elif isinstance(output.data, list):
            entry["data"] = [element.decode() for element in output.data]
        else:
            entry["data"] = output.data.ravel().tolist()  # the exact double of each float, so that it comes back bit for bit
        described.append(entry)
    text = json.dumps({**head, "outputs": described}, separators=(",", ":"), allow_nan=False).encode("ascii")
    return b"".join([text, *blobs]), len(text) if any(blobs) else None


def _blob(data: np.ndarray | list[bytes]) -> bytes:
    if isinstance(data, np.ndarray):
        return data.astype("<f4", copy=False).tobytes()
    return b"".join(struct.pack("<I", len(element)) + element for element in data)


def classify(name: str, values_NK: np.ndarray, k: int, labels: Sequence[str], *, binary: bool) -> Output:
    """Return the k largest values of each row as `value:index:label`, best first; equal values in the order of their index.

    Raises:
        InputError: the output is too large to be sorted.
    """
    if values_NK.size > MAX_CLASSIFIED:
        raise InputError(
            f"classification sorts at most {MAX_CLASSIFIED:,} values per request, {name} has {values_NK.size:,}; "
            "send fewer images at once",
            code="tensor_invalid",
        )
    order_NK = np.argsort(-values_NK, axis=1, kind="stable")[:, :k]
    elements = [
        f"{row_K[i]:f}:{i}:{labels[i]}".encode() for row_K, best in zip(values_NK, order_NK.tolist(), strict=True) for i in best
    ]
    return Output(name, elements, order_NK.shape, binary)


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Decompress a body, without ever holding more than `max_bytes` and one chunk.

    Args:
        body: as received.
        encoding: the Content-Encoding as received; empty and `identity` leave the body as it is.
        max_bytes: limit of the result.

    Raises:
        InputError: an unsupported encoding, damaged data, or more than `max_bytes`.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in WINDOWS:
        raise InputError(
            "this Content-Encoding is not supported; send gzip, deflate or none", code="content_encoding_not_supported"
        )
    stream, found, source = zlib.decompressobj(WINDOWS[name]), bytearray(), memoryview(body)
    try:
        for start in range(0, len(source), CHUNK_BYTES):  # in chunks: zlib copies what it leaves unread on every call
            rest: bytes | memoryview = source[start : start + CHUNK_BYTES]
            while rest and not stream.eof:
                found += stream.decompress(rest, CHUNK_BYTES)
                if len(found) > max_bytes:
                    raise InputError(f"the body decompresses to more than {max_bytes:,} bytes", code="body_too_large")
                rest = stream.unconsumed_tail
            if stream.eof and (stream.unused_data or start + CHUNK_BYTES < len(source)):
                raise InputError(f"the body continues after the end of its {name} data", code="content_encoding_invalid")
    except zlib.error as error:
        raise InputError(f"the body is not valid {name} data", code="content_encoding_invalid") from error
    if not stream.eof:
        raise InputError(f"the body's {name} data is truncated", code="content_encoding_invalid")
    return bytes(found)


def compress(body: bytes, accept_encoding: str) -> tuple[bytes, str | None]:
    """Compress a reply if its client accepts that.

    Returns:
        The body, and its Content-Encoding; None if the client accepts neither gzip nor deflate.
    """
    accepted = {}
    for item in accept_encoding.lower().split(","):
        name, _, quality = item.partition(";")
        accepted[name.strip()] = quality.replace(" ", "").strip("q=0.") != "" or not quality
    for name in WINDOWS:
        if accepted.get(name):
            return (gzip.compress(body, LEVEL, mtime=0) if name == "gzip" else zlib.compress(body, LEVEL)), name
    return body, None
