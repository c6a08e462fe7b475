"""Write a published version as a folder in the layout of a Hugging Face model repository, without network access.

    write_repository(artifact, Path("birds-hub"))     # then: hf upload USER/birds birds-hub

The artifact's files are copied as they are. `README.md` is the model card: metadata that the hub reads, then the artifact's own
card. `.gitattributes` stores the large files with Git LFS. Both are ignored when such a folder is read again.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from edgeline.serve.artifact.manifest import FILE_NAME as MANIFEST
from edgeline.serve.artifact.reader import Artifact
from edgeline.serve.errors import ConfigError

README, ATTRIBUTES = "README.md", ".gitattributes"
LARGE = ("*.onnx", "*.ort", "*.tflite", "*.pte", "*.bin", "*.npz")
"""Files that Git LFS stores."""
EVALUATION: dict[str, Any] = {
    "task_type": "image-classification",
    "dataset_type": "held-out",
    "dataset_name": "held-out images of the training data",
    "metric_type": "accuracy",
}


def write_repository(artifact: Artifact, folder: Path) -> None:
    """Write the folder; one that was written before gets the files of this version.

    Args:
        artifact: a published version.
        folder: created if absent; may be a clone of a repository of the hub.

    Raises:
        ConfigError: the folder has files of something else.
        OSError: the folder cannot be written.
    """
    inside = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    if inside and not (folder / MANIFEST).is_file() and set(inside) != {README}:
        raise ConfigError(f"{folder} has other files ({', '.join(sorted(inside)[:3])}); choose an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    named = {entry.path for entry in artifact.manifest.files}
    for path in _files(folder) - named - {MANIFEST, README}:
        (folder / path).unlink()  # of the version before
    (folder / MANIFEST).unlink(missing_ok=True)  # an interrupted copy is then recognized as incomplete
    for path in [*sorted(named), MANIFEST]:
        _write(folder / path, (artifact.folder / path).read_bytes() if path == MANIFEST else artifact.read(path))
    _write(folder / README, model_card(artifact).encode())
    _write(folder / ATTRIBUTES, "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE).encode())


def model_card(artifact: Artifact) -> str:
    """The model card: YAML metadata, then the artifact's card."""
    from huggingface_hub import EvalResult, ModelCardData

    manifest = artifact.manifest
    top1: Any = manifest.metrics.get("top1")
    accuracy = [] if top1 is None else [EvalResult(**EVALUATION, metric_value=round(top1["value"], 4))]
    data = ModelCardData(
        model_name=manifest.name,
        library_name="onnx",
        pipeline_tag="image-classification",
        tags=["edgeline", "onnxruntime", "edge"],
        eval_results=accuracy or None,
    )
    card = (
        artifact.read("card.md").decode()
        if any(entry.path == "card.md" for entry in manifest.files)
        else f"# {manifest.name}\n"
    )
    return f"---\n{data.to_yaml()}\n---\n\n{card}"


def copy_artifact(repository: Path, folder: Path) -> Path:
    """Copy the artifact in such a folder, without what belongs to the repository.

    Args:
        repository: a folder of `write_repository`, or a clone of it from the hub.
        folder: an empty folder.

    Returns:
        The empty folder, now with the files. Nothing is checked yet.

    Raises:
        ConfigError: the repository has no manifest.
    """
    if not (repository / MANIFEST).is_file():
        raise ConfigError(
            f"{repository} has no {MANIFEST}; expected a folder that `edgeline push ... hf:FOLDER` wrote, or its clone"
        )
    for path in _files(repository) - {README}:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repository / path, target)
    return folder


def _files(folder: Path) -> set[str]:
    """Plain files below a folder; hidden ones, such as `.git/`, belong to the repository."""
    found = set()
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found |= {Path(parent, name).relative_to(folder).as_posix() for name in files if not name.startswith(".")}
    return found


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # replaces a file that is read-only, or linked from elsewhere
    path.write_bytes(data)
