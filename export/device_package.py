"""The part of this package that a device has, made importable by another Python: `edgeline.serve` and nothing else."""

from pathlib import Path

import edgeline.serve


def link_device_package(folder: Path) -> None:
    """Link `edgeline.serve` into a folder that another Python has on its path.

    Nothing that is installed next to it here becomes importable there.
    """
    package = folder / "edgeline"
    package.mkdir(parents=True)
    (package / "__init__.py").symlink_to(str(edgeline.__file__))
    (package / "serve").symlink_to(Path(str(edgeline.serve.__file__)).parent.resolve())
