"""Push a published version to MLflow's model registry, and download one from it.

    push(artifact, model="birds", alias="champion")     # models:/birds/1
    download("birds@champion", folder)

The artifact's files are logged as they are, as plain artifacts of a run, and a model version points to them: MLflow's own model
formats would rewrite the files, and their digests would no longer match the manifest. The version's tags have the digest of the
manifest, so pushing the same artifact again finds its version. `MLFLOW_TRACKING_URI` selects the server.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeline.serve.artifact.reader import Artifact
from edgeline.serve.errors import ConfigError, EdgelineError

EXPERIMENT = "edgeline"
FOLDER = "artifact"
"""Where the files are below an MLflow run's artifacts."""
DIGEST = "edgeline.manifest_sha256"
SETTINGS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""Unless they are set: by default, MLflow retries for minutes."""


def push(artifact: Artifact, *, model: str = "", alias: str | None = None) -> tuple[str, bool]:
    """Register a version, and let an alias point to it.

    Args:
        artifact: a published version.
        model: name of the registered model, created if absent; by default the artifact's name.
        alias: such as `champion`; moved from the version that has it.

    Returns:
        The version as `models:/<model>/<number>`, and whether it was there before.

    Raises:
        ConfigError: no server is configured.
        EdgelineError: the server does not respond or rejects the version.
    """
    model = model or artifact.manifest.name
    with _client() as client:
        _ensure_model(client, model)
        found = [v for v in client.search_model_versions(f"name = '{model}'") if v.tags.get(DIGEST) == artifact.manifest_sha256]
        version = found[0].version if found else _register(client, artifact, model)
        if alias is not None:
            client.set_registered_model_alias(model, alias, version)
    return f"models:/{model}/{version}", bool(found)


def download(model: str, folder: Path) -> Path:
    """Download the files of a model version.

    Args:
        model: `<name>@<alias>` or `<name>/<number>`.
        folder: an existing folder.

    Returns:
        The folder with the files. Nothing is checked yet.

    Raises:
        ConfigError: no server is configured, or the model is not written as above.
        EdgelineError: the server does not respond, or has no such version.
    """
    name, separator, which = model.partition("@") if "@" in model else model.partition("/")
    if not (name and separator and which):
        raise ConfigError(f"'mlflow:{model}' names no version; write mlflow:birds@champion, or mlflow:birds/3")
    with _client() as client:
        found = client.get_model_version_by_alias(name, which) if separator == "@" else client.get_model_version(name, which)
        if DIGEST not in found.tags:
            reason = f"version {found.version} of {name} in MLflow has no tag {DIGEST}, so it is not from `edgeline push`"
            raise EdgelineError(reason, code="registry_failed")
        return Path(client.download_artifacts(found.run_id, FOLDER, str(folder)))


def _register(client: Any, artifact: Artifact, model: str) -> str:
    manifest = artifact.manifest
    experiment = client.get_experiment_by_name(EXPERIMENT)
    identity = experiment.experiment_id if experiment is not None else client.create_experiment(EXPERIMENT)
    tags = {DIGEST: artifact.manifest_sha256, "edgeline.name": manifest.name, "edgeline.version": str(manifest.version)}
    run_id = client.create_run(identity, run_name=f"{manifest.name}-{manifest.version}", tags=tags).info.run_id
    try:
        if top1 := manifest.metrics.get("top1"):
            client.log_metric(run_id, "accuracy", top1["value"])
        client.log_artifacts(run_id, str(artifact.folder), FOLDER)
        version = client.create_model_version(model, f"runs:/{run_id}/{FOLDER}", run_id, tags=tags).version
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)
    return str(version)


def _ensure_model(client: Any, model: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def _client() -> Iterator[Any]:
    """MLflow's client; what it raises becomes one line."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigError(
            "no MLflow server is configured; set MLFLOW_TRACKING_URI, such as MLFLOW_TRACKING_URI=http://127.0.0.1:5000"
        )
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    try:
        yield MlflowClient()
    except (MlflowException, OSError) as error:  # OSError: those of requests as well
        reason = re.sub(r"://[^/@\s]*@", "://", " ".join(str(error).split()))[:300]  # without a password
        raise EdgelineError(
            f"the MLflow server in MLFLOW_TRACKING_URI cannot be used, or has no such model: {reason}", code="registry_failed"
        ) from error
