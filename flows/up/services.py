"""The services of `edgeline up`: what each needs, how it is started, and when it is ready.

    prefect     the Prefect server with its UI
    worker      runs what is scheduled
    sweep       finds crashed runs and starts them again
    models      the inference server with its page; waits for the first version

To add one: a function that returns a `Service`, and its line in `services`.
"""

import http.client
import os
import sys
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeline.flows.orchestration.crashes.run_process import this_machine
from edgeline.flows.orchestration.embedded import BATCHES
from edgeline.serve.artifact.reader import versions
from edgeline.serve.errors import EdgelineError

HOST = "127.0.0.1"
PREFECT = [sys.executable, "-P", "-m", "prefect"]
EDGELINE = [sys.executable, "-P", "-c", "from edgeline.flows.cli.main import main; main()"]
PROBE_S = 2.0
SWEEP_S = 30
LEASES = "prefect.server.concurrency.lease_storage.filesystem"
"""By default leases are in memory: one whose holder is killed while the server restarts would never be free again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpOptions:
    """What `edgeline up` starts, and where."""

    artifacts: Path
    """Folder of runs, the store and the services' data."""
    name: str | None = None
    """The model to serve; by default all that are in the store when the server starts."""
    host: str = HOST
    """Listen address of the inference server. Prefect's is always 127.0.0.1: its API runs code."""
    port: int = 8000
    prefect_port: int = 4200
    pool: str = "edgeline"

    @property
    def home(self) -> Path:
        """Folder of the services' data and logs."""
        return self.artifacts.absolute() / "up"

    @property
    def store(self) -> Path:
        """Folder of the published models."""
        return self.artifacts.absolute() / "store"

    @property
    def prefect_url(self) -> str:
        """Address of Prefect's UI; its API is below it."""
        return f"http://{HOST}:{self.prefect_port}"

    @property
    def models_url(self) -> str:
        """Address of the inference server's page, on this machine."""
        return f"http://{HOST if self.host in ('', '0.0.0.0') else self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """One process that is kept running."""

    name: str
    command: Callable[[], list[str]]
    environment: Mapping[str, str]
    is_ready: Callable[[str], bool]
    """Given what it has logged since its start."""
    address: str = ""
    after: tuple[str, ...] = ()
    """Services that must be ready before it is started for the first time."""
    waits_for: Callable[[], str | None] = field(default=lambda: None)
    """What is missing to start it, for a person."""
    stop_s: float = 15.0
    """How long it may take to stop before it is killed."""


def services(options: UpOptions) -> list[Service]:
    """All services, in the order of their start."""
    return [_prefect(options), _worker(options), _sweep(options), _models(options)]


def clients_environment(options: UpOptions) -> dict[str, str]:
    """Environment variables that make a process a client of the Prefect server, whatever the user's settings are."""
    own = {
        "DO_NOT_TRACK": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
        "PREFECT_HOME": str(options.home / "prefect"),
        "PREFECT_API_URL": f"{options.prefect_url}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "5",
        "NO_PROXY": ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), HOST))),
    }
    return {key: value for key, value in os.environ.items() if not key.upper().startswith("PREFECT_")} | own


def server_environment(options: UpOptions) -> dict[str, str]:
    """Environment variables of the Prefect server. The database is that of the user's environment, or SQLite."""
    database = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
    own = {
        # Relative to the working folder, because Prefect puts the path of its home into the URL as it is.
        database: os.environ.get(database) or "sqlite+aiosqlite:///prefect.db",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": options.prefect_url,
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_UI_URL": options.prefect_url,
    }
    return clients_environment(options) | BATCHES | own


def names_in(store: Path) -> list[str]:
    """The models of a store that have a version."""
    found = []
    for folder in sorted(store.iterdir()) if store.is_dir() else []:
        try:
            if folder.is_dir() and not folder.name.startswith(".") and versions(folder):
                found.append(folder.name)
        except EdgelineError:  # not a name's folder, or not readable now
            continue
    return found


def responds(url: str) -> bool:
    """Whether a GET is answered with 200."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=PROBE_S) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def _prefect(options: UpOptions) -> Service:
    command = [*PREFECT, "server", "start", "--host", HOST, "--port", str(options.prefect_port)]
    return Service(
        name="prefect",
        command=lambda: command,
        environment=server_environment(options),
        is_ready=lambda log: responds(f"{options.prefect_url}/api/health"),
        address=options.prefect_url,
    )


def _worker(options: UpOptions) -> Service:
    # Named after the machine: the sweep recognizes its runs by it.
    command = ["worker", "start", "--pool", options.pool, "--type", "process", "--name", this_machine()]
    return Service(
        name="worker",
        command=lambda: [*PREFECT, *command, "--install-policy", "never"],
        environment=clients_environment(options),
        is_ready=lambda log: "started!" in log,
        address=f"work pool {options.pool}",
        after=("prefect",),
    )


def _sweep(options: UpOptions) -> Service:
    return Service(
        name="sweep",
        command=lambda: [*EDGELINE, "sweep", "--every", str(SWEEP_S)],
        environment=clients_environment(options),
        is_ready=lambda log: True,
        address=f"every {SWEEP_S} s",
        after=("prefect",),
    )


def _models(options: UpOptions) -> Service:
    def names() -> list[str]:
        found = names_in(options.store)
        return [name for name in found if options.name in (None, name)]

    def missing() -> str | None:
        model = f"a version of {options.name}" if options.name else "a first version"
        return None if names() else f"{model} in {options.store} (edgeline run --data photos/)"

    def command() -> list[str]:
        folders = [str(options.store / name) for name in names()]
        return [*EDGELINE, "serve", *folders, "--host", options.host, "--port", str(options.port), "--drift", "--grace", "10"]

    return Service(
        name="models",
        command=command,
        environment=clients_environment(options),
        is_ready=lambda log: responds(f"{options.models_url}/readyz"),
        address=options.models_url,
        waits_for=missing,
        stop_s=25.0,
    )
