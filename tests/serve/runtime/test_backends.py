import io
from pathlib import Path

import numpy as np
import pytest

from edgeline.serve.errors import ArtifactError, MissingExtraError
from edgeline.serve.runtime.backends import Model, files_of, load_file, receive, send


def test_an_array_comes_out_of_a_pipe_as_it_went_in() -> None:
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


def test_objects_are_not_taken_out_of_a_pipe() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    pipe = io.BytesIO(len(buffer.getvalue()).to_bytes(8, "little") + buffer.getvalue())
    with pytest.raises(ValueError, match="allow_pickle"):
        receive(pipe)


def test_a_model_answers_with_what_is_asked_for_in_that_order() -> None:
    model = Model(lambda pixels_NHW3: (np.full((1, 2), 0.5, np.float32), pixels_NHW3[:, 0, 0, :2].astype(np.float32)))
    image = np.full((1, 4, 4, 3), 7, np.uint8)
    logits_NK, probabilities_NK = model.run(["logits", "probabilities"], {"image": image})
    assert (logits_NK.tolist(), probabilities_NK.tolist()) == ([[7, 7]], [[0.5, 0.5]])


FILES = {
    "one file": ("onnx", "model.onnx", ("model.onnx",)),
    "OpenVINO's weights lie beside": ("openvino", "model.int8.xml", ("model.int8.xml", "model.int8.bin")),
}


@pytest.mark.parametrize(("format", "file", "expected"), FILES.values(), ids=FILES)
def test_the_files_of_a_variant_are_known_by_its_format(format: str, file: str, expected: tuple[str, ...]) -> None:
    assert files_of(format, file) == expected


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A model's files, with nothing in them."""
    (tmp_path / "model.xml").touch()
    (tmp_path / "model.bin").touch()
    return tmp_path / "model.xml"


def test_a_runtime_that_is_not_installed_is_named_with_its_extra(empty: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"'openvino': pip install 'edgeline\[openvino\]'"):
        load_file("openvino", empty)


def test_a_format_of_a_newer_edgeline_is_refused_by_its_name(empty: Path) -> None:
    with pytest.raises(ArtifactError, match="unknown format 'tpu': this version of edgeline supports onnx, ort, openvino"):
        load_file("tpu", empty)


def test_onnx_runtimes_own_formats_are_loaded_by_it(empty: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot load the model"):
        load_file("onnx", empty)
