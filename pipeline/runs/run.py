"""A run: one configuration on one content of the data, and the folder its steps fill.

`<artifacts>/runs/<name>-<digest>/` holds `config.json` and a folder a step: prepare, train, evaluate, export, variants, verify.
The digest covers the data's content and every setting, so asking for the same again finds the same folder.
"""

from dataclasses import dataclass
from pathlib import Path

from edgeline.pipeline.config import PipelineConfig, load_config
from edgeline.pipeline.runs.atomic_files import digest_of, replace_file, write_json
from edgeline.serve.errors import ConfigError, EdgelineError


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder and configuration; small enough to hand from process to process."""

    folder: Path
    config: PipelineConfig

    def step(self, name: str) -> Path:
        """The folder of a step's result."""
        return self.folder / name


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step left behind."""

    name: str
    folder: Path
    reused: bool
    """It was there already, unchanged."""
    seconds: float


def create_run(config: PipelineConfig, fingerprint: str) -> Run:
    """Return the run of a configuration on data of this fingerprint, made where it does not exist yet.

    Raises:
        EdgelineError: its folder cannot be written to.
    """
    settings = config.model_dump(mode="json", exclude={"artifacts", "data"}) | {"name": config.artifact_name}
    folder = config.runs / f"{config.artifact_name}-{digest_of([settings, fingerprint])[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "config.json", lambda path: write_json(path, config.model_dump(mode="json")))
    except OSError as error:
        raise EdgelineError(
            f"{folder} cannot be written: {error.strerror}; name another folder with artifacts=...", code="run_unwritable"
        ) from error
    return Run(folder, config)


def open_run(folder: Path) -> Run:
    """Open a run that `prepare` made.

    Raises:
        ConfigError: the folder is no run.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is no run: expected the folder that `edgeline prepare` printed, with a config.json in it")
    # The folder says where the artifacts are, whatever folder the run was made from.
    artifacts = folder.resolve().parent.parent
    return Run(folder, load_config(folder / "config.json", artifacts=str(artifacts)))
