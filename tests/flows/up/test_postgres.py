"""Prefect's data in PostgreSQL instead of SQLite."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgeline.flows.orchestration.deployments.deployment import deploy
from edgeline.pipeline.config import PipelineConfig
from edgeline.serve.artifact.reader import versions
from tests.flows.up.conftest import START_S, client_of, free_port, up_in

PROGRAMS = ("initdb", "postgres", "pg_isready", "psql")
USER = "nobody"
"""Who runs it if this process is root's: PostgreSQL does not run as root."""
SECRET = "only-for-this-test"


@contextmanager
def postgres() -> Iterator[tuple[str, dict[str, str]]]:
    """A server of its own on a free port: its URL for Prefect, and the environment for psql."""
    port, account = free_port(), USER if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory() as folder:
        data, password = Path(folder, "data"), Path(folder, "password")
        password.write_text(SECRET)
        if account is not None:
            for path in (folder, password):
                shutil.chown(path, account)
        initdb = ["initdb", "-D", data, "-U", "prefect", f"--pwfile={password}", "--auth=scram-sha-256", "--no-sync"]
        subprocess.run(initdb, user=account, cwd="/", check=True, capture_output=True)
        options = ["-p", str(port), "-h", "127.0.0.1", "-k", folder, "-c", "fsync=off"]
        with Path(folder, "log").open("wb") as log:
            server = subprocess.Popen(["postgres", "-D", data, *options], user=account, cwd="/", stdout=log, stderr=log)
        try:
            yield (
                f"postgresql+asyncpg://prefect:{SECRET}@127.0.0.1:{port}/postgres",
                os.environ | {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "prefect", "PGPASSWORD": SECRET},
            )
        finally:
            server.terminate()
            server.wait(60)


@pytest.mark.long
def test_a_deployment_runs_with_postgres(unpublished: PipelineConfig, tmp_path: Path, wait_for: Any) -> None:
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"PostgreSQL is not installed: no {', '.join(missing)}")
    with postgres() as (url, environment):
        wait_for(lambda: subprocess.run(["pg_isready", "-q"], env=environment).returncode == 0)
        with up_in(tmp_path / "up", None, {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}) as up, client_of(up) as client:
            wait_for(lambda: up.is_ready("prefect", "worker", "sweep"), START_S)
            deployment = client.read_deployment_by_name(deploy(unpublished).deployment)
            flow_run = client.create_flow_run_from_deployment(deployment.id)
            wait_for(lambda: client.read_flow_run(flow_run.id).state_name == "Completed", START_S)
            query = ["psql", "-d", "postgres", "-tAc", "SELECT id, state_name FROM flow_run WHERE state_type = 'COMPLETED'"]
            found = subprocess.run(query, env=environment, capture_output=True, text=True, check=True).stdout
            assert found == f"{flow_run.id}|Completed\n"
            assert not (up.artifacts / "up" / "prefect" / "prefect.db").exists()
    assert versions(unpublished.store / "tints") == [1]
