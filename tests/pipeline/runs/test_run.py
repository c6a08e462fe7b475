from pathlib import Path

import pytest

from edgeline.pipeline.config import PipelineConfig, load_config
from edgeline.pipeline.runs.run import create_run, open_run, stated_config, states
from edgeline.serve.errors import ConfigError, EdgelineError


@pytest.fixture(name="config")
def small_config(tmp_path: Path) -> PipelineConfig:
    return load_config(
        None, ["verify.max_difference=1e-7"], data="фото/⏚\x7f\t", name="flowers", artifacts=str(tmp_path / "artifacts")
    )


def test_a_run_is_identified_by_its_configuration_and_data(config: PipelineConfig) -> None:
    run = create_run(config, "fingerprint")
    assert run.folder.parent == config.runs
    assert run.folder.name.startswith("flowers-")
    assert create_run(config, "fingerprint") == run
    assert create_run(config, "another").folder != run.folder


def test_a_run_does_not_depend_on_the_location_of_data_and_artifacts(config: PipelineConfig, tmp_path: Path) -> None:
    elsewhere = config.model_copy(update={"data": "moved", "artifacts": str(tmp_path / "b")})
    assert create_run(elsewhere, "f").folder.name == create_run(config, "f").folder.name


@pytest.mark.parametrize("change", ["seed=1", "model=other", "train.epochs=3", "publish.golden=9", "name=other"])
def test_every_setting_makes_another_run(config: PipelineConfig, change: str) -> None:
    other = load_config(None, ["verify.max_difference=1e-7", change], data=config.data, artifacts=config.artifacts)
    other = other if change.startswith("name") else other.model_copy(update={"name": "flowers"})
    assert create_run(other, "f").folder != create_run(config, "f").folder


def test_an_opened_run_has_the_same_configuration(config: PipelineConfig) -> None:
    run = create_run(config, "fingerprint")
    assert open_run(run.folder) == run


def test_a_folder_that_is_not_a_run_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run folder: expected the one that"):
        open_run(tmp_path)


def test_an_artifacts_folder_that_cannot_be_written_is_named(config: PipelineConfig) -> None:
    Path(config.artifacts).touch()
    with pytest.raises(EdgelineError, match="cannot be written: Not a directory") as caught:
        create_run(config, "f")
    assert caught.value.code == "run_unwritable"


def test_a_version_of_an_earlier_edgeline_states_every_setting_that_it_knew() -> None:
    config = PipelineConfig(seed=3)
    stated = stated_config(config)
    assert states(stated, config)
    del stated["prepare"]["keep_splits"], stated["evaluate"]
    assert states(stated, config)
    assert not states(stated | {"seed": 4}, config)
    assert not states(stated | {"renamed": 1}, config)
    assert states(stated, PipelineConfig(seed=3, data="elsewhere", artifacts="there"))
