"""`edgeline backbones` and `edgeline inspect`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.pipeline.config import PipelineConfig
from edgeline.pipeline.models.catalog import BACKBONES

Edgeline = Callable[..., tuple[int, str, str]]


def test_backbones_lists_every_name_with_its_licence_and_why_int8_pays_or_not(edgeline: Edgeline) -> None:
    code, out, _ = edgeline("backbones")
    assert code == 0
    for each in BACKBONES:
        assert f"\n{each.name} " in out
        assert each.why in out
    listed = json.loads(edgeline("backbones", "--json")[1])
    assert [entry["name"] for entry in listed] == [each.name for each in BACKBONES]
    assert listed[0].keys() == {"name", "parameters", "macs", "size", "licence", "weights", "int8", "why"}


def test_backbones_measures_a_network_that_is_not_listed(edgeline: Edgeline) -> None:
    code, out, _ = edgeline("backbones", "timm:test_efficientnet", "--json")
    assert code == 0
    [entry] = json.loads(out)
    assert (entry["parameters"], entry["size"], entry["licence"]) == (356_196, 160, "apache-2.0")


def test_inspect_shows_what_is_frozen_and_lists_the_layers(edgeline: Edgeline) -> None:
    code, out, _ = edgeline("inspect", "mobilenet_v2", "--unfreeze", "features.18", "--layers")
    assert code == 0
    assert "trainable: 414,722 (18.6%), frozen: 1,811,712" in out
    assert "features.18.0" in out


def test_inspect_names_the_nearest_stage_or_model(edgeline: Edgeline) -> None:
    assert "did you mean layer4.1?" in edgeline("inspect", "resnet18", "--unfreeze", "layer4.2")[2]
    assert "unknown model 'resnet81'" in edgeline("inspect", "resnet81")[2]


@pytest.fixture(scope="module")
def run_folder(finished: PipelineConfig) -> Path:
    [folder] = finished.runs.iterdir()
    return folder


def test_inspect_of_a_run_has_its_classes_and_freezes_what_its_strategy_freezes(edgeline: Edgeline, run_folder: Path) -> None:
    code, out, _ = edgeline("inspect", str(run_folder), "--json")
    assert code == 0
    report = json.loads(out)
    head = report["stages"][0]
    assert (report["strategy"], report["model"]) == ("head", "timm:test_efficientnet")
    assert head["layers"][0]["shape"][0] == 2
    assert report["trainable"] == head["parameters"] < report["parameters"]


def test_a_network_that_does_not_exist_is_reported_before_the_photos_are_read(
    edgeline: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, _, error = edgeline("prepare", "--data", "photos", "--model", "resnet51")
    assert code == 1
    assert "unknown model 'resnet51', perhaps resnet" in error
    _, _, error = edgeline("prepare", "--data", "photos", "--model", "timm:mobilenetv3_large")
    assert "timm has no model 'mobilenetv3_large', perhaps mobilenetv3_large_" in error
