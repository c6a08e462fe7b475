"""Compare two published versions as a promotion would, and change nothing.

decision = compare_published(Path("artifacts"), "birds", 7)
"""

from pathlib import Path

from edgeline.export.promotion.challenge import compare
from edgeline.export.promotion.decision import Decision
from edgeline.pipeline.evaluation.answers import find_evaluated_run
from edgeline.serve.artifact.channels import STABLE
from edgeline.serve.artifact.reader import is_version, names, resolve, versions
from edgeline.serve.errors import ArtifactError


def compare_published(artifacts: Path, name: str, version: int, against: str = STABLE) -> Decision:
    """Let two versions answer the test images of the first that the second has not learned from, through their shipped files.

    Margin and confidence are those of the run that published the version.

    Args:
        artifacts: folder of runs and the store.
        name: of the artifact.
        version: the one that would be promoted.
        against: the one that it would replace, as a number or a channel.

    Raises:
        ArtifactError: a version is not published, or the channel is unknown.
        ConfigError: the run that published the version is gone.
        EdgelineError: a version cannot be run.
    """
    folder = name_folder(artifacts, name)
    new = version_folder(folder, version)
    in_use = version_folder(folder, int(against)) if is_version(against) else resolve(folder, against)
    _, run = find_evaluated_run(new, artifacts)
    return compare(run, in_use, new)


def name_folder(artifacts: Path, name: str) -> Path:
    """The folder of a name in the store.

    Raises:
        ArtifactError: nothing is published under this name.
    """
    store = artifacts / "store"
    if name not in (published := names(store)):
        listed = ", ".join(published[:5]) or "nothing"
        raise ArtifactError(f"{store} has no artifact {name!r}; published: {listed}", code="not_published")
    return store / name


def version_folder(folder: Path, version: int) -> Path:
    """The folder of a published version.

    Args:
        folder: of the name in the store.
        version: its number.

    Raises:
        ArtifactError: it is not published.
    """
    if version not in (published := versions(folder)):
        listed = ", ".join(map(str, published)) or "none"
        raise ArtifactError(f"{folder} has no version {version}; published: {listed}", code="version_unknown")
    return folder / str(version)
