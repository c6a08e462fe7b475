"""The run log: one SQLite file in the artifacts folder with the settings, figures and errors of every run.

    log = RunLog(Path("artifacts"))
    log.record(run)
    log.select(["model=mobilenet_v2", "accuracy>=0.9"])

A run has one entry, which is replaced when the run is executed again. The figures are read from the results of its steps, so a
deleted log is filled again from the run folders; only errors are lost with it.
"""

import json
import logging
import operator
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgeline.pipeline.runs.receipts import read_receipt
from edgeline.pipeline.runs.run import STEPS_WITH_RESULTS, Run, open_run
from edgeline.serve.errors import ConfigError, EdgelineError

LOG = logging.getLogger(__name__)
FILE_NAME = "runs.sqlite"
CONDITION = re.compile(r"\s*([\w.]+)\s*(>=|<=|!=|=|>|<)\s*(.*?)\s*")
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEntry:
    """What the log has of a run."""

    run: str
    """Name of its folder."""
    time: str
    """When it was last executed, UTC."""
    state: str
    """`finished`, or `failed`."""
    error: str = ""
    experiment: str = ""
    """Name of the experiment that it belongs to."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Every setting by its dotted name."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Figures of the finished steps, see `read_metrics`."""

    def values(self) -> dict[str, Any]:
        """Everything by name, as filters and exports use it."""
        entry = asdict(self)
        return {
            **{name: entry[name] for name in ("run", "time", "state", "experiment", "error")},
            **self.settings,
            **self.metrics,
        }


class RunLog:
    """The log in a folder of artifacts. Safe with concurrent processes."""

    def __init__(self, artifacts: Path) -> None:
        """Open the log; its file is created with the first entry."""
        self.artifacts = artifacts
        self.path = artifacts / FILE_NAME

    def record(self, run: Run, *, error: str = "", experiment: str = "") -> RunEntry:
        """Write the entry of a run, from the results of its finished steps.

        Args:
            run: one that exists.
            error: the message, if it failed.
            experiment: the experiment it belongs to; by default the one that it already has.

        Raises:
            EdgelineError: the file cannot be written.
        """
        known = self._read(run.folder.name)
        entry = RunEntry(
            run=run.folder.name,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            state="failed" if error else "finished",
            error=error,
            experiment=experiment or (known.experiment if known else ""),
            settings=dict(flatten(run.config.model_dump(mode="json"))) | {"name": run.config.artifact_name},
            metrics=read_metrics(run),
        )
        with self._connect() as database:
            database.execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", (entry.run, json.dumps(asdict(entry))))
        return entry

    def refresh(self) -> None:
        """Add the runs that have a folder but no entry."""
        known = {entry.run for entry in self._entries()}
        for folder in sorted((self.artifacts / "runs").glob("*/config.json")):
            if folder.parent.name not in known and (folder.parent / "evaluate").is_dir():
                self.record(open_run(folder.parent))

    def select(self, conditions: Iterable[str] = ()) -> list[RunEntry]:
        """Return the entries that fulfil every condition, the newest last.

        Args:
            conditions: such as `model=mobilenet_v2`, `train.learning_rate>=1e-3`, `state!=failed`. A run without the value
                does not fulfil it.

        Raises:
            ConfigError: a condition is not understood, or no run has a value of its name.
        """
        tests = [parse_condition(condition) for condition in conditions]
        entries = sorted(self._entries(), key=lambda entry: (entry.time, entry.run))
        names = {name for entry in entries for name in entry.values()}
        if entries and (unknown := [name for name, _ in tests if name not in names]):
            raise ConfigError(f"no run has a value {unknown[0]!r}; there are {', '.join(sorted(names))}")
        return [entry for entry in entries if all(test(entry.values().get(name)) for name, test in tests)]

    def _read(self, name: str) -> RunEntry | None:
        if not self.path.exists():
            return None
        with self._connect() as database:
            row = database.execute("SELECT entry FROM runs WHERE run = ?", (name,)).fetchone()
        return RunEntry(**json.loads(row[0])) if row else None

    def _entries(self) -> list[RunEntry]:
        if not self.path.exists():
            return []
        with self._connect() as database:
            return [RunEntry(**json.loads(row[0])) for row in database.execute("SELECT entry FROM runs")]

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            self.artifacts.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=60)) as database, database:
                database.execute("CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, entry TEXT) WITHOUT ROWID")
                yield database
        except (sqlite3.Error, OSError) as error:
            full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
            remedy = "free some space" if full else "delete it"
            raise EdgelineError(
                f"the run log {self.path} cannot be used ({error}); {remedy}, and it is filled again from the run folders",
                code="run_log_unusable",
            ) from error


