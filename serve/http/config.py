"""The options of `edgeline serve`, as one typed value."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from edgeline.serve.artifact.channels import STABLE, Followed
from edgeline.serve.errors import ConfigError
from edgeline.serve.http.transport.connections import ConnectionLimits
from edgeline.serve.inbox.keeper import InboxSettings
from edgeline.serve.inference.scheduler import ConcurrencyPlan
from edgeline.serve.preprocess import Limits


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """What a server serves, and under which limits."""

    artifacts: list[Path]
    """Artifact folders, or names' folders in a store."""
    host: str = "127.0.0.1"
    port: int = 8000
    """0 picks a free one."""
    store: Path | None = None
    """Offered for download; by default the store that the first artifact is in."""
    channel: str = STABLE
    """Whose version is served, of every name's folder."""
    variant: str | None = None
    """By default the float32 reference."""
    plan: ConcurrencyPlan | None = None
    """How the cores are used; by default measured at the first start."""
    limits: Limits = Limits()
    connections: ConnectionLimits = ConnectionLimits()
    deadline_s: float = 10.0
    """Default and maximum deadline of a request."""
    queue: int = 64
    """Queued images; requests beyond that are rejected."""
    grace_s: float = 30
    """For accepted requests after a signal to stop."""
    challenger: Followed | None = None
    challenger_share: float = 0.0
    tokens: Path | None = None
    """File of bearer tokens; None disables authentication."""
    certificate: Path | None = None
    key: Path | None = None
    cors: tuple[str, ...] = ()
    json_logs: bool = False
    access_log: bool = False
    drift: bool = False
    inbox: InboxSettings | None = None
    """Where unusual photos of requests are kept; None keeps none."""
    otel: bool = False
    cache: Path | None = None
    """Folder for what later starts can reuse; None caches nothing."""
    metrics_port: int = 8001
    """Port for metrics on the loopback interface, if other machines can reach the server; else they are on `port`."""


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """Load the certificate; None if the server does not use TLS.

    Raises:
        ConfigError: only one of certificate and key is given, or they cannot be used.
    """
    if config.certificate is None and config.key is None:
        return None
    if config.certificate is None or config.key is None:
        raise ConfigError("TLS needs both --certificate and --key, one is missing")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.certificate, config.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the certificate {config.certificate} and its key {config.key} cannot be used: {error.strerror or error}; "
            "expected PEM files that belong together"
        ) from error
    return context
