"""`edgeline check`: an artifact proves itself on this machine.

Nothing heavy is imported here: it imports what it needs when it runs.
"""

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
    variant: Annotated[str | None, typer.Option(help="Prove only this form of the model; by default every one.")] = None,
    time: Annotated[
        bool, typer.Option("--time", help="Then take the times of one image, the cold start and the peak memory here.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prove an artifact on this machine.

    Every file's size and SHA-256 is compared with the manifest before anything parses it; then each model is loaded, its
    inputs and outputs are compared with the manifest, and it answers the golden samples within their tolerance. The exit code
    is 0 only if all of it holds. A form of the model for which this machine has no runtime is told as not run; asked for by
    `--variant`, it is an error. That the manifest itself is the one you mean, its SHA-256 tells: compare it with its source.

        edgeline check artifacts/store/flowers

        edgeline check /media/card/flowers/3 --variant onnx-int8 --time

        edgeline check /media/card/flowers/3 --json
    """
    try:
        report = _prove(artifact, variant, time)
    except EdgelineError as error:
        if not as_json:
            raise
        print(json.dumps({"proven": False, "error": str(error), "code": error.code}))
        raise typer.Exit(1) from error
    if as_json:
        print(json.dumps(report))
        return
    print(f"{report['name']} {report['version']} is proven on this machine")
    print(f"  manifest  sha256 {report['manifest_sha256']}")
    print(f"  files     {report['files']}, {report['bytes']:,} bytes: every size and SHA-256 is what the manifest names")
    for proof in report["variants"]:
        if "not_run" in proof:
            print(f"  {proof['variant']}  not run here, and so not proven: {proof['not_run']}")
            continue
        print(
            f"  {proof['variant']}  takes and gives what the manifest names; {proof['samples']} golden samples: probabilities "
            f"differ by at most {proof['max_difference']:.2g}, logits by {proof['max_logit_difference']:.2g} of the largest "
            f"(tolerated {proof['tolerance']:.2g}), pixels by {proof['max_pixel_difference']:.2g} levels of 255 (tolerated "
            f"{proof['pixel_tolerance']:.2g})"
        )
        if time:
            print(f"    {_costs_line(proof)}")
    if time:
        from edgeline.serve.runtime.provenance import machine_line

        print(f"  taken on {machine_line(report['variants'][0]['taken']['machine'])}")


def _costs_line(proof: dict[str, Any]) -> str:
    from edgeline.serve.runtime.session import EXACT

    times = [
        f"{found['p50_ms']:.1f} / {found['p95_ms']:.1f} ms an image (p50 / p95) with threads={key.removeprefix('threads_')}"
        for key, found in proof["latency"].items()
    ]
    start = proof["start"]
    begun = start["import_ms"] + start["load_ms"] + start["first_answer_ms"]
    exact = (
        ", exact-precision setting on" if EXACT.items() <= proof["measured_on"]["options"].get("session", {}).items() else ""
    )
    return f"{', '.join(times)}; a process answers after {begun:.0f} ms and holds {start['peak_mb']:.0f} MB{exact}"


def _time(classifier: "Classifier") -> dict[str, Any]:
    """What a variant costs here, timed with the first golden sample."""
    from edgeline.serve.artifact import golden
    from edgeline.serve.runtime import benchmark

    artifact, variant = classifier.artifact, classifier.variant
    image = artifact.read(json.loads(artifact.read(golden.FILE_NAME))["samples"][0]["file"])
    path, spec = artifact.folder / variant.file, artifact.manifest.preprocess
    return benchmark.costs(path, variant.format, image, spec, variant=variant.name, saturates=variant.saturates)


def _prove(path: Path, variant: str | None, time: bool) -> dict[str, Any]:
    import hashlib

    from edgeline.serve.artifact.manifest import FILE_NAME
    from edgeline.serve.artifact.reader import open_artifact
    from edgeline.serve.classifier import Classifier

    artifact = open_artifact(path)
    manifest = artifact.manifest
    chosen = manifest.variants if variant is None else [manifest.variant(variant)]
    proofs: list[dict[str, Any]] = []
    for each in chosen:
        try:
            classifier = Classifier.open(artifact.folder, variant=each.name)
        except EdgelineError as error:
            # A form for other devices than this one proves nothing against it, unless it is the one that is asked for.
            if variant is not None or error.code not in ("not_run_here", "missing_extra"):
                raise
            proofs.append({"variant": each.name, "not_run": str(error)})
            continue
        assert classifier.proof is not None
        proofs.append({"variant": each.name, **asdict(classifier.proof), **(_time(classifier) if time else {})})
    return {
        "proven": True,
        "name": manifest.name,
        "version": manifest.version,
        "manifest_sha256": hashlib.sha256((artifact.folder / FILE_NAME).read_bytes()).hexdigest(),
        "files": len(manifest.files),
        "bytes": sum(entry.size for entry in manifest.files),
        "variants": proofs,
    }
