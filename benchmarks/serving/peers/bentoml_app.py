"""BentoML: one service; `WORKERS` processes with RUNNERS / WORKERS threads each, the image as the raw body."""

import os
from pathlib import Path
from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType
from model import RUNNERS, Model

WORKERS = int(os.environ.get("WORKERS", "1"))


@bentoml.service(workers=WORKERS, threads=max(1, RUNNERS // WORKERS), traffic={"timeout": 120})
class Photos:
    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api
    def predict(self, image: Annotated[Path, ContentType("image/jpeg")], /) -> dict[str, Any]:
        return self.model.predict(image.read_bytes())
