import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.pipeline.evaluation import report as report_module
from edgeline.pipeline.evaluation.report import FILE_NAME, Evaluation, evaluation_schema, read_evaluation, write_evaluation
from edgeline.pipeline.runs.run import Run

SCHEMA = Path(__file__).resolve().parents[3] / "docs" / "schemas" / "evaluation.schema.json"


def test_a_written_evaluation_is_read_back(evaluated_run: Run, tmp_path: Path) -> None:
    evaluation = read_evaluation(evaluated_run.step("evaluate"))
    write_evaluation(tmp_path, evaluation)
    assert read_evaluation(tmp_path) == evaluation


def test_the_schema_in_the_documentation_is_up_to_date() -> None:
    written = SCHEMA.read_text(encoding="utf-8")
    assert json.loads(written) == Evaluation.model_json_schema(by_alias=True)
    assert written == evaluation_schema(), (
        "run: python -m edgeline.pipeline.evaluation.report > docs/schemas/evaluation.schema.json"
    )


def test_the_command_writes_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(report_module.__file__, run_name="__main__")  # as python -m does, without importing torch again
    assert capsys.readouterr().out == evaluation_schema()


def without_labels(report: dict[str, object]) -> None:
    del report["labels"]


def with_another_field(report: dict[str, object]) -> None:
    report["color"] = "red"


def with_text_for_a_count(report: dict[str, object]) -> None:
    report["images"] = "twelve"


def of_another_schema(report: dict[str, object]) -> None:
    report["schema"] = "edgeline.evaluation/2"


@pytest.mark.parametrize("damage", [without_labels, with_another_field, with_text_for_a_count, of_another_schema])
def test_the_schema_accepts_a_real_report_and_rejects_a_damaged_one(
    damage: Callable[[dict[str, object]], None], evaluated_run: Run
) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="comes with Prefect and is not our dependency")
    report = json.loads((evaluated_run.step("evaluate") / FILE_NAME).read_text())
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    assert list(validator.iter_errors(report)) == []
    damage(report)
    assert list(validator.iter_errors(report)) != []
    with pytest.raises(ValueError, match="validation error"):
        Evaluation.model_validate(report)
