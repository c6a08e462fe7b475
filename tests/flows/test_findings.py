"""What a step finds is shown wherever a run is: one list in the terminal, in JSON, in the report and in the model card.

F5 and F3c: `edgeline prepare` gave three warnings, `edgeline run` with the same data none.
"""

import html
import json
import logging
import shutil
import sys
from pathlib import Path

import pytest

from edgeline.flows.cli import main as cli
from edgeline.flows.fit import FitResult, fit
from edgeline.flows.steps import run_pipeline
from edgeline.flows.summary import summarize
from edgeline.pipeline.config import PipelineConfig

EXPECTED = {
    "rejected": "Rejected files, listed in rejected.csv: 1 not_an_image (warm/broken.jpg).",
    "leftovers_skipped": "Skipped, as left by systems and tools: warm/Thumbs.db (Windows).",
}


@pytest.fixture(name="artifacts")
def copied(finished: PipelineConfig, tmp_path: Path) -> Path:
    shutil.copytree(finished.artifacts, tmp_path / "artifacts")
    return tmp_path / "artifacts"


@pytest.fixture(name="config")
def configured(finished: PipelineConfig, artifacts: Path) -> PipelineConfig:
    return finished.model_copy(update={"artifacts": str(artifacts)})


def edgeline(*arguments: str) -> None:
    sys.argv = ["edgeline", *arguments]
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


def test_a_run_logs_how_the_data_was_understood_and_what_was_found(
    config: PipelineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "edgeline.steps"):
        run_pipeline(config)
    first, *rest = caplog.messages
    assert first == "40 images of 2 classes, one folder for each class: 26 train, 6 validation, 8 test"
    assert rest[:2] == ["  cold  13 + 3 + 4", "  warm  13 + 3 + 4"]
    for message in EXPECTED.values():
        assert any(line.endswith(message) for line in rest)


def test_the_summary_the_report_and_the_card_have_the_same_findings(config: PipelineConfig) -> None:
    run, steps = run_pipeline(config)
    found = summarize(run, steps).findings
    assert EXPECTED.items() <= {finding.code: finding.message for finding in found}.items()
    page = html.unescape((steps[-1].folder / "report.html").read_text(encoding="utf-8"))
    card = (steps[-1].folder / "card.md").read_text(encoding="utf-8").replace("\\", "")
    for finding in found:
        assert f"<li>{finding.message} ({finding.step})</li>" in page
        assert f"- {finding.message} ({finding.step})\n" in card


@pytest.mark.parametrize("command", ["run", "prepare"])
def test_the_run_command_shows_what_the_step_command_shows(
    command: str, config: PipelineConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [])
    (tmp_path / "run.json").write_text(config.model_dump_json())
    options = ["--config", str(tmp_path / "run.json"), "--artifacts", config.artifacts]
    edgeline(command, *options, *(["--no-prefect"] if command == "run" else []))
    out, err = capsys.readouterr()
    shown = err if command == "run" else out
    assert "40 images of 2 classes, one folder for each class" in shown
    for message in EXPECTED.values():
        assert message in shown
    edgeline(command, "--json", *options, *(["--no-prefect"] if command == "run" else []))
    findings = {finding["code"]: finding["message"] for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert EXPECTED.items() <= findings.items()


def test_fit_returns_the_findings(config: PipelineConfig) -> None:
    settings = config.model_dump(mode="json", exclude={"data"})
    result = fit(config.data, **settings)
    assert isinstance(result, FitResult)
    assert EXPECTED.items() <= {finding["code"]: finding["message"] for finding in result.summary["findings"]}.items()