@contextmanager
def recorded(run: Run, experiment: str = "") -> Iterator[None]:
    """Record a run when the block ends, with its error if it raises one. A log that cannot be written is only a warning."""
    try:
        yield
    except Exception as error:
        _record(run, " ".join(str(error).split()) or type(error).__name__, experiment)
        raise
    _record(run, "", experiment)


def _record(run: Run, error: str, experiment: str) -> None:
    try:
        RunLog(Path(run.config.artifacts)).record(run, error=error, experiment=experiment)
    except EdgelineError as problem:
        # The error of a failed run comes next, often with the same cause, such as a full disk.
        LOG.log(logging.DEBUG if error else logging.WARNING, "%s", problem)


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings by their dotted names."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def parse_condition(condition: str) -> tuple[str, Callable[[Any], bool]]:
    """Return the name in a condition, and a function that tests a value.

    Raises:
        ConfigError: it is not a name, an operator and a value.
    """
    match = CONDITION.fullmatch(condition)
    if match is None:
        raise ConfigError(f"condition {condition!r} must look like model=mobilenet_v2 or accuracy>=0.9")
    name, symbol, text = match.groups()
    try:
        expected = json.loads(text)
    except ValueError:
        expected = text

    def test(value: Any) -> bool:
        try:
            return value is not None and OPERATORS[symbol](value, expected)
        except TypeError:  # a number compared with a text
            return False

    return name, test


def read_metrics(run: Run) -> dict[str, float]:
    """The figures of a run's finished steps, by name: accuracy, calibration, sizes in bytes, times.

    `<step>_s` are the seconds that a step took, `p50_ms` and `int8_p50_ms` the time for one image on one thread.
    """
    found: dict[str, float] = {}
    for step in STEPS_WITH_RESULTS:
        receipt = read_receipt(run.step(step))
        if receipt is not None and "seconds" in receipt:
            found[f"{step}_s"] = receipt["seconds"]
    if evaluation := _read_json(run.step("evaluate") / "evaluation.json"):
        top1, calibration = evaluation["top1"], evaluation["calibration"]
        found |= {"accuracy": top1["value"], "accuracy_low": top1["low"], "accuracy_high": top1["high"]}
        found |= {"macro_f1": evaluation["macro"]["f1"], "ece": calibration["ece_after"]}
    weights = run.step("train") / "checkpoint.safetensors"
    if weights.exists() and (checkpoint := _read_json(run.step("train") / "checkpoint.json")):
        found |= {"epochs": len(checkpoint["history"]), "best_epoch": checkpoint["best_epoch"]}
        found["bytes"] = weights.stat().st_size
    if verification := _read_json(run.step("verify") / "verification.json"):
        found |= _variant_metrics("", verification.get("reference"))
        for variant in verification.get("variants", ()):
            if variant.get("name") == "onnx-int8":
                found |= _variant_metrics("int8_", variant)
    return found


def _variant_metrics(prefix: str, variant: dict[str, Any] | None) -> dict[str, float]:
    if not variant or not variant.get("latency"):  # not shipped, or not run here
        return {}
    latency: Sequence[dict[str, float]] = list(variant["latency"].values())
    return {f"{prefix}p50_ms": latency[0]["p50_ms"], f"{prefix}bytes": variant["bytes"]}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError:  # the step has not been run
        return {}
