"""Publishes a small artifact again and again in a separate process, with a fault at each system call in turn.

    python publisher.py publish STORE TEMPLATE CONTENT...        publishes each content after reading a line
    python publisher.py FAULT FOLDER TEMPLATE [first] [sample]   prints the result of each fault as JSON

FAULT is `kill`, `EIO` or `EACCES` (one call fails) or `ENOSPC` (every call from then on fails). Calls are all system calls on
the store: opening, creating, renaming, removing, listing, locking and flushing, and writing the second half of a file. For each
of them, with `sample` for every eighth, a store is created, empty with `first`, else with one version; a child process
publishes to it with the fault at that call, and then another child publishes the same without a fault.
"""

import errno
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeline.export.publishing.store import publish_folder
from edgeline.serve.artifact.reader import open_artifact, versions
from edgeline.serve.errors import EdgelineError
from edgeline.serve.runtime.session import load_onnxruntime

CALLS = {
    *("open", "os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir", "os.scandir", "os.listdir"),
    *("fcntl.flock", "os.fsync", "write"),
}


def writer(template: Path, content: str) -> Callable[[Path, int], None]:
    """Return the function for `publish_folder`: it copies a template, each file in two halves, and writes a manifest."""

    def write(folder: Path, version: int) -> None:
        manifest = json.loads((template / "manifest.json").read_text())
        (folder / "golden").mkdir()
        for entry in manifest["files"]:
            data = (template / entry["path"]).read_bytes()
            with (folder / entry["path"]).open("wb", buffering=0) as file:
                file.write(data[: len(data) // 2])
                sys.audit("write", str(folder / entry["path"]))
                file.write(data[len(data) // 2 :])
        manifest |= {"version": version, "provenance": {"content_sha256": content}}
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return write


def plant(fault: str, at: int, folder: Path) -> None:
    """Make the `at`-th call of this process on the store fail. Cannot be undone."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in CALLS or (isinstance(arguments[0], str) and not arguments[0].startswith(str(folder))):
            return
        seen += 1
        if seen < at or (fault in ("EIO", "EACCES") and seen > at):
            return
        if seen == at:
            (folder.parent / "call").write_bytes(event.encode())
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(getattr(errno, fault), os.strerror(getattr(errno, fault)))

    sys.addaudithook(hook)


def in_child(action: Callable[[], object], file: Path) -> str:
    """Run a function in a child process, and return its outcome."""
    if (child := os.fork()) == 0:
        try:
            action()
            outcome = "done"
        except EdgelineError as error:
            outcome = f"{type(error).__name__}: {error}"
        except BaseException:
            outcome = traceback.format_exc()
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(descriptor, outcome.encode())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else file.read_text()


def shown(folder: Path) -> list[str]:
    """The contents of all versions; each must be complete."""
    artifacts = [open_artifact(folder / str(version)) for version in versions(folder)]
    return [artifact.manifest.provenance["content_sha256"] for artifact in artifacts]


def main(fault: str, root: Path, template: Path, *, first: bool, step: int) -> list[dict[str, Any]]:
    load_onnxruntime()  # once, rather than in every child
    # A killed process loses nothing that the kernel has accepted, so flushing is not needed here.
    os.fsync = lambda descriptor: sys.audit("os.fsync", descriptor)
    base = root / "base"
    base.mkdir()
    if not first:
        old = base / "store" / "colors"
        in_child(lambda: publish_folder(old, "old", writer(template, "old")), root / "outcome")
        (old / ".staging-1-left").mkdir()
        (old / ".staging-1-left" / "labels.txt").write_text("re")
    found = []
    for at in range(1, 1000, step):
        shutil.copytree(base, root / str(at))
        folder = root / str(at) / "store" / "colors"

        def publish(folder: Path = folder) -> None:
            publish_folder(folder, "new", writer(template, "new"))

        def publish_badly(folder: Path = folder, at: int = at) -> None:
            plant(fault, at, folder.parent)
            publish(folder)

        outcome = in_child(publish_badly, root / "outcome")
        if not (call := root / str(at) / "call").exists():
            return found
        entry = {"call": call.read_text(), "outcome": outcome, "shown": shown(folder)}
        entry |= {"then": in_child(publish, root / "outcome"), "then_shown": shown(folder)}
        found.append(entry | {"left": sorted(path.name for path in folder.iterdir())})
        shutil.rmtree(root / str(at))
    raise AssertionError("it never ends")


if __name__ == "__main__":
    if sys.argv[1] == "publish":
        folder, template = Path(sys.argv[2]) / "colors", Path(sys.argv[3])
        load_onnxruntime()
        print("ready", flush=True)
        sys.stdin.readline()
        published = [publish_folder(folder, content, writer(template, content)) for content in sys.argv[4:]]
        print(json.dumps([[int(target.name), reused] for target, reused in published]))
    else:
        step = 8 if "sample" in sys.argv else 1
        print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), first="first" in sys.argv, step=step)))
