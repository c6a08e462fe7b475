import errno
import os
from pathlib import Path

import pytest

from edgeline.serve.errors import ArtifactError, EdgelineError, TrainingError
from edgeline.serve.system_errors import out_of_memory, remedy, system_error

MEMORY: dict[str, BaseException] = {
    "the dynamic linker": ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    "Python": MemoryError(),
    "NumPy": MemoryError("Unable to allocate 9.31 GiB for an array with shape (50000, 50000) and data type float32"),
    "PyTorch": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes. Error code 12"),
    "C++": RuntimeError("std::bad_alloc"),
    "fork": OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    "the limit of processes": BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
    "the limit of threads": RuntimeError("can't start new thread"),
}


@pytest.mark.parametrize("error", MEMORY.values(), ids=[f"F18-{source}" for source in MEMORY])
def test_too_little_memory_is_named_with_the_first_cause(error: BaseException) -> None:
    found = out_of_memory(error)
    assert found is not None
    assert found.code == "out_of_memory"
    assert (str(error) or "MemoryError") in str(found)
    assert "\n" not in str(found)


def test_the_first_cause_is_found_below_the_errors_that_it_led_to() -> None:
    """F18: libraries and this project wrap what they catch."""
    first = ImportError("libopenblas.so: failed to map segment from shared object")
    second = ImportError("\nIMPORTANT: PLEASE READ THIS FOR ADVICE ON HOW TO SOLVE THIS ISSUE!\n")
    second.__cause__ = first
    third = ArtifactError("the model cannot be loaded; copy the artifact again")
    third.__context__ = second
    found = out_of_memory(third)
    assert found is not None
    assert str(found).startswith(f"not enough memory or threads: {first}; ")


def test_an_error_with_a_better_remedy_is_kept() -> None:
    """F18: of a batch that does not fit, the remedy is a smaller batch."""
    error = TrainingError("a batch of 32 images does not fit into memory; lower train.batch_size", code="out_of_memory")
    error.__cause__ = MemoryError()
    assert out_of_memory(error) is error


OTHERS: list[BaseException] = [
    ValueError("x"),
    ImportError("no module"),
    FileNotFoundError(2, "No such file"),
    EdgelineError(""),
]


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: type(error).__name__)
def test_other_errors_are_not_about_memory(error: BaseException) -> None:
    assert out_of_memory(error) is None


def test_an_error_of_the_operating_system_names_the_file_and_what_to_do(tmp_path: Path) -> None:
    """F19: a path that is too long."""
    path = tmp_path / ("x" * 300)
    with pytest.raises(OSError, match="too long") as caught:
        path.touch()
    assert str(system_error(caught.value)) == f"{path}: File name too long; choose a shorter path"


REMEDIES = {errno.EACCES: "check its permissions", errno.ENOSPC: "free some space", errno.EIO: "copy the file again"}


@pytest.mark.parametrize(("number", "expected"), REMEDIES.items(), ids=[errno.errorcode[number] for number in REMEDIES])
def test_the_remedy_fits_the_number_of_the_error(number: int, expected: str) -> None:
    assert remedy(OSError(number, os.strerror(number)), "copy the file again") == expected


def test_a_bug_is_not_translated() -> None:
    assert system_error(ZeroDivisionError("division by zero")) is None
