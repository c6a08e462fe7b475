"""`edgeline check`: verify an artifact on this machine. Imports its dependencies when it runs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeline.serve.cli.options import Artifact, Json
from edgeline.serve.errors import EdgelineError

if TYPE_CHECKING:
    from edgeline.serve.classifier import Classifier


def check(
    artifact: Artifact,
    variant: Annotated[str | None, typer.Option(help="Check only this variant of the model; by default all of them.")] = None,
    time: Annotated[
        bool, typer.Option("--time", help="Also measure the time per image, the cold start and the peak memory.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Verify an artifact on this machine.

    Compares the size and SHA-256 of every file with the manifest before it is parsed; then loads each variant, compares its
    inputs and outputs with the manifest, and runs the golden samples. The exit code is 0 only if all checks pass. A variant
    for which this machine has no runtime is reported as not run; with `--variant`, it is an error. To verify the manifest
    itself, compare the printed SHA-256 with its source.

        edgeline check artifacts/store/flowers

        edgeline check /media/card/flowers/3 --variant onnx-int8 --time

        edgeline check /media/card/flowers/3 --json
    """
    try:
        report = _check(artifact, variant, time)
    except EdgelineError as error:
        if not as_json:
            raise
        print(json.dumps({"verified": False, "error": str(error), "code": error.code}))
        raise typer.Exit(1) from error
    if as_json:
        print(json.dumps(report))
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    print(f"{report['name']} {report['version']} is verified on this machine")
    print(f"  manifest  sha256 {report['manifest_sha256']}")
    print(f"  files     {report['files']}, {report['bytes']:,} bytes: size and SHA-256 of every file match the manifest")
    for found in report["variants"]:
        if "not_run" in found:
            print(f"  {found['variant']}  not run, and so not verified: {found['not_run']}")
            continue
        print(
            f"  {found['variant']}  inputs and outputs match the manifest; {found['samples']} golden samples: probabilities "
            f"differ by at most {found['max_difference']:.2g}, logits by {found['max_logit_difference']:.2g} of the largest "
            f"(tolerated {found['tolerance']:.2g}), pixels by {found['max_pixel_difference']:.2g} levels of 255 (tolerated "
            f"{found['pixel_tolerance']:.2g})"
        )
        if "latency" in found:
            print(f"    {_costs_line(found)}")
    if timed := [found["measured_on"] for found in report["variants"] if "measured_on" in found]:
        from edgeline.serve.runtime.provenance import machine_line

        print(f"  measured on {machine_line(timed[0]['machine'])}")


def _costs_line(found: dict[str, Any]) -> str:
    from edgeline.serve.runtime.session import EXACT

    times = [
        f"{latency['p50_ms']:.1f} / {latency['p95_ms']:.1f} ms per image (p50 / p95) with {key.replace('_', '=')}"
        for key, latency in found["latency"].items()
    ]
    start = found["start"]
    started = start["import_ms"] + start["load_ms"] + start["first_answer_ms"]
    settings = found["measured_on"]["options"].get("session", {})
    exact = ", exact-precision setting on" if EXACT.items() <= settings.items() else ""
    return f"{', '.join(times)}; first result of a new process after {started:.0f} ms, {start['peak_mb']:.0f} MB{exact}"


def _time(classifier: "Classifier") -> dict[str, Any]:
    """Measure a variant with the first golden sample."""
    from edgeline.serve.artifact import golden
    from edgeline.serve.runtime import benchmark, session

    artifact, variant = classifier.artifact, classifier.variant
    image = artifact.read(json.loads(artifact.read(golden.FILE_NAME))["samples"][0]["file"])
    path, spec = artifact.folder / variant.file, artifact.manifest.preprocess
    return benchmark.costs(path, variant.format, image, spec, variant=variant.name, **session.options_for(variant))


def _check(path: Path, variant: str | None, time: bool) -> dict[str, Any]:
    import hashlib

    from edgeline.serve.artifact.manifest import FILE_NAME
    from edgeline.serve.artifact.reader import open_artifact
    from edgeline.serve.classifier import Classifier

    artifact = open_artifact(path)
    manifest = artifact.manifest
    chosen = manifest.variants if variant is None else [manifest.variant(variant)]
    results: list[dict[str, Any]] = []
    for each in chosen:
        try:
            classifier = Classifier.open(artifact.folder, variant=each.name)
        except EdgelineError as error:
            # A variant for other devices does not count against this one, unless it was chosen explicitly.
            if variant is not None or error.code not in ("not_run_here", "missing_extra"):
                raise
            results.append({"variant": each.name, "not_run": str(error)})
            continue
        assert classifier.self_test is not None
        results.append({"variant": each.name, **asdict(classifier.self_test), **(_time(classifier) if time else {})})
    return {
        "verified": True,
        "name": manifest.name,
        "version": manifest.version,
        "manifest_sha256": hashlib.sha256((artifact.folder / FILE_NAME).read_bytes()).hexdigest(),
        "files": len(manifest.files),
        "bytes": sum(entry.size for entry in manifest.files),
        "variants": results,
    }
