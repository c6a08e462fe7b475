"""`edgeline predict`: images to classes, from files, folders, a pipe, a watched folder or a camera.

Nothing heavy is imported here: it imports what it needs when it runs, and of what is not asked for nothing at all.
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

WATCH_EVERY_S = 0.5
SHORTEST_WATCH_S = 0.05


class Framing(StrEnum):
    """How several images come through a pipe."""

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
            help="Instead of IMAGE, many through stdin: `lines` of paths, as find writes them, or `mjpeg`, JPEG upon JPEG."
        ),
    ] = None,
    watch: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Instead of IMAGE: each file that appears in this folder, when it is complete."),
    ] = None,
    existing: Annotated[
        bool, typer.Option("--existing", help="With `--watch`: the files that are there already come first.")
    ] = False,
    camera: Annotated[
        str | None,
        typer.Option(metavar="N|PATH", help="Instead of IMAGE: a camera's number or device, or a video file; needs OpenCV."),
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=86400,
            help="Seconds between two frames of `--camera`, by default none, or two looks of `--watch`, by default 0.5.",
        ),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Change over to a newer version, when one is published in ARTIFACT and proves itself."),
    ] = False,
    drift: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep statistics of images and answers in this file; see `edgeline drift`."),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to name for each image.")] = 5,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say where in the image each class was seen; in JSON, of artifacts that can.")
    ] = False,
    variant: Variant = None,
    threads: Threads = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the optimized graph in this folder: the next start is faster.")
    ] = None,
    as_json: Annotated[
        bool | None,
        typer.Option("--json/--text", help="JSON, one object a line: the default with `--stream`, `--watch` and `--camera`."),
    ] = None,
) -> None:
    """Classify images.

    The artifact is checked and answers its golden samples first. An image that cannot be read gets a line on stderr (with
    `--json` an object with `error` and `code`), the others are still answered, and the exit code is 1.

    With `--stream`, `--watch` and `--camera` every answer is a line of JSON (docs/predict.md), there at once. SIGTERM and
    SIGINT end them after the image at hand, with exit code 0.

        edgeline predict artifacts/store/flowers photo.jpg

        edgeline predict artifacts/store/flowers photos/ --top-k 1 --json

        curl -s https://example.org/rose.jpg | edgeline predict artifacts/store/flowers -

        find photos -name '*.jpg' | edgeline predict artifacts/store/flowers --stream lines

        ffmpeg -i film.mp4 -f image2pipe -c:v mjpeg - | edgeline predict artifacts/store/flowers --stream mjpeg

        edgeline predict artifacts/store/flowers --watch incoming/ --follow --drift drift.json >> answers.jsonl

        edgeline predict artifacts/store/flowers --camera 0 --every 1
    """
    images = images or []
    _check_options(images, stream, watch, camera, existing=existing, every=every)
    live = bool(stream or watch or camera)
    as_json = live if as_json is None else as_json
    if explain and not as_json:
        raise typer.BadParameter("a map of numbers needs --json", param_hint="--explain")
    with ExitStack() as stack:
        stop = None
        if live:
            from edgeline.serve.inputs.shutdown import stop_on_signals

            stop = stack.enter_context(stop_on_signals())
        classifier = _opened(artifact, variant, threads, cache, follow, stack)
        if explain and not classifier().explains:
            raise classifier().unexplained()
        observed = _observed(drift, stack)
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
        failed = _answer_all(pictures, classifier, observed, stop, top_k=top_k, explain=explain, as_json=as_json)
    if failed and not (stop and stop.asked):
        raise typer.Exit(1)


def _check_options(
    images: list[str], stream: Framing | None, watch: Path | None, camera: str | None, *, existing: bool, every: float | None
) -> None:
    """Refuse a command line that names no source of images, or more than one, as typer refuses one that it cannot parse."""
    sources = {"IMAGE": images and not (stream and images == ["-"]), "--stream": stream, "--watch": watch, "--camera": camera}
    named = [name for name, value in sources.items() if value]
    if len(named) != 1:
        raise typer.BadParameter(
            f"{' and '.join(named)} cannot go together" if named else "say which IMAGE, or --stream, --watch or --camera",
            param_hint="IMAGE",
        )
    if existing and watch is None:
        raise typer.BadParameter("it belongs to --watch", param_hint="--existing")
    if every is not None and (images or stream):
        raise typer.BadParameter("it belongs to --watch and --camera", param_hint="--every")


def _opened(
    artifact: Path, variant: str | None, threads: int | None, cache: Path | None, follow: bool, stack: ExitStack
) -> "Callable[[], Classifier]":
    """Open the artifact; returns what gives the classifier that is to answer now."""
    from edgeline.serve.classifier import Classifier

    def open_classifier(path: Path) -> Classifier:
        return Classifier.open(path, variant=variant, threads=threads, cache=cache)

    if not follow:
        classifier = open_classifier(artifact)
        return lambda: classifier
    from edgeline.serve.hot_reload import VersionWatcher

    watcher = VersionWatcher(artifact, open_classifier, _tell)
    watcher.start()
    stack.callback(watcher.close)
    return lambda: watcher.classifier


def _observed(drift: Path | None, stack: ExitStack) -> "Callable[[Classifier], Drift | None]":
    """Begin to keep statistics, if they are asked for; returns what gives those of a classifier."""
    if drift is None:
        return lambda classifier: None
    if not drift.absolute().parent.is_dir() or drift.is_dir():
        raise ConfigError(f"--drift {drift} cannot be a file: expected a path in a folder that is there")
    from edgeline.serve.drift.snapshot_writer import kept_snapshot

    return stack.enter_context(kept_snapshot(drift, _tell))


def _streamed(framing: Framing, stop: "Stop", limit: int) -> "Iterator[Picture]":
    from edgeline.serve.inputs.images import from_lines, stdin_chunks
    from edgeline.serve.inputs.mjpeg import from_mjpeg

    read = from_lines if framing is Framing.LINES else from_mjpeg
    return read(stdin_chunks(stop), limit)


def _watched(folder: Path, existing: bool, every: float | None, stop: "Stop", limit: int) -> "Iterator[Picture]":
    from edgeline.serve.inputs.folder_watcher import Watching, watch
    from edgeline.serve.inputs.images import read_picture

    interval_s = WATCH_EVERY_S if every is None else max(SHORTEST_WATCH_S, every)
    paths = watch(folder, Watching(interval_s=interval_s, existing=existing), stop, _tell)
    return (read_picture(path, limit) for path in paths)


def _answer_all(
    pictures: "Iterator[Picture]",
    classifier: "Callable[[], Classifier]",
    observed: "Callable[[Classifier], Drift | None]",
    stop: "Stop | None",
    *,
    top_k: int,
    explain: bool,
    as_json: bool,
) -> bool:
    """Print a line about each picture until there are no more, or the process is asked to end; return whether one failed."""
    from edgeline.serve.cli.output import answer

    failed = False
    for picture in pictures:
        if stop is not None and stop.asked:
            break
        current = classifier()
        line = answer(current, picture, top_k, observed(current), explain=explain)
        failed |= "error" in line
        if as_json:
            print(json.dumps(line), flush=True)
        elif "error" in line:
            _tell(f"{_name(line)}: {line['error']} [{line['code']}]")
        else:
            print(f"{_name(line)}: {_ranking(line['predictions'])}", flush=True)
    return failed


def _name(line: dict[str, Any]) -> str:
    return printable(line["path"]) if "path" in line else f"frame {line['frame']}"


def _ranking(predictions: list[dict[str, Any]]) -> str:
    best, *others = (f"{prediction['label']} {prediction['probability']:.1%}" for prediction in predictions)
    return f"{best} ({', '.join(others)})" if others else best


def _tell(line: str) -> None:
    print(f"edgeline: {printable(line)}", file=sys.stderr, flush=True)
