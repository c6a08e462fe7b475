"""What every peer serves: edgeline's artifact, preprocessing and session settings, and the top five classes as JSON types.

Environment variables: `ARTIFACT` is an artifact's folder, `RUNNERS` the number of images that are processed at once, `THREADS`
the threads of the runtime for each. Every peer serves the same `Model`, so that only the servers are compared.
"""

import json
import os
from pathlib import Path

import numpy as np

from edgeline.serve.preprocess import PreprocessSpec, preprocess
from edgeline.serve.runtime.session import create_session

ARTIFACT = Path(os.environ["ARTIFACT"])
RUNNERS = int(os.environ.get("RUNNERS", "2"))
THREADS = int(os.environ.get("THREADS", "1"))


class Model:
    """One session over one artifact's float32 file, or another one of its files."""

    def __init__(self, file: str = os.environ.get("MODEL_FILE", "model.onnx"), threads: int = THREADS) -> None:
        self.spec = PreprocessSpec.from_dict(json.loads((ARTIFACT / "manifest.json").read_bytes())["preprocess"])
        self.labels = (ARTIFACT / "labels.txt").read_text(encoding="utf-8").splitlines()
        self.session = create_session((ARTIFACT / file).read_bytes(), threads=threads)

    def pixels(self, image: bytes) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return preprocess(image, self.spec)

    def run(self, pixels_NHW3: np.ndarray) -> np.ndarray:
        """Probabilities, (N, K)."""
        return self.session.run(["probabilities"], {"image": pixels_NHW3})[0]

    def ranked(self, probabilities_K: np.ndarray) -> dict:
        """The five likeliest classes."""
        best = np.argsort(-probabilities_K)[:5]
        return {"predictions": [{"label": self.labels[i], "probability": float(probabilities_K[i])} for i in best]}

    def predict(self, image: bytes) -> dict:
        """From an image file's bytes to its classes."""
        return self.ranked(self.run(self.pixels(image)[None])[0])
