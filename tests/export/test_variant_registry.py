"""A variant or format that is missing from one of its tables is found here."""

import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest

from edgeline.export.publishing.bundle import MODEL_FILES
from edgeline.export.tolerances import PRECISIONS
from edgeline.export.variant_registry import CONVERTERS, REFERENCE, VARIANTS, Check, VariantSpec
from edgeline.export.verification.variant_checks import BEFORE_RUNNING, CHECKS
from edgeline.pipeline.config import VariantName, VerifyConfig
from edgeline.serve.runtime import backends

ROOT = Path(__file__).resolve().parents[2]
SPECS = (REFERENCE, *VARIANTS.values())


def test_the_settings_offer_every_variant_and_no_other() -> None:
    assert set(get_args(VariantName)) == VARIANTS.keys()


def test_no_two_variants_share_a_name_or_a_file() -> None:
    assert len({spec.name for spec in SPECS}) == len({spec.file for spec in SPECS}) == len(SPECS)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_precision_has_thresholds_and_every_format_files(spec: VariantSpec) -> None:
    assert PRECISIONS[spec.precision].similarity(VerifyConfig()).min_sqnr_db > 0
    assert set(backends.files_of(spec.format, spec.file)) <= MODEL_FILES


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=lambda spec: spec.name)
def test_every_variant_is_compared_with_pytorch_at_every_batch_size(spec: VariantSpec) -> None:
    assert {"batch_sizes", "threads", "similarity", "distribution"} <= set(spec.checks)
    assert ("onnx_graph" in spec.checks) == (spec.format == "onnx")
    assert ("metadata" in spec.checks) == ("activation_maps" in spec.checks) == (spec.format in ("onnx", "ort"))


def test_every_check_has_a_function_and_is_used() -> None:
    assert CHECKS.keys() == set(get_args(Check))
    assert {name for spec in VARIANTS.values() for name in spec.checks} == CHECKS.keys()
    assert CHECKS.keys() >= BEFORE_RUNNING


def test_every_format_is_either_written_here_or_has_a_converter() -> None:
    formats = {spec.format for spec in SPECS}
    assert formats - {"onnx", "ort"} == CONVERTERS.keys()
    for converter in CONVERTERS.values():
        assert find_spec(converter.script) is not None


def test_every_format_of_another_runtime_has_an_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert CONVERTERS.keys() <= project["project"]["optional-dependencies"].keys()
