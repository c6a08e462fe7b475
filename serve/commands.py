"""The device's commands: `edgeline predict`, `edgeline check` and `edgeline serve`.

Nothing heavy is imported here: a command imports what it needs when it runs, so `--help` is instant and `predict` and `check`
work with the base install.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve.errors import EdgelineError, ImageError, InputError

if TYPE_CHECKING:
    from serve.classifier import Classifier, Prediction

STDIN = "-"
MAX_BYTES = 16 * 2**20
MAX_PIXELS = 50_000_000
MOST_PIXELS = 178_956_970
"""Repeated from `serve.preprocess.Limits`, whose import would make `--help` slow; a test compares them."""


class LogFormat(StrEnum):
    """How a log is written."""

    TEXT = "text"
    JSON = "json"


Artifact = Annotated[Path, typer.Argument(help="An artifact's folder, or a name's folder in a store for its newest version.")]
Variant = Annotated[str | None, typer.Option(help="Which form of the model; by default the float32 reference.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Threads to compute with; by default as many as this process may use.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]


def register(app: typer.Typer) -> None:
    """Add the device's commands to a command line."""
    app.command()(predict)
    app.command()(check)
    app.command()(serve)


def predict(
    artifact: Artifact,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Files, folders (every file in them that is not hidden), or - for stdin."),
    ],
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to name for each image.")] = 5,
    variant: Variant = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Classify images.

    The artifact is checked and answers its golden samples first. An image that cannot be read gets a line on stderr (with
    `--json` an object with `error` and `code`), the others are still answered, and the exit code is 1.

        edgeline predict artifacts/store/flowers photo.jpg

        edgeline predict artifacts/store/flowers photos/ --top-k 1 --json

        curl -s https://example.org/rose.jpg | edgeline predict artifacts/store/flowers -
    """
    from serve.classifier import Classifier

    classifier = Classifier.open(artifact, variant=variant, threads=threads)
    identity = {"model": classifier.manifest.name, "version": classifier.manifest.version, "variant": classifier.variant.name}
    failed = False
    for path in _expand(images):
        try:
            [predictions] = classifier.predict([_read(path, classifier.limits.max_bytes)], top_k)
        except InputError as error:
            failed = True
            if as_json:
                print(json.dumps({"path": path, "error": str(error), "code": error.code}), flush=True)
            else:
                print(f"edgeline: {_printable(path)}: {error} [{error.code}]", file=sys.stderr, flush=True)
            continue
        if as_json:
            found = [asdict(prediction) for prediction in predictions]
            print(json.dumps({"path": path, **identity, "predictions": found}), flush=True)
        else:
            print(f"{_printable(path)}: {_ranking(predictions)}", flush=True)
    if failed:
        raise typer.Exit(1)


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
        from serve.provenance import machine_line

        print(f"  taken on {machine_line(report['variants'][0]['taken']['machine'])}")


def serve(
    artifacts: Annotated[
        list[Path],
        typer.Argument(
            metavar="ARTIFACT...",
            help="Artifact folders, or names' folders in a store: of those the newest version, and every newer one that comes.",
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; mind who can reach it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    store: Annotated[
        Path | None,
        typer.Option(help="Store to offer for download under /artifacts; by default the one that the artifact lies in."),
    ] = None,
    variant: Variant = None,
    runners: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Images to work on at once; by default found out at the first start.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads for one image; by default found out at the first start.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, max=8, help="Most images of one run; by default found out at the first start.")
    ] = None,
    queue: Annotated[int, typer.Option(min=1, max=100_000, help="Images that may wait; one more gets 503.")] = 64,
    deadline: Annotated[float, typer.Option(min=0.001, max=3600, help="Seconds a request may take.")] = 10.0,
    max_bytes: Annotated[int, typer.Option(min=1, help="Largest image in bytes; a larger one gets 413.")] = MAX_BYTES,
    max_pixels: Annotated[
        int, typer.Option(min=1, max=MOST_PIXELS, help="Largest width * height, read from the header before decoding.")
    ] = MAX_PIXELS,
    grace: Annotated[int, typer.Option(min=1, help="Seconds that accepted requests get after SIGTERM or SIGINT.")] = 30,
    challenger: Annotated[
        Path | None, typer.Option(help="Another artifact, or version, that answers a share of what the first is asked.")
    ] = None,
    challenger_share: Annotated[float, typer.Option(min=0, max=1, help="That share, 0 to 1.")] = 0.1,
    tokens: Annotated[
        Path | None, typer.Option(help="File of bearer tokens, one a line; without it everybody may ask.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="Certificate chain for TLS, PEM; with --key.")] = None,
    key: Annotated[Path | None, typer.Option(help="Private key of the certificate, PEM.")] = None,
    cors: Annotated[list[str] | None, typer.Option(help="An origin whose pages may ask; may be repeated.")] = None,
    log_format: Annotated[LogFormat, typer.Option(help="How the log is written to stderr.")] = LogFormat.TEXT,
    access_log: Annotated[bool, typer.Option("--access-log", help="Write a line for each request.")] = False,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of 127.0.0.1 for /metrics, where --host is reached by other machines.")
    ] = 8001,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for what was found out about this machine; by default the user's cache.")
    ] = None,
) -> None:
    """Serve artifacts over HTTP.

    The address is printed when the socket is open. `/readyz` answers 200 as soon as the artifact has proven itself, and else
    says why not; `/healthz` answers while the process lives. A version that is published later is tried in a process of its
    own and then takes over; SIGHUP looks for one at once, SIGUSR1 goes back to the version before. Stops with exit code 0 on
    SIGTERM or SIGINT, when the accepted requests are answered.

        edgeline serve artifacts/store/flowers --port 8000

        curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' 'http://127.0.0.1:8000/predict?top_k=3'
    """
    from serve.engine import Plan
    from serve.preprocess import Limits
    from serve.runtime import usable_cores
    from serve.serving import Options, run

    plan = None
    if threads is not None or runners is not None or batch is not None:
        cores = usable_cores()
        plan = Plan(runners=runners or max(1, cores // (threads or 1)), threads=threads or 1, batch=batch or 1)
    options = Options(
        artifacts=artifacts,
        host=host,
        port=port,
        store=store,
        variant=variant,
        plan=plan,
        limits=Limits(max_bytes=max_bytes, max_pixels=max_pixels),
        deadline_s=deadline,
        queue=queue,
        grace_s=grace,
        challenger=challenger,
        challenger_share=challenger_share,
        tokens=tokens,
        certificate=certificate,
        key=key,
        cors=tuple(cors or ()),
        json_logs=log_format is LogFormat.JSON,
        access_log=access_log,
        cache=cache if cache is not None else default_cache(),
        metrics_port=metrics_port,
    )
    run(options)


def default_cache() -> Path:
    """Where the server keeps what it found out about this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeline"


