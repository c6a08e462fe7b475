"""`edgeline predict`: classify images from files, folders, a pipe, a watched folder or a camera.

Imports its dependencies when it runs, and only those of the options in use.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeline.serve.cli.options import Artifact, Threads, Variant
from edgeline.serve.errors import ConfigError
from edgeline.serve.terminal import printable

if TYPE_CHECKING:
    from edgeline.serve.classifier import Classifier
    from edgeline.serve.drift.collector import Drift
    from edgeline.serve.inputs.images import Picture
    from edgeline.serve.inputs.shutdown import Stop

DEFAULT_WATCH_S = 0.5
MIN_WATCH_S = 0.05


class Framing(StrEnum):
    """Format of several images in a pipe."""

    LINES = "lines"
    MJPEG = "mjpeg"


def predict(
    artifact: Artifact,
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE]...", help="Files, folders (every file in them that is not hidden), or - for stdin."),
    ] = None,
    stream: Annotated[
        Framing | None,
        typer.Option(
            help="Instead of IMAGE: many images on stdin, as `lines` of paths (from `find`) or as `mjpeg`, consecutive JPEGs."
        ),
    ] = None,
    watch: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Instead of IMAGE: every new file in this folder, once it is complete."),
    ] = None,
    existing: Annotated[bool, typer.Option("--existing", help="With `--watch`: process existing files first.")] = False,
    camera: Annotated[
        str | None,
        typer.Option(metavar="N|PATH", help="Instead of IMAGE: a camera's number or device, or a video file; needs OpenCV."),
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=86400,
            help="Seconds between two frames of `--camera` (default 0) or two polls of `--watch` (default 0.5).",
        ),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Switch to newer versions published in ARTIFACT if they pass their golden samples."),
    ] = False,
    drift: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write statistics of images and predictions to this file; see `edgeline drift`."),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of classes to print per image.")] = 5,
    explain: Annotated[
        bool, typer.Option("--explain", help="Add class activation maps to the JSON; needs an artifact that has them.")
    ] = False,
    variant: Variant = None,
    threads: Threads = None,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Cache folder for the optimized graph: makes the next start faster."),
    ] = None,
    as_json: Annotated[
        bool | None,
        typer.Option("--json/--text", help="JSON, one object per line: the default with `--stream`, `--watch` and `--camera`."),
    ] = None,
) -> None:
    """Classify images.

    Checks the artifact and runs its golden samples first. For an image that cannot be read, prints a line on stderr (with
    `--json` an object with `error` and `code`), continues with the others and ends with exit code 1.

    With `--stream`, `--watch` and `--camera` every result is a line of JSON (docs/predict.md), written immediately. SIGTERM and
    SIGINT stop after the current image, with exit code 0.

        edgeline predict artifacts/store/flowers photo.jpg

        edgeline predict artifacts/store/flowers photos/ --top-k 1 --json

        curl -s https://example.org/rose.jpg | edgeline predict artifacts/store/flowers -

        find photos -name '*.jpg' | edgeline predict artifacts/store/flowers --stream lines

        ffmpeg -i film.mp4 -f image2pipe -c:v mjpeg - | edgeline predict artifacts/store/flowers --stream mjpeg

        edgeline predict artifacts/store/flowers --watch incoming/ --follow --drift drift.json >> predictions.jsonl

        edgeline predict artifacts/store/flowers --camera 0 --every 1
    """
    images = images or []
    _check_options(images, stream, watch, camera, existing=existing, every=every)
    live = bool(stream or watch or camera)
    as_json = live if as_json is None else as_json
    if explain and not as_json:
        raise typer.BadParameter("class activation maps need --json", param_hint="--explain")
    with ExitStack() as stack:
        stop = None
        if live:
            from edgeline.serve.inputs.shutdown import stop_on_signals

            stop = stack.enter_context(stop_on_signals())
        classifier = _open(artifact, variant, threads, cache, follow, stack)
        if explain and not classifier().explains:
            raise classifier().unexplained()
        drift_for = _collect_drift(drift, stack)
        limit = classifier().limits.max_bytes
        if stop is None:
            from edgeline.serve.inputs.images import from_paths

            pictures = from_paths(images, limit)
        elif stream is not None:
            pictures = _streamed(stream, stop, limit)
        elif watch is not None:
            pictures = _watched(watch, existing, every, stop, limit)
        else:
            from edgeline.serve.inputs.camera import from_camera

            pictures = from_camera(camera or "", every_s=every or 0.0, stop=stop)
        failed = _print_all(pictures, classifier, drift_for, stop, top_k=top_k, explain=explain, as_json=as_json)
    if failed and not (stop and stop.requested):
        raise typer.Exit(1)


def _check_options(
    images: list[str], stream: Framing | None, watch: Path | None, camera: str | None, *, existing: bool, every: float | None
) -> None:
    """Reject a command line without a source of images, or with more than one, like typer's own usage errors."""
    sources = {"IMAGE": images and not (stream and images == ["-"]), "--stream": stream, "--watch": watch, "--camera": camera}
    named = [name for name, value in sources.items() if value]
    if len(named) != 1:
        raise typer.BadParameter(
            f"{' and '.join(named)} cannot be combined" if named else "missing IMAGE, --stream, --watch or --camera",
            param_hint="IMAGE",
        )
    if existing and watch is None:
        raise typer.BadParameter("only valid with --watch", param_hint="--existing")
    if every is not None and (images or stream):
        raise typer.BadParameter("only valid with --watch and --camera", param_hint="--every")


