"""LitServe: RUNNERS worker processes with THREADS threads each; `BATCH` over 1 enables its batching.

    python litserve_app.py PORT

The body is raw bytes; its other formats, base64 in JSON and forms, are slower.
"""

import os
import sys
from typing import Annotated

import litserve
import numpy as np
from fastapi import Body
from model import RUNNERS, Model

BATCH = int(os.environ.get("BATCH", "1"))


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = Model()

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> np.ndarray:
        return self.model.pixels(request)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.model.run(x) if BATCH > 1 else self.model.run(x[None])[0]

    def encode_response(self, output: np.ndarray) -> dict:
        return self.model.ranked(output)


if __name__ == "__main__":
    batching = {"max_batch_size": BATCH, "batch_timeout": 0.005} if BATCH > 1 else {}
    fast = os.environ.get("FAST_QUEUE", "") == "1"
    server = litserve.LitServer(
        Api(**batching), accelerator="cpu", devices=1, workers_per_device=RUNNERS, fast_queue=fast, timeout=120
    )
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
