import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeline.export.converters import environments
from edgeline.export.converters.convert import convert
from edgeline.export.converters.environments import environment, expose_device_package, opened
from edgeline.serve.errors import ArtifactError, ExportError
from edgeline.serve.runtime.session import create_session


def test_a_failed_installation_names_the_packages_and_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(environments.PACKAGES, "openvino", ("edgeline-has-no-such-package==1.0",))
    with pytest.raises(
        ExportError, match=r"tools for openvino cannot be installed here \(.+\); they are edgeline-has"
    ) as error:
        environment("openvino", tmp_path)
    assert error.value.code == "format_unavailable"
    assert list(tmp_path.iterdir()) == []


def test_an_existing_environment_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "install", lambda *_: None)
    python = environment("openvino", tmp_path)
    monkeypatch.setattr(environments, "install", lambda *_: pytest.fail("made again"))
    assert environment("openvino", tmp_path) == python


def test_only_serve_is_exposed_to_an_environment() -> None:
    with expose_device_package() as variables:
        [package] = Path(variables["PYTHONPATH"]).iterdir()
        assert package.name == "edgeline"
        assert {path.name for path in package.iterdir()} == {"__init__.py", "serve"}


@pytest.fixture
def own_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treats ONNX Runtime as another runtime, in the environment of this Python."""
    monkeypatch.setitem(environments.PACKAGES, "onnx", ())
    monkeypatch.setattr(environments, "environment", lambda *_: Path(sys.executable))


@pytest.mark.usefixtures("own_python")
def test_a_model_in_another_process_gives_the_same_outputs(finished: Any, tmp_path: Path) -> None:
    path = finished.run.step("export") / "model.onnx"
    shape = create_session(finished.model).get_inputs()[0].shape[1:]
    pixels_NHW3 = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    names = ["logits", "probabilities"]
    expected = create_session(finished.model, threads=1).run(names, {"image": pixels_NHW3})
    with opened("onnx", path, tmp_path, threads=1) as model:
        for _ in range(2):
            for mine, theirs in zip(model.run(names, {"image": pixels_NHW3}), expected, strict=True):
                assert np.array_equal(mine, theirs)


@pytest.mark.usefixtures("own_python")
def test_a_model_that_fails_to_load_in_another_process_reports_the_reason(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with (
        opened("onnx", tmp_path / "model.onnx", tmp_path) as model,
        pytest.raises(ArtifactError, match="cannot load the model"),
    ):
        model.run(["logits"], {"image": np.zeros((1, 8, 8, 3), np.uint8)})


def test_a_failed_conversion_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeline.export.converters.convert.environment", lambda *_: Path(sys.executable))
    sources = {"model.onnx": lambda path: path.write_bytes(b"no model")}
    with pytest.raises(ExportError, match=r"openvino==\S+ cannot convert this network: .*; leave the format out") as error:
        convert("openvino", "float32", sources, tmp_path / "model.xml", tmp_path)
    assert error.value.code == "format_unfit"
    assert "\n" not in str(error.value)
