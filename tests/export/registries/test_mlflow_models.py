"""A version is registered in MLflow once, under an alias, and is the same version when it is downloaded."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeline.export.registries.mlflow_models import DIGEST, download, push
from edgeline.serve.artifact.reader import Artifact, open_artifact
from edgeline.serve.errors import ConfigError, EdgelineError
from tests.support.mlflow_server import make_environment, mlflow_server

METRICS = {"top1": {"value": 0.97493, "low": 0.95, "high": 0.99, "correct": 350, "total": 359}}


@pytest.fixture(name="artifact")
def _artifact(make_artifact: Callable[..., Path]) -> Artifact:
    return open_artifact(make_artifact(version=3, metrics=METRICS))


def test_without_a_server_the_variable_to_set_is_named(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="set MLFLOW_TRACKING_URI"):
        push(artifact)


def test_a_server_that_does_not_respond_is_one_line_without_the_password(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(EdgelineError, match="MLFLOW_TRACKING_URI cannot be used") as caught:
        push(artifact)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["birds", "birds@", "@champion", "/3", ""])
def test_a_model_without_a_version_is_explained(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="write mlflow:birds@champion, or mlflow:birds/3"):
        download(model, tmp_path)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with mlflow_server(make_environment(tmp_path / "environment"), tmp_path / "mlflow") as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield


@pytest.mark.long
@pytest.mark.usefixtures("server")
def test_a_version_is_registered_once_and_comes_back_unchanged_by_its_alias(
    artifact: Artifact, make_artifact: Callable[..., Path], tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    assert push(artifact, alias="champion") == ("models:/colors/1", False)
    assert push(artifact, alias="champion") == ("models:/colors/1", True)
    other = open_artifact(make_artifact(version=4))
    assert push(other, alias="champion") == ("models:/colors/2", False)

    for model, expected in (("colors@champion", other), ("colors/1", artifact)):
        (folder := tmp_path / model.replace("/", "-")).mkdir()
        assert open_artifact(download(model, folder)).manifest_sha256 == expected.manifest_sha256
    with pytest.raises(EdgelineError, match=r"has no such model: .*challenger"):
        download("colors@challenger", tmp_path)

    client = MlflowClient()
    run = client.get_run(client.get_model_version("colors", "1").run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags[DIGEST] == artifact.manifest_sha256
    assert run.data.metrics["accuracy"] == 0.97493
    client.create_model_version("colors", f"runs:/{run.info.run_id}/artifact", run.info.run_id)
    with pytest.raises(EdgelineError, match="so it is not from `edgeline push`"):
        download("colors/3", tmp_path)
