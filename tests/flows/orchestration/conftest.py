"""A Prefect API for the tests of orchestration."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest

from edgeline.flows.orchestration.embedded import EmbeddedServer

DATABASE = "prefect.db"
ODD_NAME = "a?b#c%20 ' \"é~ 100%"
"""A folder's name with everything that a URL or a setting of Prefect could change."""


@pytest.fixture(scope="session")
def migrated_database(request: pytest.FixtureRequest) -> Path:
    """Where the first server's database is kept for the servers after it: migrating takes half of a start."""
    assert request.config.cache is not None
    return request.config.cache.mkdir(f"prefect-{version('prefect')}") / DATABASE


@pytest.fixture(scope="package")
def prefect_server(migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A running server in a folder of an odd name.

    It computes even when nothing is asked of it, so it ends with the tests of this folder.
    """
    home = tmp_path_factory.mktemp("prefect") / ODD_NAME
    home.mkdir()
    if migrated_database.exists():
        shutil.copy(migrated_database, home)
    with EmbeddedServer(home) as server:
        server.wait()
        if not migrated_database.exists():
            unfinished = migrated_database.with_suffix(".unfinished")
            with closing(sqlite3.connect(home / DATABASE)) as full, closing(sqlite3.connect(unfinished)) as copy:
                full.backup(copy)
            os.replace(unfinished, migrated_database)
        yield server


@pytest.fixture(scope="package")
def migrated_home(
    prefect_server: EmbeddedServer, migrated_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Path]:
    """`migrated_home()`: a new folder for another Prefect server, with a database that is migrated already."""

    def make() -> Path:
        home = tmp_path_factory.mktemp("prefect")
        shutil.copy(migrated_database, home)
        return home

    return make


@pytest.fixture
def prefect_api(prefect_server: EmbeddedServer) -> Iterator[str]:
    """The URL of an API that is configured for the duration of the test."""
    with prefect_server.settings():
        yield prefect_server.url
