"""A minimal V2 server on `http.server`: correct in all that is required, except for one planted fault.

It reads requests with edgeline's own functions and writes replies with its own, which contain the faults.
"""

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from edgeline.serve.errors import InputError
from edgeline.serve.http.open_inference.decode import Request, Signature, decode
from edgeline.serve.http.open_inference.encode import decompress
from edgeline.serve.http.open_inference.tensors import Spec

SIGNATURE = Signature((Spec("x", "FP32", (-1, 2)),), (Spec("sum", "FP32", (-1, 1)), Spec("max", "FP32", (-1, 1))), max_batch=8)
STAGES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
HEADER = "Inference-Header-Content-Length"


class Tiny(BaseHTTPRequestHandler):
    """Serves the model `tiny`; `fault` names the planted fault."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fault = ""
    requests = items = 0
    broken = False

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        """Answer everything but inference."""
        self.strip_base()
        prefix = "/v2/models/tiny"
        path = self.path.replace("/versions/1", "")
        pages: dict[str, Callable[[], Any]] = {
            "/v2": self.server_metadata,
            "/v2/": self.server_metadata,
            "/v2/health/live": lambda: {"live": True},
            "/v2/health/ready": lambda: {"live": True, "ready": True},
            f"{prefix}/ready": lambda: {"name": "tiny", "ready": True},
            prefix: self.metadata,
            f"{prefix}/config": self.config,
            f"{prefix}/stats": self.statistics,
            "/v2/models/stats": self.statistics,
            **({"/v2/logging": dict} if self.fault == "answers an extension that it does not advertise" else {}),
        }
        if path == f"{prefix}/infer":
            self.reject(405, "POST only", {"Allow": "POST"})
        elif path not in pages or (self.fault == "no configuration" and path.endswith("/config")):
            self.reject(404, "nothing here")
        else:
            self.reply(200, pages[path]())

    def do_POST(self) -> None:
        """Answer inference and the index."""
        self.strip_base()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.replace("/versions/1", "") == "/v2/repository/index":
            self.reply(200, [{"name": "tiny", "version": "1", "state": "READY", "reason": ""}])
        elif self.path.replace("/versions/1", "") != "/v2/models/tiny/infer":
            self.reject(404, "nothing here")
        else:
            self.infer(body)

    def strip_base(self) -> None:
        """Answer below /base only, if that is the fault."""
        if self.fault == "below /base":
            self.path = self.path.removeprefix("/base") if self.path.startswith("/base/") else "/nothing"

    def infer(self, body: bytes) -> None:
        """Read with edgeline's functions; if the fault is to accept a bad request, answer it."""
        if self.broken:
            self.reject(500, "broken")
            return
        try:
            plain = decompress(body, self.headers.get("Content-Encoding", ""), 2**26)
            request = decode(plain, self.headers.get(HEADER), SIGNATURE)
        except InputError as error:
            type(self).broken = self.fault == "breaks"
            if self.fault.startswith("accepts ") and self.fault.removeprefix("accepts ") in str(error):
                self.answer(Request({"x": np.zeros((1, 2), np.float32)}, ()))
            elif error.code == "content_encoding_not_supported":
                self.reject(415, str(error))
            else:
                self.reject(500 if self.fault == "500 for bad requests" else 400, str(error))
            return
        type(self).requests += 1
        type(self).items += len(request.inputs["x"])
        self.answer(request)

    def answer(self, request: Request) -> None:
        """Write a reply, with the fault."""
        x = request.inputs["x"]
        assert isinstance(x, np.ndarray)
        results = {"sum": x.sum(axis=1, keepdims=True), "max": x.max(axis=1, keepdims=True) + np.float32(1)}
        outputs: list[dict[str, Any]] = []
        blobs: dict[str, bytes] = {}
        for wanted in request.outputs:
            values = results[wanted.name]
            output: dict[str, Any] = {"name": wanted.name, "datatype": "FP32", "shape": list(values.shape)}
            if (wanted.binary or self.fault == "always raw") and self.fault != "never raw":
                blobs[wanted.name] = values.tobytes()
                output["parameters"] = {"binary_data_size": values.nbytes}
            else:
                output["data"] = values.tolist() if self.fault == "nested data" else values.ravel().tolist()
                if self.fault == "parameters on JSON outputs":
                    output["parameters"] = {"content_type": "np"}
            outputs.append(output)
        head = {"model_name": "tiny", "model_version": "1", "outputs": outputs}
        if request.id and self.fault != "no id":
            head["id"] = request.id
        text = json.dumps(head).encode()
        names = sorted(blobs) if self.fault == "raw tensors in another order" else list(blobs)
        framing = {HEADER: str(len(text))} if blobs and self.fault != "no framing header" else {}
        kind = "application/octet-stream" if blobs else "application/json"
        self.write(201 if self.fault == "201" else 200, text + b"".join(blobs[name] for name in names), kind, framing)

    def server_metadata(self) -> dict[str, Any]:
        """Return the server's metadata."""
        return {"name": "tiny", "version": "1", "extensions": ["binary_tensor_data", "statistics", "model_configuration"]}

    def metadata(self) -> dict[str, Any]:
        """Return the model's metadata."""
        tensors = [
            [{"name": s.name, "datatype": s.datatype, "shape": list(s.shape)} for s in side]
            for side in (SIGNATURE.inputs, SIGNATURE.outputs)
        ]
        version: Any = {"version v1": "v1", "an integer version": 1}.get(self.fault, "1")
        return {"name": "tiny", "versions": [version], "platform": "tiny", "inputs": tensors[0], "outputs": tensors[1]}

    def config(self) -> dict[str, Any]:
        """Return the model's configuration."""
        name = "total" if self.fault == "another name in the configuration" else "sum"
        tensor = {"name": name, "data_type": "TYPE_FP32", "dims": [-1, 1] if self.fault == "the batch in dims" else [1]}
        return {"name": "tiny", "platform": "tiny", "max_batch_size": 8, "input": [], "output": [tensor]}

    def statistics(self) -> dict[str, Any]:
        """Return the counters, with the fault."""
        count = {"count": self.requests, "ns": self.requests}
        stages = dict.fromkeys(STAGES, count)
        if self.fault == "a queue counter that stands still":
            stages["queue"] = {"count": 0, "ns": 0}
        items = self.requests if self.fault == "a batch counted once" else self.items
        row = {"name": "tiny", "version": "1", "inference_count": items, "execution_count": self.requests}
        return {"model_stats": [row | {"inference_stats": stages}]}

    def reject(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        """Write an error, with the fault."""
        body: Any = {"error": message}
        if self.fault == "errors under detail":
            body = {"detail": message}
        if self.fault == "errors as objects":
            body = {"error": {"message": message}}
        self.reply(status, body, headers)

    def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        """Write JSON."""
        text = json.dumps(body).encode()
        if self.fault == "compresses everything" and self.headers.get("Accept-Encoding"):
            text, headers = gzip.compress(text), {"Content-Encoding": "gzip", **(headers or {})}
        kind = "application/json; charset=utf-8" if self.fault == "a charset" else "application/json"
        self.write(status, text, kind, headers or {})

    def write(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        """Write a reply; close the connection after it if that is the fault."""
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        if self.fault == "closes":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def _serving_tiny(fault: str = "") -> Iterator[str]:
    handler = type("Faulty", (Tiny,), {"fault": fault, "disable_nagle_algorithm": fault != "waits for acknowledgements"})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., AbstractContextManager[str]]:
    """`with tiny(fault="") as url`."""
    return _serving_tiny
