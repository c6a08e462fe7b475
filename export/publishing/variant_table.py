"""The table of a model's forms: the float32 reference first, then its variants, all measured alike.

The one place that makes its rows, for the terminal, the report, the card, the manifest and Prefect.
"""

from typing import Any

from edgeline.serve.runtime.provenance import machine_line

CAPTION = (
    "Each form against PyTorch, on the same images and by the same path. Accuracy and what is lost of it with 95 % intervals, "
    "the latter paired; times are p50 / p95 of one image; start and memory are of a process that loads it and answers once."
)


def figures(entry: dict[str, Any]) -> dict[str, Any]:
    """What is said of a form in short, as numbers.

    Args:
        entry: `reference`, or one of `variants` that ships, of `verification.json`.
    """
    if entry["passed"] is None:
        return {name: entry[name] for name in ("passed", "not_run", "structure", "bytes")}
    similarity = entry["similarity"]
    kept = ("bytes", "accuracy", "latency", "start", "measured_on")
    return {
        "passed": entry["passed"],
        **{name: similarity[name] for name in ("images", "max_difference", "top1_agreement", "sqnr_db", "kl")},
        **{name: entry[name] for name in kept},
        **({"saturates": entry["saturates"]} if "saturates" in entry else {}),
    }


def rows(verification: dict[str, Any]) -> list[dict[str, str]]:
    """A row a form that ships, its cells by the heading of their column.

    Args:
        verification: one that passed.
    """
    return [_row(entry) for entry in (verification["reference"], *verification["variants"]) if entry["passed"]]


def remarks(verification: dict[str, Any]) -> list[str]:
    """A line for each variant that has no row: it does not ship, or ships and could not be run where the others were."""
    lines = []
    for entry in verification["variants"]:
        if entry["passed"] is None:
            lines.append(_not_run_line(entry))
        elif not entry["passed"]:
            lines.append(f"{entry['name']} is not shipped: {'; '.join(entry['problems'])}")
    return lines


def int8_line(verification: dict[str, Any]) -> str | None:
    """On which processor int8 was chosen, for which, and how; None where it was not asked for."""
    int8 = verification["int8"]
    if int8 is None:
        return None
    machine = int8["measured_on"]["machine"]
    chosen = int8["chosen"] or "none chosen"
    setting = "on" if int8["exact_precision_setting"] else "off"
    risks = {entry["saturates"] for entry in verification["variants"] if entry["passed"] and "saturates" in entry}
    elsewhere = {
        (): "",
        (False,): "; no two products can saturate, so x86 without VNNI answers the same at full speed",
        (True,): "; x86 without VNNI needs the exact-precision setting, which edgeline makes there and ORT files do not heed",
    }[tuple(risks)]
    return (
        f"{chosen}, for {int8['target']}; judged on {int8['judged_on']['images']} validation images on {machine['processor']} "
        f"({machine['cpu']}), exact-precision setting {setting}; calibrated on {int8['calibration']['images']} training images "
        f"(sha256 {int8['calibration']['sha256'][:12]}){elsewhere}"
    )


def origins(verification: dict[str, Any], provenance: dict[str, Any]) -> list[dict[str, str]]:
    """A row a group of figures: when, on what and with what they were taken, and the command that gives them again."""
    groups = {**provenance["measured_on"], "times and memory": verification["reference"]["measured_on"]}
    return [
        {
            "Figures": name,
            "Command": taken["command"],
            "Date": taken["date"],
            "Machine": machine_line(taken["machine"]),
            "Versions": ", ".join(f"{package} {number}" for package, number in taken["versions"].items()),
            "Options": ", ".join(f"{key} {_plain(value)}" for key, value in taken["options"].items()),
        }
        for name, taken in groups.items()
    ]


def _row(entry: dict[str, Any]) -> dict[str, str]:
    similarity, accuracy, start = entry["similarity"], entry["accuracy"], entry["start"]
    times = {f"ms, {_threads(key)}": f"{t['p50_ms']:.1f} / {t['p95_ms']:.1f}" for key, t in entry["latency"].items()}
    return {
        "Variant": entry["name"],
        "MB": f"{entry['bytes'] / 1e6:.1f}",
        "Accuracy, %": "" if accuracy is None else _with_interval(accuracy["top1"], accuracy["top1_interval"], 100),
        "Lost, points": "" if accuracy is None else _with_interval(accuracy["drop_points"], accuracy["drop_interval_points"]),
        "Same class, %": f"{100 * similarity['top1_agreement']:.2f}",
        "SQNR, dB": f"{similarity['sqnr_db']:.0f}",
        "KL": f"{similarity['kl']:.1g}",
        "Largest difference": f"{similarity['max_difference']:.1g}",
        **times,
        "Start, ms": f"{start['import_ms'] + start['load_ms'] + start['first_answer_ms']:.0f}",
        "Peak, MB": f"{start['peak_mb']:.0f}",
    }


def _not_run_line(entry: dict[str, Any]) -> str:
    structure = entry["structure"]
    found = f"its inputs, outputs and {structure['weights']} weights are those of the network"
    if similarity := structure.get("similarity"):
        found += (
            f"; its graph, computed by PyTorch, gives the same best class on {similarity['top1_agreement']:.2%} of "
            f"{similarity['images']} images, SQNR {similarity['sqnr_db']:.0f} dB"
        )
    return (
        f"{entry['name']} ({entry['bytes'] / 1e6:.1f} MB) is shipped and was not run here ({entry['not_run']}): {found}; "
        "`edgeline check` proves it there"
    )


def _with_interval(value: float, interval: list[float], factor: float = 1) -> str:
    low, high = (factor * end for end in interval)
    return f"{factor * value:.2f} ({low:.2f} to {high:.2f})"


def _threads(key: str) -> str:
    count = key.removeprefix("threads_")
    return f"{count} thread" if count == "1" else f"{count} threads"


def _plain(value: Any) -> str:
    """A setting's value on one line."""
    if isinstance(value, dict):
        return " ".join(f"{key}={_plain(inner)}" for key, inner in value.items())
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)
