"""The commands about other registries: `push` and `pull`.

Nothing heavy is imported here; each command imports what it needs when it runs.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from edgeline.serve.artifact.channels import STABLE
from edgeline.serve.errors import ConfigError

Published = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A published version, or a name's folder in a store.")]
Registry = Annotated[
    str,
    typer.Argument(
        metavar="REGISTRY",
        help="`mlflow:` or `mlflow:MODEL`, on the server in `MLFLOW_TRACKING_URI`; or `hf:FOLDER`, a folder in the layout of a "
        "Hugging Face repository.",
    ),
]
Source = Annotated[str, typer.Argument(metavar="SOURCE", help="`mlflow:MODEL@ALIAS`, `mlflow:MODEL/NUMBER`, or `hf:FOLDER`.")]


def push(
    artifact: Published,
    registry: Registry,
    alias: Annotated[str | None, typer.Option(help="MLflow: the alias that then points to this version.")] = None,
    channel: Annotated[str, typer.Option(help="Which version of a name's folder.")] = STABLE,
) -> None:
    """Push a published version to MLflow, or write it as a Hugging Face repository.

    edgeline push artifacts/store/birds mlflow: --alias champion

    edgeline push artifacts/store/birds hf:birds-hub
    """
    from edgeline.serve.artifact.reader import open_artifact, resolve

    kind, name = _split(registry)
    if kind == "hf" and alias is not None:
        raise ConfigError("--alias is for MLflow; a repository has branches and tags")
    opened = open_artifact(resolve(artifact, channel))
    described = f"{opened.manifest.name} version {opened.manifest.version}"
    if kind == "hf":
        from edgeline.export.registries.huggingface import write_repository

        write_repository(opened, Path(name))
        print(f"{described} written to {name}; upload it with: hf upload USER/{opened.manifest.name} {name}")
        return
    from edgeline.export.registries.mlflow_models import push as push_to_mlflow

    version, existed = push_to_mlflow(opened, model=name, alias=alias)
    state = "was already there" if existed else "pushed"
    print(f"{described} {state}: {version}{f', alias {alias}' if alias else ''}")


def pull(
    source: Source,
    artifacts: Annotated[Path, typer.Option(help="Folder of the store.")] = Path("artifacts"),
) -> None:
    """Add a version from MLflow or a Hugging Face repository to a store. Every file is checked, and the self-test is run.

    edgeline pull mlflow:birds@champion

    edgeline pull hf:birds-hub
    """
    from edgeline.export.publishing.store import add_version
    from edgeline.serve.artifact.reader import open_artifact

    kind, name = _split(source)
    with TemporaryDirectory() as temporary:
        if kind == "hf":
            from edgeline.export.registries.huggingface import copy_artifact

            folder = copy_artifact(Path(name), Path(temporary))
        else:
            from edgeline.export.registries.mlflow_models import download

            folder = download(name, Path(temporary))
        opened = open_artifact(folder)
        target, existed = add_version(artifacts / "store" / opened.manifest.name, opened)
    print(f"{opened.manifest.name} version {opened.manifest.version}{' was already there' if existed else ''}: {target}")


def _split(registry: str) -> tuple[str, str]:
    kind, separator, name = registry.partition(":")
    if not separator or kind not in ("mlflow", "hf") or (kind == "hf" and not name):
        raise ConfigError(f"{registry!r} is not a registry; write mlflow:MODEL, or hf:FOLDER")
    return kind, name
