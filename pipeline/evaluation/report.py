"""The result of an evaluation: `evaluation.json`, as typed records.

    python -m edgeline.pipeline.evaluation.report > docs/schemas/evaluation.schema.json

writes the JSON Schema, for readers in other languages.
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FILE_NAME = "evaluation.json"


class Record(BaseModel):
    """Base of the records: frozen, unknown fields are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Share(Record):
    """A share of images, with its 95 % Wilson score interval."""

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    correct: int
    total: int


class ClassReport(Record):
    """Metrics of one class."""

    label: str
    precision: float = Field(ge=0, le=1, description="0 if no image was predicted as this class.")
    recall: float = Field(ge=0, le=1)
    f1: float = Field(ge=0, le=1)
    support: int = Field(description="Test images of the class.")


class Average(Record):
    """Unweighted mean over the classes that have test images."""

    precision: float
    recall: float
    f1: float


class Calibration(Record):
    """Calibration of the confidence, before and after temperature scaling."""

    temperature: float = Field(
        gt=0, description="Fitted on validation (Guo et al. 2017); the exported logits are divided by it."
    )
    bins: int
    ece_before: float = Field(description="Expected calibration error on test, at temperature 1.")
    ece_after: float
    nll_before: float = Field(description="Mean negative log-likelihood on test, at temperature 1.")
    nll_after: float


class Mistake(Record):
    """A test image that was classified wrongly."""

    image: str
    label: str
    predicted: str
    probability: float


class Evaluation(Record):
    """The content of `evaluation.json`."""

    schema_: Literal["edgeline.evaluation/1"] = Field("edgeline.evaluation/1", alias="schema", serialization_alias="schema")
    labels: list[str]
    images: int
    device: str = Field("cpu", description="Device that computed the logits, in float32: `cpu` or `cuda`.")
    top1: Share
    top5: Share | None = Field(description="Null for five classes or fewer, where it is meaningless.")
    classes: list[ClassReport]
    macro: Average
    confusion: list[list[int]] = Field(description="Row: the true label, column: the predicted one, in the order of labels.")
    calibration: Calibration
    mistakes: list[Mistake] = Field(description="The most confident ones, at most 50.")

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Write `evaluation.json` into a step's folder."""
    (folder / FILE_NAME).write_text(evaluation.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")


def read_evaluation(folder: Path) -> Evaluation:
    """Read the result in an evaluate step's folder."""
    return Evaluation.model_validate_json((folder / FILE_NAME).read_text(encoding="utf-8"))


def evaluation_schema() -> str:
    """The JSON Schema of `evaluation.json`, as text."""
    return json.dumps(Evaluation.model_json_schema(by_alias=True), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(evaluation_schema(), end="")
