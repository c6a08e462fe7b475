"""ExecuTorch: its converter and its runtime, both in a separate environment."""

import importlib.util
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeline.export.converters.convert import convert
from edgeline.export.converters.environments import environment, expose_device_package, opened
from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.variant_registry import VARIANTS
from edgeline.export.variants import build_variants
from edgeline.export.variants_report import VariantsReport
from edgeline.export.verification.context import VerificationContext
from edgeline.export.verification.variants import verify_variants
from edgeline.pipeline.data.samples import Sample
from edgeline.pipeline.runs.run import Run
from edgeline.serve.errors import ExportError, MissingExtraError
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.backends import files_of, load_file

NAMES = ("executorch-fp32", "executorch-int8")
ENVIRONMENTS = Path(__file__).resolve().parents[3] / "artifacts" / "cache" / "environments"
needs_executorch = pytest.mark.skipif(
    "executorch" not in os.environ.get("EDGELINE_TEST_FORMATS", ""),
    reason="installs 6 GB of ExecuTorch and PyTorch; EDGELINE_TEST_FORMATS=executorch runs it",
)


@pytest.mark.skipif(importlib.util.find_spec("executorch") is not None, reason="ExecuTorch is installed here")
def test_a_missing_runtime_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "model.pte").touch()
    with pytest.raises(MissingExtraError, match=r"'executorch': pip install 'edgeline\[executorch\]'"):
        load_file("executorch", tmp_path / "model.pte")


def test_a_program_is_one_file() -> None:
    assert files_of("executorch", "model.int8.pte") == ("model.int8.pte",)


def test_float32_needs_no_calibration_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []
    sources = {name: lambda _, name=name: requested.append(name) for name in ("program.pt2", "calibration.npy")}
    monkeypatch.setattr("edgeline.export.converters.convert.environment", lambda *_: Path("/bin/true"))
    convert("executorch", "float32", sources, tmp_path / "model.pte", tmp_path)
    assert requested == ["program.pt2"]
    convert("executorch", "int8", sources, tmp_path / "model.int8.pte", tmp_path)
    assert requested[1:] == ["program.pt2", "calibration.npy"]


@pytest.fixture(name="made", scope="module")
def both_variants(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both programs of the finished run."""
    folder = tmp_path_factory.mktemp("executorch")
    export = finished.config.export.model_copy(update={"variants": NAMES, "require_variants": True})
    config = finished.config.model_copy(update={"export": export})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(config), "environments", ENVIRONMENTS)
        build_variants(Run(finished.run.folder, config), folder)
    return folder


@needs_executorch
@pytest.mark.slow
def test_both_precisions_agree_with_pytorch(
    made: Path, finished: Any, deployed: CalibratedModel, spec: PreprocessSpec, held_out: list[Sample]
) -> None:
    context = VerificationContext(
        deployed=deployed,
        model=finished.model,
        spec=spec,
        samples=held_out,
        config=finished.config.verify,
        environments=ENVIRONMENTS,
    )
    entries = VariantsReport.read(made / "variants.json").variants
    whole, int8 = (result.to_dict() for result in verify_variants(entries, made, context))
    assert (whole["passed"], whole["problems"]) == (True, [])
    assert whole["similarity"]["sqnr_db"] > 100
    assert whole["latency"]["threads_1"]["runs"] == 50
    # Most of these few images are stress images, flat colors and noise, on which int8 may miss some of its thresholds.
    assert int8["similarity"]["sqnr_db"] > 12
    assert not [problem for problem in int8["problems"] if "different outputs" in problem]
    assert (made / "model.int8.pte").stat().st_size < 0.3 * (made / "model.pte").stat().st_size


SHARED = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from pathlib import Path
from edgeline.serve.runtime.backends import load_file

path, threads = Path(sys.argv[1]), 1
model = load_file("executorch", path, threads=threads)
images = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), np.uint8)
whole = model.run(["logits"], {"image": images})[0]
with ThreadPoolExecutor(4) as pool:
    rows = list(pool.map(lambda i: model.run(["logits"], {"image": images[i : i + 1]})[0], range(8)))
assert np.array_equal(whole, np.concatenate(rows)), np.abs(whole - np.concatenate(rows)).max()
from executorch.extension.pybindings.portable_lib import _threadpool_get_thread_count
assert _threadpool_get_thread_count() == threads
"""


@needs_executorch
@pytest.mark.slow
def test_a_program_is_thread_safe_and_uses_the_configured_number_of_threads(made: Path) -> None:
    python = environment("executorch", ENVIRONMENTS)
    with expose_device_package() as variables:
        command = [str(python), "-P", "-c", SHARED, str(made / VARIANTS["executorch-int8"].file)]
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_executorch
@pytest.mark.slow
def test_a_truncated_program_is_rejected_in_one_line(made: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pte").write_bytes((made / "model.pte").read_bytes()[:5000])
    with (
        pytest.raises(Exception, match=r"executorch cannot load model\.pte") as caught,
        opened("executorch", tmp_path / "model.pte", ENVIRONMENTS) as model,
    ):
        model.run(["logits"], {"image": np.zeros((1, 224, 224, 3), np.uint8)})
    assert "\n" not in str(caught.value)


@needs_executorch
@pytest.mark.slow
def test_an_unreadable_source_is_reported_as_an_error_of_the_converter(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.write_bytes(b"not a program")

    with pytest.raises(ExportError, match=r"executorch==1.5.1 cannot convert this network"):
        convert("executorch", "float32", {"program.pt2": write}, tmp_path / "model.pte", ENVIRONMENTS)
