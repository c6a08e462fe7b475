"""Make the part of edgeline that a device has, `edgeline.serve` alone, importable by another Python."""

from pathlib import Path

import edgeline.serve


def link_device_package(folder: Path) -> None:
    """Link `edgeline.serve` into a folder on the path of another Python, without the packages installed next to it."""
    package = folder / "edgeline"
    package.mkdir(parents=True)
    (package / "__init__.py").symlink_to(str(edgeline.__file__))
    (package / "serve").symlink_to(Path(str(edgeline.serve.__file__)).parent.resolve())
