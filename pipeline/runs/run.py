"""A run: one configuration with one content of the data, and the folder with the results of its steps.

`<artifacts>/runs/<name>-<digest>/` contains `config.json` and one folder for each step: prepare, train, evaluate, export,
variants, verify. The digest covers the content of the data and every setting of the steps, so the same input gives the same
folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeline.pipeline.config import PipelineConfig, load_config, parse_config
from edgeline.pipeline.names import OUTPUT_MARKER
from edgeline.pipeline.runs.atomic_files import digest_of, replace_file, write_json
from edgeline.pipeline.runs.findings import StepFinding, read_findings
from edgeline.serve.errors import ConfigError, EdgelineError


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder and configuration. Small enough to pass between processes."""

    folder: Path
    config: PipelineConfig

    def step(self, name: str) -> Path:
        """Return the folder of a step's result."""
        return self.folder / name


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of a step."""

    name: str
    folder: Path
    reused: bool
    """Whether the result existed and was reused."""
    seconds: float


STEPS_WITH_RESULTS = ("prepare", "train", "evaluate", "export", "variants", "verify")
"""The folders of a run, in the order of the steps."""


def run_findings(run: Run) -> tuple[StepFinding, ...]:
    """What the finished steps of a run noticed, in order."""
    return read_findings([run.step(name) for name in STEPS_WITH_RESULTS])


def create_run(config: PipelineConfig, fingerprint: str) -> Run:
    """Return the run of a configuration with data of this fingerprint, and create its folder if needed.

    Raises:
        EdgelineError: the folder cannot be written to.
    """
    settings = config.model_dump(mode="json", exclude={"artifacts", "data", "promote", "engine"}) | {
        "name": config.artifact_name
    }
    folder = config.runs / f"{config.artifact_name}-{digest_of([settings, fingerprint])[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (config.runs.parent / OUTPUT_MARKER).write_text("edgeline writes to this folder, and does not read it as data.\n")
        replace_file(folder / "config.json", lambda path: write_json(path, config.model_dump(mode="json")))
    except OSError as error:
        raise EdgelineError(
            f"{folder} cannot be written: {error.strerror}; choose another folder with artifacts=...", code="run_unwritable"
        ) from error
    return Run(folder, config)


def open_run(folder: Path) -> Run:
    """Open a run that `prepare` created.

    Raises:
        ConfigError: the folder is not a run folder, or its configuration is invalid.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is not a run folder: expected the one that `edgeline prepare` printed, with a config.json")
    # Derived from the folder, because the configured path may be relative to another working directory.
    artifacts = folder.resolve().parent.parent
    return Run(folder, load_config(folder / "config.json", artifacts=str(artifacts)))


NOT_STATED: dict[str, bool | set[str]] = {
    **dict.fromkeys(("data", "artifacts", "weights", "promote", "engine"), True),
    "prepare": {"labels"},
}
"""Settings that name folders of this machine, or do not concern the version itself."""


def stated_config(config: PipelineConfig) -> dict[str, Any]:
    """The settings that a published version states, as JSON types: all but `NOT_STATED`."""
    return config.model_dump(mode="json", exclude=NOT_STATED)


def states(stated: dict[str, Any], config: PipelineConfig) -> bool:
    """Whether a version that states these settings was made with a configuration.

    A version that was published by an earlier edgeline does not state settings that are new; they count as the defaults. The
    name is not compared: it may be given or derived from the data.
    """
    try:
        return stated_config(parse_config(stated)) | {"name": ""} == stated_config(config) | {"name": ""}
    except ConfigError:
        return False


def with_splits_of(config: PipelineConfig, version: int | None) -> PipelineConfig:
    """The configuration with the splits of a published version kept."""
    return config.model_copy(update={"prepare": config.prepare.model_copy(update={"keep_splits": version})})
