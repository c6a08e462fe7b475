"""`edgeline verify --onnx`: read its options, have the file judged, and say what was found."""

import json
from pathlib import Path
from typing import Any

import typer

from edgeline.serve.errors import ConfigError, VerificationError


def verify_file(file: Path, options: dict[str, Any], as_json: bool) -> None:
    """Judge an ONNX file from elsewhere and print the report.

    Args:
        file: ONNX.
        options: those that were given, as the command line names them.
        as_json: print the whole report.

    Raises:
        ConfigError: an option makes no sense.
        VerificationError: the file does not hold, or cannot be judged.
    """
    if "data" not in options:
        raise ConfigError("--onnx needs photos to look at: give a folder of them with --data")
    mean, std, size = _triple("mean", options.get("mean")), _triple("std", options.get("std")), _size(options.get("size"))
    from edgeline.export.external.model import Feed
    from edgeline.export.external.verify import IMAGENET, Request, verify_foreign
    from edgeline.pipeline.config import VerifyConfig

    request = Request(
        file=file,
        data=options["data"],
        against=options.get("against"),
        trusted=options.get("trust_program", False),
        feed=Feed(mean or IMAGENET.mean, std or IMAGENET.std),
        size=size,
        config=VerifyConfig(**{name: options[name] for name in ("images",) if name in options}),
        **{name: options[name] for name in ("crop_fraction", "interpolation") if name in options},
    )
    report = verify_foreign(request)
    if as_json:
        print(json.dumps(report))
    else:
        for line in lines_of(report):
            print(line)
    if report["passed"]:
        return
    if as_json:
        raise typer.Exit(1)
    raise VerificationError(f"{report['file']['name']} does not hold: {'; '.join(report['problems'])}")


def lines_of(report: dict[str, Any]) -> list[str]:
    """A report for people: what was fed, what was found, what was taken for granted."""
    spec, norm, images, similarity = (report[key] for key in ("preprocess", "normalization", "images", "similarity"))
    lines = [f"{entry['name']}: {entry['kind']}, {entry['precision']}, takes {entry['takes']}" for entry in _files(report)]
    lines.append(
        f"fed {images['photos']} photos and a hard set of {images['stress_images']}, {spec['height']} x {spec['width']}, crop "
        f"{spec['crop_fraction']:g}, {spec['interpolation']}; mean {_numbers(norm['mean'])}, std {_numbers(norm['std'])}"
    )
    if unreadable := images["unreadable"]:
        named = "; ".join(f"{entry['image']}: {entry['why']}" for entry in unreadable[:3])
        lines.append(f"{len(unreadable)} files cannot be read and are left out ({named})")
    lines.append(f"run at batch {', '.join(map(str, report['batches']))}")
    if similarity is not None:
        lines.append(
            f"compared as {report['precision']}, by {report['scores']}: same best class {similarity['top1_agreement']:.2%} "
            f"({similarity['flips']} flips, the clearest by {similarity['largest_flipped_margin']:.2g}), SQNR "
            f"{similarity['sqnr_db']:.1f} dB, cosine {similarity['cosine']:.6f}, KL {similarity['kl']:.2g}, a "
            f"probability differs by "
            f"at most {similarity['max_difference']:.2g}"
        )
        lines.append("thresholds: " + ", ".join(f"{name} {value:g}" for name, value in report["thresholds"].items()))
    if levels := report["levels_sqnr_db"]:
        said = ", ".join(f"{level} {db:.0f} dB" for level, db in levels.items())
        lines.append(f"other levels of graph optimization beside the one that ships: {said} (200 is equal)")
    lines += [f"note: {note}" for note in report["notes"]]
    return [*lines, "passed" if report["passed"] else "failed"]


def _files(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in (report["file"], report["against"]) if entry is not None]


def _triple(name: str, text: str | None) -> tuple[float, ...] | None:
    """`0.5` or `0.485,0.456,0.406`."""
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3) or not all(abs(value) < 1e6 and (name == "mean" or value > 0) for value in values):
        raise ConfigError(f"--{name} must be one number or three with commas, such as 0.485,0.456,0.406, got {text!r}")
    return values * 3 if len(values) == 1 else values


def _size(text: str | None) -> tuple[int, int] | None:
    """`224` or `HEIGHTxWIDTH`."""
    if text is None:
        return None
    sides = text.split("x")
    if len(sides) not in (1, 2) or not all(side.isdecimal() and 1 <= int(side) <= 4096 for side in sides):
        raise ConfigError(f"--size must be 224 or 192x256 (height x width), 1 to 4096, got {text!r}")
    return int(sides[0]), int(sides[-1])


def _numbers(values: list[float]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else ",".join(f"{value:g}" for value in values)
