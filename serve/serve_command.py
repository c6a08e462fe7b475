"""`edgeline serve`: an artifact over HTTP.

Nothing heavy is imported here: it imports what it needs when it runs.
"""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serve.options import Artifact, Threads, Variant, printable

if TYPE_CHECKING:
    from serve.predictor import Predictor

MAX_BYTES = 16 * 2**20
MAX_PIXELS = 50_000_000
MOST_PIXELS = 178_956_970
"""Repeated from `serve.preprocess.Limits`, whose import would make `--help` slow; a test compares them."""

CLOSE_S = 5.0
"""How long a stopped server waits for threads that outlived the grace period."""


def serve(
    artifact: Artifact,
    host: Annotated[
        str, typer.Option(help="Address to listen on. There is no authentication: mind who can reach it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    store: Annotated[
        Path | None,
        typer.Option(help="Store to offer for download under /artifacts; by default the one that the artifact lies in."),
    ] = None,
    variant: Variant = None,
    threads: Threads = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="Largest image in bytes; a larger one gets 413.")] = MAX_BYTES,
    max_pixels: Annotated[
        int, typer.Option(min=1, max=MOST_PIXELS, help="Largest width * height, read from the header before decoding.")
    ] = MAX_PIXELS,
    grace: Annotated[int, typer.Option(min=1, help="Seconds that accepted requests get after SIGTERM or SIGINT.")] = 30,
) -> None:
    """Serve an artifact over HTTP.

    The address is printed when the socket is open. `/readyz` answers 200 as soon as the artifact has proven itself, and else
    says why not; `/healthz` answers while the process lives. Stops with exit code 0 on SIGTERM or SIGINT, when the accepted
    requests are answered.

        edgeline serve artifacts/store/flowers --port 8000

        curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' 'http://127.0.0.1:8000/predict?top_k=3'
    """
    from serve.app import create_app
    from serve.classifier import Classifier
    from serve.predictor import Predictor
    from serve.preprocess import Limits
    from serve.published import store_of
    from serve.runtime import usable_cores
    from serve.server import Server, is_exposed, listen, url_of

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("serve").setLevel(logging.INFO)
    limits = Limits(max_bytes=max_bytes, max_pixels=max_pixels)

    def open_classifier(path: Path) -> Classifier:
        return Classifier.open(path, variant=variant, threads=threads, limits=limits)

    predictor = Predictor(artifact, open_classifier, workers=threads or usable_cores())
    app = create_app(predictor, limits=limits, store=store or store_of(artifact))
    with listen(host, port) as listener:
        url = url_of(listener)
        if is_exposed(listener):
            print(f"edgeline: {url} can be reached from other machines, and has no authentication", file=sys.stderr, flush=True)

        def on_started() -> None:
            print(f"edgeline serves {printable(str(artifact))} on {url}", flush=True)
            predictor.start()

        Server(app, grace_s=grace, on_started=on_started).run([listener])
    _leave(predictor)


def _leave(predictor: "Predictor") -> None:
    """Return if every thread has ended; else end the process, because Python would wait for them for ever."""
    if not predictor.close(CLOSE_S):
        print("edgeline: stopped with work that did not end in the grace period", file=sys.stderr, flush=True)
        os._exit(1)
