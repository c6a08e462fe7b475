"""Session options, and no telemetry."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeline.serve.errors import ArtifactError
from edgeline.serve.runtime import session as runtime
from edgeline.serve.runtime.session import (
    DEFAULTS,
    EXACT,
    SETTINGS,
    SessionOptions,
    create_session,
    load_onnxruntime,
    session_options,
    session_settings,
)

ROOT = Path(__file__).resolve().parents[3]


def test_a_session_keeps_no_second_copy_of_its_file(artifact_template: Path) -> None:
    model = (artifact_template / "model.onnx").read_bytes()
    before = sys.getrefcount(model)
    session = create_session(model, threads=1)
    assert (sys.getrefcount(model), len(session.get_inputs())) == (before, 1)


def test_a_session_has_the_default_settings(artifact_template: Path) -> None:
    options = create_session((artifact_template / "model.onnx").read_bytes(), threads=3).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert SETTINGS["session.intra_op.allow_spinning"] == "0"
    assert {key: options.get_session_config_entry(key) for key in SETTINGS} == SETTINGS


def test_on_a_cpu_that_saturates_the_exact_setting_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "multiplies_exactly", lambda: False)
    assert session_settings() == SETTINGS | EXACT
    assert session_options().get_session_config_entry("session.x64quantprecision") == "1"
    assert session_settings(saturates=False) == SETTINGS, "the exact setting would only cost time"
    monkeypatch.setattr(runtime, "multiplies_exactly", lambda: True)
    assert session_settings() == SETTINGS


CHOSEN = {"threads": 3, "level": "basic", "saturates": False}
"""For each option a value other than its default."""


def as_applied(**options: Any) -> dict[str, Any]:
    """What ONNX Runtime is given: its attributes, and the configuration entries that are set."""
    made = session_options(**options)
    attributes = {name: getattr(made, name) for name in dir(made) if not name.startswith("_")}
    applied = {name: value for name, value in attributes.items() if not callable(value)}
    for key in SETTINGS | EXACT:
        with contextlib.suppress(RuntimeError):  # raised for an entry that is not set
            applied[key] = made.get_session_config_entry(key)
    return applied


def test_every_session_option_has_a_default() -> None:
    assert CHOSEN.keys() == DEFAULTS.keys() == SessionOptions.__annotations__.keys()


@pytest.mark.parametrize("option", CHOSEN)
def test_every_session_option_is_applied(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "multiplies_exactly", lambda: False)
    assert CHOSEN[option] != DEFAULTS[option]  # type: ignore[literal-required]
    assert as_applied(**{option: CHOSEN[option]}) != as_applied()


def test_the_optimization_level_can_be_chosen() -> None:
    levels = load_onnxruntime().GraphOptimizationLevel
    assert session_options().graph_optimization_level == levels.ORT_ENABLE_ALL
    assert session_options(level="extended").graph_optimization_level == levels.ORT_ENABLE_EXTENDED
    assert session_options(level="disable_all").graph_optimization_level == levels.ORT_DISABLE_ALL


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x09" * 40], ids=["empty", "text", "half a protobuf"])
def test_bytes_that_are_not_a_model_are_rejected_with_one_line(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="cannot load the model") as rejection:
        create_session(data)
    assert rejection.value.code == "model_unloadable"
    assert "\n" not in str(rejection.value)


def test_a_model_of_a_newer_operator_set_is_rejected_with_the_runtimes_version(artifact_template: Path) -> None:
    """A19."""
    import onnx

    model = onnx.load(artifact_template / "model.onnx")
    model.opset_import[0].version = 99
    with pytest.raises(ArtifactError, match=r"ONNX Runtime \d+\.\d+\.\d+ cannot load the model: .*opset") as rejection:
        create_session(model.SerializeToString(), threads=1)
    assert "\n" not in str(rejection.value)


@pytest.mark.parametrize("location", ["weights.bin", "../models/weights.bin", "{folder}/weights.bin"])
def test_weights_in_another_file_are_not_read(
    artifact_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    """A15: not even from the working directory, which a path relative to no model file would begin at."""
    import onnx

    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.chdir(folder)
    model = onnx.load(artifact_template / "model.onnx")
    weights = model.graph.initializer[1]
    Path("weights.bin").write_bytes(weights.raw_data)
    onnx.external_data_helper.set_external_data(weights, location.format(folder=folder), 0, len(weights.raw_data))
    weights.ClearField("raw_data")
    with pytest.raises(ArtifactError, match="cannot load the model: .*[Ee]xternal data"):
        create_session(model.SerializeToString(), threads=1)


PREDICT = """
import json, os, sys
connected = []
sys.addaudithook(lambda event, args: connected.append(str(args)) if event.startswith("socket.") else None)
from pathlib import Path
from edgeline.serve.classifier import Classifier
folder = Path(sys.argv[1])
classifier = Classifier.open(folder)
[[best]] = classifier.predict([(folder / "golden/0.jpg").read_bytes()], 1)
held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
sockets = [target for target in held if target.startswith("socket:")]
print(json.dumps({"label": best.label, "connected": connected, "sockets": sockets}))
"""


def test_predicting_opens_no_socket_and_writes_no_file(make_artifact: Callable[..., Path], tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "TMPDIR": str(home), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", PREDICT, str(make_artifact())]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    assert json.loads(ended.stdout) == {"label": "red", "connected": [], "sockets": []}
    assert [str(path) for path in home.rglob("*")] == []
