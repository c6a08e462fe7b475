"""What people do with published versions, as flows: the same as the commands, with a form in the UI."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow
from prefect.client.orchestration import get_client

from edgeline.flows.orchestration import flow, monitoring, store
from edgeline.flows.orchestration.store import compare, promote, prune, rollback
from edgeline.pipeline.config import PipelineConfig
from edgeline.serve.artifact.channels import read_channels
from edgeline.serve.artifact.reader import versions
from edgeline.serve.errors import ArtifactError, ConfigError, EdgelineError

FLOWS = {
    "edgeline": flow.edgeline,
    "edgeline-retrain": flow.retrain,
    "edgeline-monitor": monitoring.monitor,
    "edgeline-compare": store.compare,
    "edgeline-promote": store.promote,
    "edgeline-rollback": store.rollback,
    "edgeline-prune": store.prune,
}


def table(key: str) -> Any:
    with get_client(sync_client=True) as client:
        [artifact] = [each for each in client.read_artifacts() if each.key == key][:1]
    return artifact


@pytest.mark.parametrize("name", FLOWS)
def test_every_parameter_of_a_flow_is_typed_and_described_in_its_form(name: str) -> None:
    tested: Flow[Any, Any] = FLOWS[name]
    assert tested.name == name
    properties = tested.parameters.properties
    assert properties
    assert [key for key, field in properties.items() if not field.get("description")] == []
    assert [key for key, field in properties.items() if not {"type", "$ref", "anyOf", "allOf"} & field.keys()] == []


@pytest.mark.slow
def test_promoting_and_rolling_back_move_the_channel_and_say_why(
    prefect_api: str, make_artifact: Callable[..., Path], tmp_path: Path
) -> None:
    for version in (1, 2):
        make_artifact(store=tmp_path / "store", version=version)
    folder = tmp_path / "store" / "colors"
    promote("colors", 1, artifacts=tmp_path)
    assert promote("colors", 2, why="the new camera", artifacts=tmp_path).before == 1
    assert rollback("colors", why="misses red", artifacts=tmp_path).version == 1
    channels = read_channels(folder)
    assert channels.pointers == {"stable": 1}
    assert [event.why for event in channels.history] == ["by hand, in Prefect", "the new camera", "misses red"]
    for wrong, reason in (("colors", "has no version 9"), ("colours", "has no artifact 'colours'; published: colors")):
        with pytest.raises(EdgelineError, match=reason):
            promote(wrong, 9, artifacts=tmp_path)
    assert read_channels(folder) == channels


@pytest.mark.slow
def test_pruning_removes_nothing_unless_asked_to(prefect_api: str, make_artifact: Callable[..., Path], tmp_path: Path) -> None:
    for version in (1, 2, 3):
        make_artifact(store=tmp_path / "store", version=version)
    folder = tmp_path / "store" / "colors"
    assert prune(tmp_path, keep=1) == []
    assert versions(folder) == [1, 2, 3]
    planned = table("edgeline-prune")
    assert [row["removed"] for row in json.loads(planned.data)] == ["no", "no"]
    assert planned.description.endswith("nothing was removed, because `remove` is off")
    assert prune(tmp_path, keep=1, remove=True) == [folder / "1", folder / "2"]
    assert versions(folder) == [3]
    with pytest.raises(ConfigError, match="does not exist"):
        prune(tmp_path / "elsewhere")


@pytest.mark.slow
def test_comparing_decides_and_changes_nothing(prefect_api: str, finished: PipelineConfig, tmp_path: Path) -> None:
    shutil.copytree(finished.artifacts, tmp_path, dirs_exist_ok=True)
    decision = compare("tints", 1, artifacts=tmp_path)
    assert decision.variants[0].images > 0
    assert (decision.variants[0].lost, decision.variants[0].gained) == (0, 0)
    assert read_channels(tmp_path / "store" / "tints").history == ()
    compared = table("edgeline-tints-comparison")
    assert compared.description == f"Version 1 may {'' if decision.promoted else 'not '}replace stable: {decision.reason}"
    for wrong in ({"version": 7}, {"version": 1, "against": "7"}, {"version": 1, "against": "beta"}):
        with pytest.raises(ArtifactError, match=r"has no version 7; published: 1|no channel 'beta'"):
            compare("tints", artifacts=tmp_path, **wrong)