def _open(
    artifact: Path, variant: str | None, threads: int | None, cache: Path | None, follow: bool, stack: ExitStack
) -> "Callable[[], Classifier]":
    """Open the artifact; returns a function that returns the current classifier."""
    from edgeline.serve.classifier import Classifier

    def open_classifier(path: Path) -> Classifier:
        return Classifier.open(path, variant=variant, threads=threads, cache=cache)

    if not follow:
        classifier = open_classifier(artifact)
        return lambda: classifier
    from edgeline.serve.hot_reload import VersionWatcher

    watcher = VersionWatcher(artifact, open_classifier, _log)
    watcher.start()
    stack.callback(watcher.close)
    return lambda: watcher.classifier


def _collect_drift(drift: Path | None, stack: ExitStack) -> "Callable[[Classifier], Drift | None]":
    """Start collecting statistics if a file is given; returns a function that returns those of a classifier."""
    if drift is None:
        return lambda classifier: None
    if not drift.absolute().parent.is_dir() or drift.is_dir():
        raise ConfigError(f"--drift {drift} cannot be a file: expected a path in an existing folder")
    from edgeline.serve.drift.snapshot_writer import drift_file

    return stack.enter_context(drift_file(drift, _log))


def _streamed(framing: Framing, stop: "Stop", limit: int) -> "Iterator[Picture]":
    from edgeline.serve.inputs.images import from_lines, stdin_chunks
    from edgeline.serve.inputs.mjpeg import from_mjpeg

    read = from_lines if framing is Framing.LINES else from_mjpeg
    return read(stdin_chunks(stop), limit)


def _watched(folder: Path, existing: bool, every: float | None, stop: "Stop", limit: int) -> "Iterator[Picture]":
    from edgeline.serve.inputs.folder_watcher import WatchOptions, watch
    from edgeline.serve.inputs.images import read_picture

    interval_s = DEFAULT_WATCH_S if every is None else max(MIN_WATCH_S, every)
    paths = watch(folder, WatchOptions(interval_s=interval_s, existing=existing), stop, _log)
    return (read_picture(path, limit) for path in paths)


def _print_all(
    pictures: "Iterator[Picture]",
    classifier: "Callable[[], Classifier]",
    drift_for: "Callable[[Classifier], Drift | None]",
    stop: "Stop | None",
    *,
    top_k: int,
    explain: bool,
    as_json: bool,
) -> bool:
    """Print a line for each picture until there are no more or a stop is requested; return whether one failed."""
    from edgeline.serve.cli.output import answer

    failed = False
    for picture in pictures:
        if stop is not None and stop.requested:
            break
        current = classifier()
        line = answer(current, picture, top_k, drift_for(current), explain=explain)
        failed |= "error" in line
        if as_json:
            print(json.dumps(line), flush=True)
        elif "error" in line:
            _log(f"{_name(line)}: {line['error']} [{line['code']}]")
        else:
            print(f"{_name(line)}: {_ranking(line['predictions'])}", flush=True)
    return failed


def _name(line: dict[str, Any]) -> str:
    return printable(line["path"]) if "path" in line else f"frame {line['frame']}"


def _ranking(predictions: list[dict[str, Any]]) -> str:
    best, *others = (f"{prediction['label']} {prediction['probability']:.1%}" for prediction in predictions)
    return f"{best} ({', '.join(others)})" if others else best


def _log(line: str) -> None:
    print(f"edgeline: {printable(line)}", file=sys.stderr, flush=True)
