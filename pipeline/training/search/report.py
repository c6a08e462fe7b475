"""The result of a sweep: `sweep.json` in the train step's folder, as typed records."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FILE_NAME = "sweep.json"


class Record(BaseModel):
    """Base of the records: frozen, unknown fields are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ScannedSetting(Record):
    """A setting that was tried in closed form."""

    penalty: Literal["dropout", "ridge"]
    strength: float = Field(description="Probability of dropout, or penalty relative to the mean square of a feature.")
    class_weights: str
    views: int
    accuracy: float = Field(description="Share of the held-out images that are classified correctly.")
    macro_recall: float = Field(description="Mean over the classes of the share that is classified correctly.")


class TrainedSetting(Record):
    """A setting with which heads were trained, and how it compares with the configured one on the same held-out images."""

    learning_rate: float
    weight_decay: float
    dropout: float
    label_smoothing: float
    views: int
    epoch: int = Field(description="The epoch with the lowest loss, which would ship.")
    loss: float = Field(description="Weighted cross entropy of the held-out images.")
    accuracy: float
    macro_recall: float
    difference: float = Field(description="Accuracy above that of the configured setting.")
    error: float = Field(description="Standard error of the difference, over groups of images.")


class Sweep(Record):
    """The content of `sweep.json`."""

    images: int = Field(description="Held-out images: each is classified by a head that was trained without its fold.")
    folds: int
    scanned: list[ScannedSetting]
    trained: list[TrainedSetting] = Field(description="The configured setting first.")
    chosen: int = Field(description="Position in `trained` of the setting that ships.")
    deviations: float = Field(description="Standard errors by which a setting must be better to be chosen.")


VARIED = ("learning_rate", "weight_decay", "dropout", "label_smoothing", "views")
"""Settings that trained heads differ in."""


def read_sweep(folder: Path) -> Sweep | None:
    """Read `sweep.json` from a train step's folder; None if there was no sweep."""
    path = folder / FILE_NAME
    return Sweep.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None


def describe_setting(setting: TrainedSetting, default: TrainedSetting) -> str:
    """What differs from the configured setting: `dropout 0.8, views 2`."""
    changes = [f"{name} {getattr(setting, name):.3g}" for name in VARIED if getattr(setting, name) != getattr(default, name)]
    return ", ".join(changes) or "as configured"


def describe_sweep(sweep: Sweep) -> str:
    """The result in one sentence."""
    default, chosen = sweep.trained[0], sweep.trained[sweep.chosen]
    tried = f"{len(sweep.scanned)} settings of the head in closed form, {len(sweep.trained)} of them trained"
    if sweep.chosen:
        return (
            f"The sweep ({tried}) chose {describe_setting(chosen, default)}: {chosen.accuracy:.1%} of {sweep.images:,} "
            f"held-out images are correct, {default.accuracy:.1%} as configured, {_difference(chosen)}."
        )
    best = max(sweep.trained[1:], key=lambda setting: setting.accuracy)
    return (
        f"The sweep ({tried}) kept the configured settings, with which {default.accuracy:.1%} of {sweep.images:,} held-out "
        f"images are correct: the best of the others ({describe_setting(best, default)}) reaches {best.accuracy:.1%}, "
        f"{_difference(best)}, which is within noise ({sweep.deviations:.1f} standard errors for the best of "
        f"{len(sweep.trained) - 1})."
    )


def sweep_rows(sweep: Sweep) -> list[dict[str, str]]:
    """The trained settings as a table, the most accurate first: cells by heading."""
    order = sorted(range(len(sweep.trained)), key=lambda index: (-sweep.trained[index].accuracy, index))
    return [_row(sweep, index) for index in order]


def _row(sweep: Sweep, index: int) -> dict[str, str]:
    setting, default = sweep.trained[index], sweep.trained[0]
    return {
        "Setting": describe_setting(setting, default) + (" (chosen)" if index == sweep.chosen else ""),
        "Accuracy, %": f"{100 * setting.accuracy:.1f}",
        "To the configured, points": f"{100 * setting.difference:+.1f} ± {100 * setting.error:.1f}" if index else "",
        "Macro recall, %": f"{100 * setting.macro_recall:.1f}",
        "Loss": f"{setting.loss:.3f}",
        "Epochs": str(setting.epoch),
    }


def _difference(setting: TrainedSetting) -> str:
    return f"{100 * setting.difference:+.1f} points with a standard error of {100 * setting.error:.1f}"
