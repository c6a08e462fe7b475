"""The server under test, and requests built by hand, so that exactly the bytes of a check are sent."""

import http.client
import io
import json
import math
import struct
import urllib.parse
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeline.serve.conformance.reply import Reply
from edgeline.serve.errors import InputError
from edgeline.serve.http.open_inference.tensors import NUMBERS

TIMEOUT_S = 30
IMAGE_WORDS = ("image", "img", "photo", "picture", "jpeg", "jpg", "png")
DEFAULT_BATCH = 8


class Target:
    """A server and one of its models."""

    def __init__(self, url: str, model: str | None = None, image: bytes | None = None) -> None:
        try:
            parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https"):
            raise InputError(f"{url!r} is not a valid address; expected http://HOST:PORT", code="url_invalid")
        self.url = parts.geturl().rstrip("/")
        self.is_tls = parts.scheme == "https"
        self.address = (host, port or (443 if self.is_tls else 80))
        self.base = parts.path.rstrip("/")
        self.model = model or self._first_model()
        self.path = "/v2/models/" + urllib.parse.quote(self.model)
        self.metadata: dict[str, Any] = self.call("GET", self.path).ok()
        self.server: dict[str, Any] = self.call("GET", "/v2").ok()
        config = self.call("GET", f"{self.path}/config")
        self.config: dict[str, Any] = config.json() if config.status == 200 else {}
        self.image = image
        self._takes_raw: bool | None = None
        self._takes_images = image is not None or any(
            word in str(i["name"]).lower() for i in self.specs for word in IMAGE_WORDS
        )

    @property
    def authority(self) -> str:
        """Host, port and base path, as tritonclient expects them."""
        host, port = self.address
        return f"{f'[{host}]' if ':' in host else host}:{port}{self.base}"

    @property
    def specs(self) -> list[dict[str, Any]]:
        """The inputs of the model."""
        return list(self.metadata["inputs"])

    @property
    def output_names(self) -> list[str]:
        """The outputs of the model."""
        return [str(output["name"]) for output in self.metadata["outputs"]]

    @property
    def versions(self) -> list[str]:
        """The versions in the model's metadata."""
        return list(self.metadata.get("versions") or [])

    def version_paths(self) -> list[str]:
        """Return the versioned paths of the model; skip the check if the metadata has no versions."""
        if not self.versions:
            pytest.skip("the model's metadata has no versions")
        return [f"{self.path}/versions/{version}" for version in self.versions]

    @property
    def max_batch(self) -> int:
        """Largest batch to send: from the configuration; without one, a guess if the first dimension is free."""
        if any(spec["shape"][:1] != [-1] for spec in self.specs):
            return 1
        return int(self.config.get("max_batch_size", 0)) or 1 if self.config else DEFAULT_BATCH

    def connect(self) -> http.client.HTTPConnection:
        """Open a connection; the caller closes it."""
        kind = http.client.HTTPSConnection if self.is_tls else http.client.HTTPConnection
        return kind(*self.address, timeout=TIMEOUT_S)

    def call(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        """Send one request on a new connection, with exactly these headers besides Host and Content-Length."""
        connection = self.connect()
        try:
            return self.send(connection, method, path, body, headers)
        finally:
            connection.close()

    def send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Send one request on a connection."""
        connection.putrequest(method, self.base + path, skip_accept_encoding=True)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read(), response.version)

    def values(self, spec: dict[str, Any], batch: int = 1) -> np.ndarray | list[bytes]:
        """Return the values to send for an input: zeros; for BYTES an image file, or text if the model takes no images."""
        shape = self.shape(spec, batch)
        if spec["datatype"] == "BYTES":
            return [self._image() if self._takes_images else b"text"] * math.prod(shape)
        if spec["datatype"] not in NUMBERS:
            pytest.skip(f"inputs of datatype {spec['datatype']} are not supported")
        return np.zeros(shape, NUMBERS[spec["datatype"]])

    def shape(self, spec: dict[str, Any], batch: int = 1) -> list[int]:
        """Return the shape to send for an input."""
        sizes = [1 if size == -1 else size for size in spec["shape"]]
        return [batch, *sizes[1:]] if spec["shape"][:1] == [-1] else sizes

    def request(self, *, binary: bool, batch: int = 1, **members: Any) -> tuple[dict[str, Any], bytes]:
        """Return a valid inference request: its JSON, and the raw tensors after it.

        Args:
            binary: send inputs as raw tensors, else in the JSON; the check is skipped if they cannot be sent so.
            batch: images or rows, if the model accepts any number.
            members: further members of the JSON, such as `id` or `outputs`.
        """
        inputs, blobs = [], []
        for spec in self.specs:
            values = self.values(spec, batch)
            described = {"name": spec["name"], "shape": self.shape(spec, batch), "datatype": spec["datatype"]}
            if binary:
                blobs.append(blob_of(values))
                described["parameters"] = {"binary_data_size": len(blobs[-1])}
            else:
                described["data"] = self._json_of(spec, values)
            inputs.append(described)
        return {"inputs": inputs, **members}, b"".join(blobs)

    @property
    def is_binary_only(self) -> bool:
        """Whether the model's inputs cannot be sent as JSON."""
        return any(spec["datatype"] == "FP16" or (spec["datatype"] == "BYTES" and self._takes_images) for spec in self.specs)

    def infer(
        self,
        head: dict[str, Any] | bytes,
        blob: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        path: str | None = None,
    ) -> Reply:
        """Post an inference request; raw tensors come with the framing header, unless `headers` has it."""
        text = head if isinstance(head, bytes) else json.dumps(head).encode()
        framing = {"Inference-Header-Content-Length": str(len(text))} if blob else {}
        return self.call("POST", path or f"{self.path}/infer", text + blob, framing | (headers or {}))

    def good(self, **members: Any) -> tuple[dict[str, Any], bytes]:
        """Return a valid request: in JSON if the model's inputs can be sent so, else with raw tensors."""
        return self.request(binary=self.is_binary_only, **members)

    def infer_any(self, **members: Any) -> Reply:
        """Post a valid request."""
        return self.infer(*self.good(**members))

    def raw(self, **members: Any) -> tuple[dict[str, Any], bytes]:
        """Return a valid request with raw tensors; skip the check if the server does not accept any."""
        head, blob = self.request(binary=True, **members)
        if self._takes_raw is None:
            self._takes_raw = self.infer(*self.request(binary=True)).status == 200
        if not self._takes_raw:
            pytest.skip("the server accepts no raw tensors")
        return head, blob

    def require_extension(self, extension: str) -> None:
        """Skip the check if the server does not advertise an extension."""
        if extension not in self.server.get("extensions", []):
            pytest.skip(f"the server does not advertise the extension {extension}")

    def _json_of(self, spec: dict[str, Any], values: np.ndarray | list[bytes]) -> list[Any]:
        if self.is_binary_only:
            pytest.skip(f"input {spec['name']} cannot be sent as JSON ({spec['datatype']})")
        return [element.decode() for element in values] if isinstance(values, list) else values.ravel().tolist()

    def _image(self) -> bytes:
        if self.image is None:
            file = io.BytesIO()
            Image.new("RGB", (32, 24), (200, 40, 30)).save(file, "PNG")
            self.image = file.getvalue()
        return self.image

    def _first_model(self) -> str:
        reply = self.call("POST", "/v2/repository/index", b"")
        rows = reply.json() if reply.status == 200 else []
        ready = [row["name"] for row in rows if row.get("state", "READY") == "READY"]
        if not ready:
            raise InputError("the server lists no ready model; name one with --model", code="model_unknown")
        return str(ready[0])


def blob_of(values: np.ndarray | list[bytes]) -> bytes:
    """A tensor as raw bytes."""
    if isinstance(values, np.ndarray):
        return values.tobytes()
    return b"".join(struct.pack("<I", len(element)) + element for element in values)
