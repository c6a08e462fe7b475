"""`edgeline predict`: images to classes.

Nothing heavy is imported here: it imports what it needs when it runs.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serve.errors import ImageError, InputError
from serve.options import Artifact, Json, Threads, Variant, printable

if TYPE_CHECKING:
    from serve.classifier import Prediction

STDIN = "-"


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
                print(f"edgeline: {printable(path)}: {error} [{error.code}]", file=sys.stderr, flush=True)
            continue
        if as_json:
            found = [asdict(prediction) for prediction in predictions]
            print(json.dumps({"path": path, **identity, "predictions": found}), flush=True)
        else:
            print(f"{printable(path)}: {_ranking(predictions)}", flush=True)
    if failed:
        raise typer.Exit(1)


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
