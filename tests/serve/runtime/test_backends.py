"""Loading variants by their format."""

import io
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from edgeline.pipeline.config import VariantName
from edgeline.serve.errors import ArtifactError, MissingExtraError
from edgeline.serve.runtime.backends import (
    BACKENDS,
    Model,
    backend,
    files_of,
    load_file,
    not_run_here,
    receive,
    send,
    uses_onnxruntime,
)

ROOT = Path(__file__).resolve().parents[3]


def test_an_array_is_unchanged_after_a_pipe() -> None:
    pipe = io.BytesIO()
    arrays = [np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3), np.array([[0.25, 0.75]], np.float32)]
    for array in arrays:
        send(pipe, array)
    pipe.seek(0)
    for array in arrays:
        found = receive(pipe)
        assert found is not None
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
    assert receive(pipe) is None


def test_pickled_objects_are_rejected_from_a_pipe() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    pipe = io.BytesIO(len(buffer.getvalue()).to_bytes(8, "little") + buffer.getvalue())
    with pytest.raises(ValueError, match="allow_pickle"):
        receive(pipe)


def test_a_model_returns_the_named_outputs_in_that_order() -> None:
    model = Model(lambda pixels_NHW3: (np.full((1, 2), 0.5, np.float32), pixels_NHW3[:, 0, 0, :2].astype(np.float32)))
    image = np.full((1, 4, 4, 3), 7, np.uint8)
    logits_NK, probabilities_NK = model.run(["logits", "probabilities"], {"image": image})
    assert (logits_NK.tolist(), probabilities_NK.tolist()) == ([[7, 7]], [[0.5, 0.5]])


FILES = {
    "one file": ("onnx", "model.onnx", ("model.onnx",)),
    "OpenVINO, with its weights": ("openvino", "model.int8.xml", ("model.int8.xml", "model.int8.bin")),
}


@pytest.mark.parametrize(("format", "file", "expected"), FILES.values(), ids=FILES)
def test_a_format_determines_the_files_of_a_variant(format: str, file: str, expected: tuple[str, ...]) -> None:
    assert files_of(format, file) == expected


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """Empty files of a model."""
    (tmp_path / "model.xml").touch()
    (tmp_path / "model.bin").touch()
    return tmp_path / "model.xml"


def test_the_error_for_a_missing_runtime_names_its_extra(empty: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"'openvino': pip install 'edgeline\[openvino\]'"):
        load_file("openvino", empty)


def test_an_unknown_format_is_rejected_by_its_name(empty: Path) -> None:
    with pytest.raises(ArtifactError, match="unknown format 'tpu': this version of edgeline supports onnx, ort, openvino"):
        load_file("tpu", empty)


def test_onnx_files_are_loaded_by_onnx_runtime(empty: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot load the model"):
        load_file("onnx", empty)


OTHER_RUNTIMES = [format for format, found in BACKENDS.items() if found.open is not None]


@pytest.mark.parametrize("format", OTHER_RUNTIMES)
def test_every_other_runtime_has_an_extra_with_its_packages(format: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = project["optional-dependencies"][format]
    assert {requirement.partition(">=")[0] for requirement in extra} == set(backend(format).packages)


def test_every_variant_that_can_be_exported_has_a_backend() -> None:
    assert {name.partition("-")[0] for name in get_args(VariantName)} <= BACKENDS.keys()


@pytest.mark.parametrize("read", [backend, uses_onnxruntime, not_run_here, lambda format: files_of(format, "model")])
def test_an_unknown_format_is_an_error_everywhere(read: Callable[[str], object]) -> None:
    with pytest.raises(ArtifactError, match="unknown format 'tpu'") as rejection:
        read("tpu")
    assert rejection.value.code == "format_unknown"


def test_only_onnx_runtimes_formats_are_run_by_it() -> None:
    assert [format for format in BACKENDS if uses_onnxruntime(format)] == ["onnx", "ort"]
