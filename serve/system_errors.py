"""Errors of the operating system, translated for users: too little memory, full disks, missing permissions."""

import errno
import re
import sys
from collections.abc import Iterator

from edgeline.serve.errors import EdgelineError

OUT_OF_MEMORY = re.compile(
    "failed to map segment|cannot allocate|can't allocate|not enough memory|bad_alloc|bad allocation|failed to allocate|"
    "out of memory|can't start new thread|thread creation failed|pthread_create failed",
    re.IGNORECASE,
)
"""In messages of the dynamic linker, NumPy, PyTorch, ONNX Runtime, SQLite and Python."""
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "choose a folder that can be written",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def remedy(error: OSError, otherwise: str) -> str:
    """Return what to do about an error of the operating system.

    Args:
        error: as the operating system raised it.
        otherwise: what to do if its number suggests nothing better.
    """
    return REMEDIES.get(error.errno or 0, otherwise)


def system_error(error: BaseException) -> EdgelineError | None:
    """Translate what a full disk, a permission, an encoding or too little memory raised; the message has the first cause.

    Returns:
        None if the error is something else.
    """
    if (found := out_of_memory(error)) is not None:
        return found
    encoding = sys.getfilesystemencoding()
    if isinstance(error, UnicodeError) and encoding != "utf-8":  # of a file name
        return EdgelineError(f"{error}; the system's encoding is {encoding}: set LC_ALL=C.UTF-8", code="io_error")
    if not isinstance(error, OSError):
        return None
    where = f"{error.filename}: " if error.filename else ""
    todo = remedy(error, "check the disk and its permissions")
    return EdgelineError(f"{where}{error.strerror or error}; {todo}", code="io_error")


def out_of_memory(error: BaseException) -> EdgelineError | None:
    """Translate an error that too little memory, or too few threads, raised or caused.

    Returns:
        None if it has another cause.
    """
    # EAGAIN is a limit of processes if it ends the command, and elsewhere only means that something is not ready.
    found = [cause for cause in _causes(error) if _is_out_of_memory(cause)] or [error] * isinstance(error, BlockingIOError)
    if not found:
        return None
    if isinstance(error, EdgelineError) and error.code == "out_of_memory":
        return error  # has a better remedy
    reason = " ".join(str(found[-1]).split())[:200] or type(found[-1]).__name__
    return EdgelineError(
        f"not enough memory or threads: {reason}; stop other programs, or raise the limits of this process (ulimit -v, ulimit "
        "-u, or the container's)",
        code="out_of_memory",
    )


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, EdgelineError):
        return error.code == "out_of_memory"
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)) is not None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it, the first cause last."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
