"""`edgeline predict`: classify images from files, folders, a pipe, a watched folder or a camera.

Imports its dependencies when it runs, and only those of the options in use.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeline.serve.cli.options import Artifact, Channel, Threads, Variant
from edgeline.serve.errors import ConfigError
from edgeline.serve.terminal import printable

if TYPE_CHECKING:
    from edgeline.serve.artifact.channels import Followed
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
        typer.Option("--follow", help="Switch to the versions that the channel moves to, if they pass their golden samples."),
    ] = False,
    channel: Channel = "stable",
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
    source = Source(images=images or [], stream=stream, watch=watch, camera=camera, existing=existing, every_s=every)
    source.check()
    as_json = source.is_live if as_json is None else as_json
    if explain and not as_json:
        raise typer.BadParameter("class activation maps need --json", param_hint="--explain")
    with ExitStack() as stack:
        stop = None
        if source.is_live:
            from edgeline.serve.inputs.shutdown import stop_on_signals

            stop = stack.enter_context(stop_on_signals())
        from edgeline.serve.artifact.channels import Followed, check_channel
        from edgeline.serve.classifier import Classifier
        from edgeline.serve.cli.output import answer

        open_classifier = partial(Classifier.open, variant=variant, threads=threads, cache=cache)
        classifier = _open_and_watch(Followed(artifact, check_channel(channel)), open_classifier, follow, stack)
        if explain and not classifier().explains:
            raise classifier().unexplained()
        drift_for = _collect_drift(drift, stack)
        failed = False
        for picture in source.pictures(stop, classifier().limits.max_bytes):
            if stop is not None and stop.requested:
                break
            current = classifier()
            line = answer(current, picture, top_k, drift_for(current), explain=explain)
            failed |= "error" in line
            _print_line(line, as_json)
    if failed and not (stop and stop.requested):
        raise typer.Exit(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where the images come from, as given on the command line."""

    images: list[str]
    stream: Framing | None
    watch: Path | None
    camera: str | None
    existing: bool
    every_s: float | None

    @property
    def is_live(self) -> bool:
        """Whether it ends by a signal or the end of a stream."""
        return bool(self.stream or self.watch or self.camera)

    def check(self) -> None:
        """Reject a command line without a source of images, or with more than one, like typer's own usage errors."""
        images = self.images and not (self.stream and self.images == ["-"])
        sources = {"IMAGE": images, "--stream": self.stream, "--watch": self.watch, "--camera": self.camera}
        named = [name for name, value in sources.items() if value]
        if len(named) != 1:
            raise typer.BadParameter(
                f"{' and '.join(named)} cannot be combined" if named else "missing IMAGE, --stream, --watch or --camera",
                param_hint="IMAGE",
            )
        if self.existing and self.watch is None:
            raise typer.BadParameter("only valid with --watch", param_hint="--existing")
        if self.every_s is not None and (self.images or self.stream):
            raise typer.BadParameter("only valid with --watch and --camera", param_hint="--every")

    def pictures(self, stop: "Stop | None", max_bytes: int) -> "Iterator[Picture]":
        """The images; `stop` is None for files on the command line."""
        if stop is None:
            from edgeline.serve.inputs.images import from_paths

            return from_paths(self.images, max_bytes)
        if self.stream is not None:
            from edgeline.serve.inputs.images import from_lines, stdin_chunks
            from edgeline.serve.inputs.mjpeg import from_mjpeg

            read = from_lines if self.stream is Framing.LINES else from_mjpeg
            return read(stdin_chunks(stop), max_bytes)
        if self.watch is not None:
            from edgeline.serve.inputs.folder_watcher import WatchOptions, watch
            from edgeline.serve.inputs.images import read_picture

            interval_s = DEFAULT_WATCH_S if self.every_s is None else max(MIN_WATCH_S, self.every_s)
            paths = watch(self.watch, WatchOptions(interval_s=interval_s, existing=self.existing), stop, _log)
            return (read_picture(path, max_bytes) for path in paths)
        from edgeline.serve.inputs.camera import from_camera

        return from_camera(self.camera or "", every_s=self.every_s or 0.0, stop=stop)


def _open_and_watch(
    followed: "Followed", open_classifier: "Callable[[Path], Classifier]", follow: bool, stack: ExitStack
) -> "Callable[[], Classifier]":
    """Open the artifact; returns a function that returns the current classifier."""
    if not follow:
        from edgeline.serve.artifact.reader import resolve

        classifier = open_classifier(resolve(*followed))
        return lambda: classifier
    from edgeline.serve.hot_reload import VersionWatcher

    watcher = VersionWatcher(followed, open_classifier, _log)
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


def _print_line(line: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(line), flush=True)
    elif "error" in line:
        _log(f"{_name(line)}: {line['error']} [{line['code']}]")
    else:
        print(f"{_name(line)}: {_ranking(line['predictions'])}", flush=True)


def _name(line: dict[str, Any]) -> str:
    return printable(line["path"]) if "path" in line else f"frame {line['frame']}"


def _ranking(predictions: list[dict[str, Any]]) -> str:
    best, *others = (f"{prediction['label']} {prediction['probability']:.1%}" for prediction in predictions)
    return f"{best} ({', '.join(others)})" if others else best


def _log(line: str) -> None:
    print(f"edgeline: {printable(line)}", file=sys.stderr, flush=True)
