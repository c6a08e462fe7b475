"""Run the pipeline on the configured Prefect server, or on an embedded one if none is configured.

    run, steps = run_with_prefect(config)

Prefect is imported after the process of the embedded server has been started: both take seconds, so they overlap.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from edgeline.flows.orchestration.connection_advice import advice, without_password
from edgeline.flows.orchestration.embedded import EmbeddedServer
from edgeline.pipeline.config import PipelineConfig
from edgeline.pipeline.progress import waiting
from edgeline.pipeline.runs.run import Run, StepResult
from edgeline.serve.errors import ConfigError, EdgelineError

PROBE_S = 10.0


def run_with_prefect(config: PipelineConfig) -> tuple[Run, list[StepResult]]:
    """Run the pipeline as a Prefect flow, on the configured server or else on an embedded one.

    Prefect's log is sent to the configured server and not printed on the terminal.

    Args:
        config: the settings of the run.

    Returns:
        The run and the result of each step, `publish` last: its folder is the artifact.

    Raises:
        EdgelineError: a step failed, or the server does not respond, or did not start.
    """
    url = configured_url()
    if url is not None:
        check_server(url)
        return _run(config, url)
    opt_out()
    with EmbeddedServer(Path(config.artifacts) / "prefect") as server, server.settings():
        with waiting("starting Prefect"):
            import_module("edgeline.flows.orchestration.flow")
            # Imports PyTorch, which nearly every run needs, while the server starts.
            import_module("edgeline.pipeline.models.backbones")
            server.wait()
        return _run(config, server.url)


def configured_url() -> str | None:
    """The URL of the user's Prefect server, from the environment, Prefect's settings files or its active profile.

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
    """Check that the configured server responds, accepts the credentials and has the same major version.

    Returns:
        Its URL without the password.

    Raises:
        EdgelineError: it cannot be used.
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
    except (RuntimeError, ValueError, ImportError, httpx.HTTPError, httpx.InvalidURL) as error:  # ImportError: a SOCKS proxy
        raise _unusable(url, error.__cause__ or error) from error
    return without_password(url)


def opt_out() -> None:
    """Disable the telemetry of Prefect's client; must be called before it is imported."""
    os.environ.setdefault("DO_NOT_TRACK", "1")


def _run(config: PipelineConfig, url: str) -> tuple[Run, list[StepResult]]:
    import httpx

    from edgeline.flows.orchestration.flow import edgeline

    try:
        with _silence_terminal():
            return edgeline(config)
    except httpx.HTTPError as error:
        raise _unusable(url, error) from error


def _unusable(url: str, error: BaseException) -> EdgelineError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return EdgelineError(
        f"the Prefect server {without_password(url)} cannot be used: {reason[:300]}; {advice(url, error)}, unset "
        "PREFECT_API_URL for an embedded one, or use --no-prefect; finished steps are kept",
        code="prefect_unreachable",
    )


def _may_have_settings() -> bool:
    """Whether Prefect may have settings anywhere. Importing Prefect to find out would take seconds."""
    if "prefect.settings" in sys.modules or any(name.upper().startswith("PREFECT_") for name in os.environ):
        return True
    profiles = Path("~/.prefect/profiles.toml").expanduser()
    if profiles.exists() or Path("prefect.toml").exists():
        return True
    mentions = {Path(".env"): "prefect", Path("pyproject.toml"): "tool.prefect"}
    return any(path.is_file() and word in path.read_text(errors="replace").lower() for path, word in mentions.items())


@contextmanager
def _silence_terminal() -> Iterator[None]:
    """Disable Prefect's log handlers for the terminal; those that send to its API stay."""
    loggers = [logging.getLogger(name) for name in (None, "prefect", "prefect._internal")]
    handlers = {
        handler
        for logger in loggers
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and type(handler).__module__ == "prefect.logging.handlers"
    }
    for handler in handlers:
        handler.addFilter(_drop)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_drop)


def _drop(record: logging.LogRecord) -> bool:
    return False
