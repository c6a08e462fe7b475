"""What the variants step reports: `variants.json`.

    python -m edgeline.export.variants_report > docs/schemas/variants.schema.json

writes its JSON Schema.
"""

import json
from typing import Literal

from pydantic import Field

from edgeline.export.quantization.report import Int8Report
from edgeline.export.records import Document, Record


class VariantFile(Record):
    """A variant's name and file, as the registry has them."""

    name: str
    file: str
    format: str
    precision: str
    made: bool = True
    why: str | None = None
    """Why it was not made."""
    saturates: bool | None = None
    """Of int8 files of ONNX Runtime: whether two products may exceed 16 bits, as x86 without VNNI adds them."""


class VariantsReport(Document):
    """What was made, or why not."""

    schema_: Literal["edgeline.variants/2"] = Field("edgeline.variants/2", alias="schema")
    variants: tuple[VariantFile, ...] = ()
    int8: Int8Report | None = None
    """How int8 was chosen, if it was requested."""


def variants_schema() -> str:
    """The JSON Schema of `variants.json`."""
    return json.dumps(VariantsReport.model_json_schema(by_alias=True), indent=1) + "\n"


if __name__ == "__main__":
    print(variants_schema(), end="")
