"""Emulated x86 without VNNI: int8 products saturate unless weights have 7 bits or the exact setting is used."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeline.export.emulation.avx2 import prepare_machine
from edgeline.export.emulation.machine import Machine, check
from edgeline.export.quantization.static_int8 import Recipe, make_ready, measure_ranges, quantize, saturates
from edgeline.pipeline.data.samples import Sample, stream_pixels
from edgeline.serve.errors import EdgelineError
from edgeline.serve.preprocess import PreprocessSpec


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    try:
        return prepare_machine(tmp_path_factory.mktemp("cache") / "x86-avx2")
    except EdgelineError as error:
        if error.code != "x86_avx2_unavailable":
            raise
        pytest.skip(str(error))


def test_a_missing_emulator_is_named_with_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(
        EdgelineError, match=r"qemu-x86_64-static is not installed.*: apt-get install qemu-user-static$"
    ) as caught:
        prepare_machine(tmp_path / "x86-avx2")
    assert caught.value.code == "x86_avx2_unavailable"


def test_another_architecture_cannot_emulate_x86(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(EdgelineError, match="requires Linux on x86-64; this is Linux aarch64"):
        prepare_machine(tmp_path / "x86-avx2")


COMPARE = """
import json, sys
import numpy as np
from edgeline.serve.runtime.cpu import multiplies_exactly
from edgeline.serve.runtime.session import create_session

pixels_NHW3 = np.load(sys.argv[1])
found = {"multiplies_exactly": multiplies_exactly()}
for path in sys.argv[2:]:
    model = open(path, "rb").read()
    ways = [create_session(model, threads=1, saturates=way).run(["logits"], {"image": pixels_NHW3})[0] for way in (True, False)]
    found[path] = [logits_NK.tolist() for logits_NK in ways]
print(json.dumps(found))
"""


@pytest.mark.long
def test_seven_bit_weights_need_no_exact_setting_and_eight_bit_ones_do(
    machine: Machine, finished: Any, held_out: list[Sample], spec: PreprocessSpec, tmp_path: Path
) -> None:
    """The exact setting does not change a single bit of a model for which `saturates` is false, so devices omit it."""
    ready = make_ready(finished.model)
    pixels_NHW3 = next(stream_pixels(held_out, spec, 4))
    ranges = measure_ranges(ready, iter([pixels_NHW3]))
    seven = quantize(ready, ranges, Recipe(reduce_range=True, correct_bias=False))
    eight = quantize(ready, ranges, Recipe())
    assert (saturates(seven), saturates(eight)) == (False, True)
    np.save(tmp_path / "pixels.npy", pixels_NHW3[:2])
    paths = [tmp_path / "seven.onnx", tmp_path / "eight.onnx"]
    for path, model in zip(paths, (seven, eight), strict=True):
        path.write_bytes(model)
    root = Path(__file__).resolve().parents[3]
    done = machine.run(COMPARE, str(tmp_path / "pixels.npy"), *map(str, paths), path=[root], timeout_s=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["multiplies_exactly"] is False, "the reported features of the emulated processor are not used"
    (exact, fastest), (right, saturated) = (found[str(path)] for path in paths)
    assert fastest == exact
    assert np.abs(np.subtract(saturated, right)).max() > 0.05 * np.abs(right).max()


@pytest.mark.long
def test_a_published_int8_variant_passes_with_the_settings_of_the_device(machine: Machine, finished: Any) -> None:
    [entry] = check(finished.artifact, machine, variants=["onnx-int8"])
    assert (entry.passed, entry.exact_setting, entry.samples) == (True, True, 5)
    assert entry.max_logit_difference < entry.logit_tolerance
