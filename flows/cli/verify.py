"""Three ways to verify a model: `edgeline verify RUN`, `edgeline verify-onnx FILE` and `edgeline emulate ARTIFACT`.

Nothing heavy is imported here; a command imports what it needs when it runs.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from edgeline.flows.cli.options import Json, RunFolder
from edgeline.flows.cli.steps import execute_step, report_step
from edgeline.serve.errors import ConfigError, VerificationError

if TYPE_CHECKING:
    from edgeline.export.emulation.machine import VariantRun

_VERIFY_ONNX = "edgeline verify-onnx FILE --data DIR"
_EMULATE = "edgeline emulate ARTIFACT --target arm64"
MOVED_OPTIONS = {
    "--onnx": _VERIFY_ONNX,
    "--target": _EMULATE,
    "--artifacts": _EMULATE,
    **dict.fromkeys(("--data", "--against", "--trust-program", "--mean", "--std", "--size"), _VERIFY_ONNX),
    **dict.fromkeys(("--crop-fraction", "--interpolation", "--images"), _VERIFY_ONNX),
}
"""Options that `edgeline verify` had up to 0.1, and the commands that have them now."""


class VerifyCommand(TyperCommand):
    """`edgeline verify`, with an error of its own for the options that have moved."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse a command line.

        Raises:
            ConfigError: it has an option of another command.
        """
        given = {argument.partition("=")[0] for argument in args}
        for option, command in MOVED_OPTIONS.items():
            if option in given:
                raise ConfigError(f"edgeline verify {option} is now a separate command: {command}")
        return super().parse_args(ctx, args)


def verify(folder: RunFolder, as_json: Json = False) -> None:
    """Compare a run's ONNX file and its variants with PyTorch, from image bytes to probabilities.

    The exit code is 0 only if every threshold is met. To verify an ONNX file that edgeline did not export, use
    `edgeline verify-onnx`; to run a published artifact on another processor, `edgeline emulate`.

        edgeline verify artifacts/runs/photos-0123456789ab
    """
    try:
        run, result = execute_step(folder, "verify")
    except VerificationError as error:
        failed = folder / "verify.partial" / "verification.json"
        if as_json and error.code == VerificationError.code and failed.is_file():
            print(json.dumps(json.loads(failed.read_text(encoding="utf-8"))))
            raise typer.Exit(1) from None
        raise
    from edgeline.export.verification.report import VerificationReport

    report = VerificationReport.read(result.folder / "verification.json")
    lines = [
        f"passed: {report.images.total} images, batches {', '.join(str(c.batch) for c in report.comparisons)}",
        f"max difference {report.max_difference:.2g} (at most {report.thresholds.max_difference:g} allowed)",
        f"top-1 agreement {report.top1_agreement:.2%}",
    ]
    report_step(run, result, report.to_dict(), lines, as_json)


def verify_onnx(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The ONNX file of an image classifier.")],
    data: Annotated[Path, typer.Option(help="A folder of photos; no labels are needed.")],
    against: Annotated[
        Path | None,
        typer.Option(help="The reference: a TorchScript file, a torch.export program, or another ONNX file."),
    ] = None,
    trust_program: Annotated[
        bool,
        typer.Option("--trust-program", help="Allow executing code embedded in the reference (runs with your privileges)."),
    ] = False,
    mean: Annotated[
        str | None, typer.Option(help="Mean of pixel values in 0 to 1, one number or three; by default ImageNet's.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviation, like `--mean`.")] = None,
    size: Annotated[str | None, typer.Option(help="`224` or `HEIGHTxWIDTH`, if the file accepts any size.")] = None,
    crop_fraction: Annotated[
        float | None, typer.Option(help="Share of the shorter side that the crop keeps; by default 0.875.")
    ] = None,
    interpolation: Annotated[str | None, typer.Option(help="`bilinear`, `bicubic` (the default) or `lanczos`.")] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of photos, spread over the folder; by default 512.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify any image classifier's ONNX file against the model it was made from, on your photos.

    A float32 file must equal the reference; int8 and half precision must stay within thresholds. Every batch size, thread
    count and optimization level must give the same output. If they differ, the report names the cause if it finds one:
    channel order, class order, normalization, or the first layer that diverges. Without `--against`, only consistency is
    checked. The exit code is 0 only if every check passes.

        edgeline verify-onnx model.onnx --data photos/ --against model.pt2 --trust-program

        edgeline verify-onnx model.int8.onnx --data photos/ --against model.onnx --mean 0.5 --std 0.5
    """
    from edgeline.flows.cli.verify_onnx import Options, verify_file

    options = Options(
        file=file,
        data=data,
        against=against,
        trusted=trust_program,
        mean=mean,
        std=std,
        size=size,
        crop_fraction=crop_fraction,
        interpolation=interpolation,
        images=images,
    )
    verify_file(options, as_json)


def emulate(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A published artifact's folder.")],
    target: Annotated[str, typer.Option(help="The processor to emulate: `arm64` or `x86-avx2`.")],
    artifacts: Annotated[str, typer.Option(help="Folder whose cache stores the emulated machine.")] = "artifacts",
    as_json: Json = False,
) -> None:
    """Run a published artifact's golden samples on an emulated processor, under qemu.

    `arm64` uses the ARM build of ONNX Runtime. `x86-avx2` emulates x86 without VNNI, whose int8 products saturate; int8
    variants also run without the setting that makes them exact, for information only. Needs `qemu-user-static` and takes
    some minutes. The exit code is 0 only if every variant passes.

        edgeline emulate artifacts/store/photos --target arm64

        edgeline emulate artifacts/store/photos --target x86-avx2
    """
    from edgeline.export.emulation import arm64, avx2
    from edgeline.export.emulation.machine import check

    machines = {machine.TARGET: machine.prepare_machine for machine in (arm64, avx2)}
    if target not in machines:
        raise ConfigError(f"--target must be {' or '.join(machines)}, got {target!r}")
    machine = machines[target](Path(artifacts) / "cache" / target)
    entries = check(artifact, machine)
    exact = [entry.variant for entry in entries if entry.exact_setting]
    # Shows what the exact setting is for; no device runs without it.
    inexact = check(artifact, machine, variants=exact, saturating=True) if exact else []
    for entry in (*entries, *inexact):
        print(
            json.dumps({"target": target, **entry.to_dict()}) if as_json else _emulation_line(target, entry, entry in inexact)
        )
    if not all(entry.passed for entry in entries):
        raise typer.Exit(1)


def _emulation_line(target: str, entry: "VariantRun", for_information: bool) -> str:
    setting = "with the exact setting" if entry.exact_setting else "without the exact setting"
    where = f"on {target}, {setting}" + (" (for information)" if for_information else "")
    if not entry.passed:
        return f"{entry.variant}: failed {where}: {entry.error}"
    return (
        f"{entry.variant}: passed {where}; {entry.samples} golden samples: probabilities differ by at most "
        f"{entry.max_difference:.2g}, logits by {entry.max_logit_difference:.2g} of the largest (tolerance "
        f"{entry.logit_tolerance:.2g}), {entry.sample_s:g} s per sample"
    )