def _expand(arguments: list[str]) -> Iterator[str]:
    """Every path of the command line, folders as the files in them."""
    for argument in arguments:
        folder = Path(argument)
        if argument == STDIN or not folder.is_dir():
            yield argument
            continue
        files = sorted(str(path) for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        yield from files or [argument]


def _read(path: str, max_bytes: int) -> bytes:
    if path == STDIN:
        return sys.stdin.buffer.read(max_bytes + 1)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise ImageError(f"the image has {size:,} bytes, the limit is {max_bytes:,}", code="image_too_large")
            return file.read(max_bytes + 1)  # a pipe has no size
    except IsADirectoryError as error:
        raise InputError("this folder holds no files", code="image_unreadable") from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", code="image_unreadable") from error


def _ranking(predictions: "list[Prediction]") -> str:
    best, *others = (f"{prediction.label} {prediction.probability:.1%}" for prediction in predictions)
    return f"{best} ({', '.join(others)})" if others else best


def _printable(path: str) -> str:
    """A path fit for a terminal: names may hold line breaks, escape sequences and bytes of other encodings."""
    return "".join(character if character.isprintable() else "?" for character in path)


def _costs_line(proof: dict[str, Any]) -> str:
    from serve.runtime import EXACT

    times = [
        f"{found['p50_ms']:.1f} / {found['p95_ms']:.1f} ms an image (p50 / p95) with threads={key.removeprefix('threads_')}"
        for key, found in proof["latency"].items()
    ]
    start = proof["start"]
    begun = start["import_ms"] + start["load_ms"] + start["first_answer_ms"]
    exact = ", exact-precision setting on" if EXACT.items() <= proof["taken"]["options"].get("session", {}).items() else ""
    return f"{', '.join(times)}; a process answers after {begun:.0f} ms and holds {start['peak_mb']:.0f} MB{exact}"


def _time(classifier: "Classifier") -> dict[str, Any]:
    """What a variant costs here, timed with the first golden sample."""
    from serve import golden, latency

    artifact, variant = classifier.artifact, classifier.variant
    image = artifact.read(json.loads(artifact.read(golden.FILE_NAME))["samples"][0]["file"])
    path, spec = artifact.folder / variant.file, artifact.manifest.preprocess
    return latency.costs(path, variant.format, image, spec, variant=variant.name, saturates=variant.saturates)


def _prove(path: Path, variant: str | None, time: bool) -> dict[str, Any]:
    import hashlib

    from serve.artifact import open_artifact
    from serve.classifier import Classifier
    from serve.manifest import FILE_NAME

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
