"""`edgeline verify-onnx`: parse its options, verify the file and print the report."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgeline.serve.errors import ConfigError, VerificationError

if TYPE_CHECKING:
    from edgeline.export.external.report import FileReport
    from edgeline.export.external.verify import VerificationRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The options of the command as given; None means not given."""

    file: Path
    data: Path
    against: Path | None
    trusted: bool
    mean: str | None
    std: str | None
    size: str | None
    crop_fraction: float | None
    interpolation: str | None
    images: int | None


def verify_file(options: Options, as_json: bool) -> None:
    """Verify a third-party ONNX file and print the report.

    Args:
        options: of the command line.
        as_json: print the whole report.

    Raises:
        ConfigError: an option is invalid.
        VerificationError: the file fails, or cannot be verified.
    """
    request = _request(options)
    from edgeline.export.external.verify import verify_external

    report = verify_external(request)
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        for line in report_lines(report):
            print(line)
    if report.passed:
        return
    if as_json:
        raise typer.Exit(1)
    raise VerificationError(f"{report.file.name} failed: {'; '.join(report.problems)}")


def report_lines(report: "FileReport") -> list[str]:
    """A report for people: the input, the findings and the assumptions."""
    spec, norm, images, similarity = report.preprocess, report.normalization, report.images, report.similarity
    models = [entry for entry in (report.file, report.against) if entry is not None]
    lines = [f"{entry.name}: {entry.kind}, {entry.precision}, input {entry.takes}" for entry in models]
    lines.append(
        f"ran {images.photos} photos and {images.stress_images} stress images, {spec['height']} x {spec['width']}, crop "
        f"{spec['crop_fraction']:g}, {spec['interpolation']}; mean {_numbers(norm.mean)}, std {_numbers(norm.std)}"
    )
    if unreadable := images.unreadable:
        named = "; ".join(f"{entry.image}: {entry.why}" for entry in unreadable[:3])
        lines.append(f"{len(unreadable)} files cannot be read and are left out ({named})")
    lines.append(f"run at batch {', '.join(map(str, report.batches))}")
    if similarity is not None and report.thresholds is not None:
        lines.append(
            f"compared as {report.precision}, by {report.scores}: top-1 agreement {similarity.top1_agreement:.2%} "
            f"({similarity.flips} flips, the largest margin {similarity.largest_flipped_margin:.2g}), SQNR "
            f"{similarity.sqnr_db:.1f} dB, cosine {similarity.cosine:.6f}, KL {similarity.kl:.2g}, probabilities "
            f"differ by at most {similarity.max_difference:.2g}"
        )
        lines.append("thresholds: " + ", ".join(f"{name} {value:g}" for name, value in report.thresholds.items()))
    if levels := report.levels_sqnr_db:
        listed = ", ".join(f"{level} {db:.0f} dB" for level, db in levels.items())
        lines.append(f"SQNR at other levels of graph optimization: {listed} (200 means equal)")
    lines += [f"note: {note}" for note in report.notes]
    return [*lines, "passed" if report.passed else "failed"]


def _request(options: Options) -> "VerificationRequest":
    mean, std, size = _triple("mean", options.mean), _triple("std", options.std), _size(options.size)
    from edgeline.export.external.model import InputNormalization
    from edgeline.export.external.verify import IMAGENET, VerificationRequest
    from edgeline.pipeline.config import VerifyConfig

    preprocessing = {"crop_fraction": options.crop_fraction, "interpolation": options.interpolation}
    given: dict[str, Any] = {name: value for name, value in preprocessing.items() if value is not None}
    return VerificationRequest(
        file=options.file,
        data=options.data,
        against=options.against,
        trusted=options.trusted,
        normalization=InputNormalization(mean or IMAGENET.mean, std or IMAGENET.std),
        size=size,
        config=VerifyConfig() if options.images is None else VerifyConfig(images=options.images),
        **given,
    )


def _triple(name: str, text: str | None) -> tuple[float, ...] | None:
    """Parse `0.5` or `0.485,0.456,0.406`."""
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
    """Parse `224` or `HEIGHTxWIDTH`."""
    if text is None:
        return None
    sides = text.split("x")
    if len(sides) not in (1, 2) or not all(side.isdecimal() and 1 <= int(side) <= 4096 for side in sides):
        raise ConfigError(f"--size must be 224 or 192x256 (height x width), 1 to 4096, got {text!r}")
    return int(sides[0]), int(sides[-1])


def _numbers(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else ",".join(f"{value:g}" for value in values)
