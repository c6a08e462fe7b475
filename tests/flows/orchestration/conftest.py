"""A Prefect API for the tests of orchestration."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest

from edgeline.flows.orchestration.embedded import EmbeddedServer

DATABASE = "prefect.db"


@pytest.fixture(scope="session")
def migrated_home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """`migrated_home()`: a new folder for a Prefect server. Its database is migrated already, from the second run on."""
    assert request.config.cache is not None
    kept = request.config.cache.mkdir(f"prefect-{version('prefect')}") / DATABASE

    def make() -> Path:
        home = tmp_path_factory.mktemp("prefect")
        if kept.exists():
            shutil.copy(kept, home / DATABASE)
        return home

    if not kept.exists():
        with EmbeddedServer(make()) as server:
            server.wait()
        with closing(sqlite3.connect(server.home / DATABASE)) as full, closing(sqlite3.connect(kept)) as copy:
            full.backup(copy)
    return make


@pytest.fixture(scope="package")
def prefect_server(migrated_home: Callable[[], Path]) -> Iterator[EmbeddedServer]:
    """A running server; it computes even when nothing is asked of it, so it ends with the tests of this folder."""
    with EmbeddedServer(migrated_home()) as server:
        server.wait()
        yield server


@pytest.fixture
def prefect_api(prefect_server: EmbeddedServer) -> Iterator[str]:
    """The URL of an API that is configured for the duration of the test."""
    with prefect_server.settings():
        yield prefect_server.url
