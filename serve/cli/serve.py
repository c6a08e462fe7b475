"""`edgeline serve`: artifacts over HTTP.

Nothing heavy is imported here: it imports what it needs when it runs.
"""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgeline.serve.cli.options import Variant

MAX_BYTES = 16 * 2**20
MAX_PIXELS = 50_000_000
MOST_PIXELS = 178_956_970
"""Repeated from `serve.preprocess.Limits`, whose import would make `--help` slow; a test compares them."""


class LogFormat(StrEnum):
    """How a log is written."""

    TEXT = "text"
    JSON = "json"


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
    drift: Annotated[bool, typer.Option("--drift", help="Keep statistics of images and answers for /drift.")] = False,
    otel: Annotated[bool, typer.Option("--otel", help="Send traces to where the OTEL_* variables say.")] = False,
    metrics_port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="Port of 127.0.0.1 for /metrics and /drift, where --host is reached by other machines."
        ),
    ] = 8001,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for what later starts can use again; by default in the user's cache.")
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
    from edgeline.serve.http.main import Options, run
    from edgeline.serve.inference.scheduler import ConcurrencyPlan
    from edgeline.serve.preprocess import Limits
    from edgeline.serve.runtime.cpu import usable_cores

    plan = None
    if threads is not None or runners is not None or batch is not None:
        cores = usable_cores()
        plan = ConcurrencyPlan(runners=runners or max(1, cores // (threads or 1)), threads=threads or 1, batch=batch or 1)
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
        drift=drift,
        otel=otel,
        cache=cache if cache is not None else default_cache(),
        metrics_port=metrics_port,
    )
    run(options)


def default_cache() -> Path | None:
    """Where the server keeps what later starts can use again; None for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeline"
    except RuntimeError:
        return None
