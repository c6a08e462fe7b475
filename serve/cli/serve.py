"""`edgeline serve`: artifacts over HTTP. Imports its dependencies when it runs."""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeline.serve.cli.options import Channel, Variant

if TYPE_CHECKING:
    from edgeline.serve.artifact.channels import Followed
    from edgeline.serve.inference.scheduler import ConcurrencyPlan

MAX_BYTES = 16 * 2**20
MAX_PIXELS = 50_000_000
PILLOW_MAX_PIXELS = 178_956_970
"""Duplicated from `serve.preprocess`, so that `--help` does not import Pillow; a test compares them."""
INBOX_PHOTOS, INBOX_MB = 500, 512
"""Duplicated from `serve.inbox.folder`, likewise."""


class LogFormat(StrEnum):
    """Format of the log."""

    TEXT = "text"
    JSON = "json"


def serve(
    artifacts: Annotated[
        list[Path],
        typer.Argument(
            metavar="ARTIFACT...",
            help="Artifact folders, or names' folders in a store for the version of a channel, which is followed.",
        ),
    ],
    host: Annotated[str, typer.Option(help="Listen address; use 127.0.0.1 unless clients are remote.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")] = 8000,
    store: Annotated[
        Path | None,
        typer.Option(help="Store to publish for download under /artifacts; by default the store of the artifact."),
    ] = None,
    channel: Channel = "stable",
    variant: Variant = None,
    runners: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Images to process at once; by default measured at the first start.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads for one image; by default measured at the first start.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, max=8, help="Maximum batch size; by default measured at the first start.")
    ] = None,
    queue: Annotated[int, typer.Option(min=1, max=100_000, help="Queue capacity; requests beyond it receive 503.")] = 64,
    deadline: Annotated[float, typer.Option(min=0.001, max=3600, help="Request deadline, in seconds.")] = 10.0,
    max_bytes: Annotated[int, typer.Option(min=1, help="Maximum image size in bytes; larger images receive 413.")] = MAX_BYTES,
    max_pixels: Annotated[
        int, typer.Option(min=1, max=PILLOW_MAX_PIXELS, help="Maximum width * height of an image, checked before decoding.")
    ] = MAX_PIXELS,
    grace: Annotated[int, typer.Option(min=1, help="Seconds to finish accepted requests after SIGTERM or SIGINT.")] = 30,
    challenger: Annotated[
        str | None,
        typer.Option(
            metavar="CHANNEL|PATH",
            help="Another channel of the first name, such as `canary`, or another artifact: receives a share of the requests.",
        ),
    ] = None,
    challenger_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the challenger, 0 to 1.")] = 0.1,
    tokens: Annotated[
        Path | None, typer.Option(help="File of bearer tokens, one per line; if omitted, authentication is disabled.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="Certificate chain for TLS, PEM; needs --key.")] = None,
    key: Annotated[Path | None, typer.Option(help="Private key of the certificate, PEM.")] = None,
    cors: Annotated[list[str] | None, typer.Option(help="Origin that is allowed by CORS; may be repeated.")] = None,
    log_format: Annotated[LogFormat, typer.Option(help="Format of the log on stderr.")] = LogFormat.TEXT,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log each request.")] = False,
    drift: Annotated[bool, typer.Option("--drift", help="Collect statistics of images and predictions for /drift.")] = False,
    inbox: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep photos that the model is unsure of, for `edgeline label`; needs --inbox-consent."
        ),
    ] = None,
    inbox_consent: Annotated[
        str, typer.Option(metavar="TEXT", help="States why photos of requests may be kept; recorded in the inbox.")
    ] = "",
    inbox_photos: Annotated[
        int,
        typer.Option(min=1, max=100_000, help="Photos that wait for a label; the least interesting are replaced."),
    ] = INBOX_PHOTOS,
    inbox_mb: Annotated[int, typer.Option(min=1, max=1_000_000, help="Size of these photos, in MiB.")] = INBOX_MB,
    otel: Annotated[bool, typer.Option("--otel", help="Send OpenTelemetry traces, as set by the OTEL_* variables.")] = False,
    metrics_port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="Port on 127.0.0.1 for /metrics and /drift, if --host is reachable by other machines."
        ),
    ] = 8001,
    cache: Annotated[
        Path | None, typer.Option(help="Cache folder, which makes later starts faster; by default in the user's cache folder.")
    ] = None,
) -> None:
    """Serve artifacts over HTTP.

    Prints the address when the socket is open. `/readyz` returns 200 once the artifact has passed its golden samples, otherwise
    the reason; `/healthz` returns 200 while the process runs. A version that the channel moves to is validated in a separate
    process and then replaces the current one; SIGHUP checks the channel immediately, SIGUSR1 rolls back. A name without
    channels is followed to its newest version. On SIGTERM or
    SIGINT, finishes accepted requests and stops with exit code 0.

        edgeline serve artifacts/store/flowers --port 8000

        curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' 'http://127.0.0.1:8000/predict?top_k=3'
    """
    from edgeline.serve.artifact.channels import check_channel
    from edgeline.serve.http.config import ServerConfig
    from edgeline.serve.http.main import run
    from edgeline.serve.inbox.folder import InboxLimits
    from edgeline.serve.inbox.keeper import InboxSettings
    from edgeline.serve.preprocess import Limits

    if inbox is None and inbox_consent:
        raise typer.BadParameter("without --inbox nothing is kept", param_hint="--inbox-consent")

    # Every option is mapped to the server's configuration here, and nowhere else.
    config = ServerConfig(
        artifacts=artifacts,
        host=host,
        port=port,
        store=store,
        channel=check_channel(channel),
        variant=variant,
        plan=_concurrency_plan(runners, threads, batch),
        limits=Limits(max_bytes=max_bytes, max_pixels=max_pixels),
        deadline_s=deadline,
        queue=queue,
        grace_s=grace,
        challenger=None if challenger is None else _challenger(challenger, artifacts[0]),
        challenger_share=challenger_share,
        tokens=tokens,
        certificate=certificate,
        key=key,
        cors=tuple(cors or ()),
        json_logs=log_format is LogFormat.JSON,
        access_log=access_log,
        drift=drift,
        inbox=None
        if inbox is None
        else InboxSettings(
            folder=inbox, consent=inbox_consent, limits=InboxLimits(photos=inbox_photos, size_bytes=inbox_mb * 2**20)
        ),
        otel=otel,
        cache=cache if cache is not None else default_cache(),
        metrics_port=metrics_port,
    )
    run(config)


def _challenger(given: str, first: Path) -> "Followed":
    """What the option means: a path if it exists or looks like one, otherwise a channel of the first name."""
    from edgeline.serve.artifact.channels import Followed, check_channel

    if os.sep in given or Path(given).exists():
        return Followed(Path(given))
    return Followed(first, check_channel(given))


def _concurrency_plan(runners: int | None, threads: int | None, batch: int | None) -> "ConcurrencyPlan | None":
    """The plan for the given options; None, to measure the best plan, if none of them is given."""
    from edgeline.serve.inference.scheduler import ConcurrencyPlan
    from edgeline.serve.runtime.cpu import usable_cores

    if runners is None and threads is None and batch is None:
        return None
    threads = threads or 1
    return ConcurrencyPlan(workers=runners or max(1, usable_cores() // threads), threads=threads, batch=batch or 1)


def default_cache() -> Path | None:
    """The server's default cache folder; None for a user without a home directory."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeline"
    except RuntimeError:
        return None
