"""The Prefect server that a run reports to: the configured one, or else an embedded one.

    run, steps = run_with_prefect(config)

Prefect is imported only after the embedded server's process is on its way: both take seconds, and so take them together.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

from edgeline.flows.orchestration.embedded import EmbeddedServer
from edgeline.pipeline.config import PipelineConfig
from edgeline.pipeline.progress import waiting
from edgeline.pipeline.runs.run import Run, StepResult
from edgeline.serve.errors import ConfigError, EdgelineError

PROBE_S = 10.0


def run_with_prefect(config: PipelineConfig) -> tuple[Run, list[StepResult]]:
    """Run the line as a Prefect flow, on the configured server or else on an embedded one.

    The terminal stays ours: Prefect's log goes to the configured server, and nowhere else.

    Args:
        config: what is asked for.

    Returns:
        The run, and what each step left behind, `publish` last: its folder is the artifact.

    Raises:
        EdgelineError: a step failed; or the server does not answer, or did not start.
    """
    url = configured_url()
    if url is not None:
        check_server(url)
        return _run(config, url)
    opt_out()
    with EmbeddedServer(Path(config.artifacts) / "prefect") as server, server.settings():
        with waiting("starting Prefect"):
            import_module("edgeline.flows.orchestration.flow")
            import_module(
                "edgeline.pipeline.models.backbones"
            )  # PyTorch: nearly every run needs it, and the server is not up yet
            server.wait()
        return _run(config, server.url)


def configured_url() -> str | None:
    """Where the user's own Prefect server is: from the environment, Prefect's settings files, or its active profile.

    Raises:
        ConfigError: Prefect cannot read its settings.
    """
    if not _may_have_settings():
        return None
    opt_out()
    try:
        from prefect.settings import PREFECT_API_URL

        url: str | None = PREFECT_API_URL.value()
    except ValueError as error:  # pydantic's for a setting, and Prefect's for a file
        raise ConfigError(f"Prefect cannot read its settings: {' '.join(str(error).split())}") from error
    return url or None


def check_server(url: str) -> str:
    """Return the configured server's address, without a password, if it answers, takes us and is of our major version.

    Raises:
        EdgelineError: it does not.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True, httpx_settings={"timeout": PROBE_S}) as client,
        ):
            client.raise_for_api_version_mismatch()
    except (RuntimeError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unusable(url, error.__cause__ or error) from error
    return _without_password(url)


def opt_out() -> None:
    """Keep Prefect's client from reporting its use; to be called before it is imported."""
    os.environ.setdefault("DO_NOT_TRACK", "1")


def _run(config: PipelineConfig, url: str) -> tuple[Run, list[StepResult]]:
    import httpx

    from edgeline.flows.orchestration.flow import edgeline

    try:
        with _quiet_terminal():
            return edgeline(config)
    except httpx.HTTPError as error:
        raise _unusable(url, error) from error


def _unusable(url: str, error: BaseException) -> EdgelineError:
    said = " ".join(str(error).split()) or type(error).__name__
    return EdgelineError(
        f"the Prefect server {_without_password(url)} cannot be used: {said[:300]}; start it (prefect server start), "
        "unset PREFECT_API_URL for an embedded one, or use --no-prefect; finished steps are kept",
        code="prefect_unreachable",
    )


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _may_have_settings() -> bool:
    """Whether any place that Prefect reads settings from has some: it takes seconds to ask Prefect itself."""
    if "prefect.settings" in sys.modules or any(name.upper().startswith("PREFECT_") for name in os.environ):
        return True
    profiles = Path("~/.prefect/profiles.toml").expanduser()
    if profiles.exists() or Path("prefect.toml").exists():
        return True
    mentions = {Path(".env"): "prefect", Path("pyproject.toml"): "tool.prefect"}
    return any(path.is_file() and word in path.read_text(errors="replace").lower() for path, word in mentions.items())


@contextmanager
def _quiet_terminal() -> Iterator[None]:
    """Keep Prefect's log handlers off the terminal; the ones that send to its API stay."""
    loggers = [logging.getLogger(name) for name in (None, "prefect", "prefect._internal")]
    handlers = {
        handler
        for logger in loggers
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and type(handler).__module__ == "prefect.logging.handlers"
    }
    for handler in handlers:
        handler.addFilter(_nothing)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False
