"""A home for users without one."""

import os
from contextlib import suppress
from pathlib import Path


def ensure_home(artifacts: Path) -> None:
    """Make the artifacts folder the home of a user who has none, such as an arbitrary user id in a container.

    Prefect cannot be imported without one, and other libraries keep caches in it. Must be called before they are imported.

    Args:
        artifacts: the folder of runs, caches and the store; created if missing.
    """
    try:
        Path.home()
    except RuntimeError:  # HOME is not set, and the user is not in the system's list
        with suppress(OSError):  # the step that needs the folder reports it
            artifacts.mkdir(parents=True, exist_ok=True)
        os.environ["HOME"] = str(artifacts.absolute())
