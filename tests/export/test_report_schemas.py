"""The JSON Schemas in the documentation are those of the code, and the published files satisfy them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgeline.export.records import Document
from edgeline.export.variants_report import VariantsReport, variants_schema
from edgeline.export.verification.report import VerificationReport, verification_schema
from edgeline.serve.errors import VerificationError

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
REPORTS: dict[str, tuple[str, type[Document], Callable[[], str], str]] = {
    "verification": ("verify", VerificationReport, verification_schema, "edgeline.export.verification.report"),
    "variants": ("variants", VariantsReport, variants_schema, "edgeline.export.variants_report"),
}


@pytest.mark.parametrize("name", REPORTS)
def test_the_schema_in_the_documentation_is_the_one_of_the_code(name: str) -> None:
    _, _, schema, module = REPORTS[name]
    path = SCHEMAS / f"{name}.schema.json"
    assert path.read_text(encoding="utf-8") == schema(), f"run: python -m {module} > docs/schemas/{path.name}"


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_satisfies_its_schema_and_is_read_back_as_it_was_written(finished: Any, tmp_path: Path, name: str) -> None:
    step, report, schema, _ = REPORTS[name]
    path = finished.run.step(step) / f"{name}.json"
    jsonschema.validate(json.loads(path.read_text()), json.loads(schema()))
    report.read(path).write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


UNREADABLE = {
    "of the previous version": (
        '{"schema": "edgeline.verification/1"}',
        r"not a VerificationReport of this version .*run the step again",
    ),
    "not JSON": ("passed", "not a VerificationReport of this version"),
    "empty": ("", "not a VerificationReport of this version"),
}


@pytest.mark.parametrize(("content", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_report_that_cannot_be_read_is_an_error_of_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "verification.json").write_text(content)
    with pytest.raises(VerificationError, match=message) as error:
        VerificationReport.read(tmp_path / "verification.json")
    assert error.value.code == "not_verified"
    assert "\n" not in str(error.value)


def test_a_missing_report_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="cannot be read: No such file or directory"):
        VerificationReport.read(tmp_path / "verification.json")
