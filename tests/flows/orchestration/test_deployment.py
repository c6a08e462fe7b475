import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.cli.deploy._models import (  # what it reads of a file; it drops the rest without a word
    ConcurrencyLimitSpec,
    DeploymentConfig,
    PrefectYamlModel,
    RawScheduleConfig,
    WorkPoolConfig,
)
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import ConcurrencyLimitStrategy
from prefect.exceptions import PrefectHTTPStatusError
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import BaseModel
from typer.testing import CliRunner

from edgeline.flows.cli.main import app
from edgeline.flows.orchestration.deployment import JOB, POOL, absolute, check_schedule, deploy
from edgeline.flows.orchestration.flow import edgeline
from edgeline.pipeline.config import PipelineConfig, parse_config
from edgeline.serve.errors import ConfigError, EdgelineError

ROOT = Path(__file__).parents[3]

SENSELESS = {
    "no cron": ("every night", "UTC", "cron 'every night' is no cron expression"),
    "nothing": ("", "UTC", "cron '' is no cron expression"),
    "too few fields": ("0 3 * *", "UTC", "cron '0 3 .*' is no cron expression"),
    "seconds": ("* * * * * *", "UTC", "is no cron expression"),
    "a nickname": ("@daily", "UTC", "is no cron expression"),
    "minute 61": ("61 * * * *", "UTC", "is no cron expression"),
    "a zone of nowhere": ("0 3 * * *", "Europe/Atlantis", "'Europe/Atlantis' is no time zone"),
    "an offset": ("0 3 * * *", "+01:00", "'\\+01:00' is no time zone"),
    "no zone": ("0 3 * * *", "", "'' is no time zone"),
    "both": ("x", "y", "cron 'x' .*; 'y' is no time zone"),
}


@pytest.mark.parametrize(("cron", "timezone", "message"), SENSELESS.values(), ids=SENSELESS)
def test_a_senseless_schedule_is_refused_before_anything_else(cron: str, timezone: str, message: str) -> None:
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(ConfigError, match=message):
        deploy(PipelineConfig(), cron=cron, timezone=timezone)


@pytest.mark.parametrize("cron", ["0 3 * * *", "*/5 0-6 1,15 * MON-FRI", "0 4 * * 1#2"])
def test_a_cron_expression_is_taken(cron: str) -> None:
    check_schedule(cron, "Europe/Prague")


def test_without_a_server_there_is_nothing_to_deploy_to() -> None:
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(ConfigError, match="PREFECT_API_URL=http"):
        deploy(PipelineConfig())


def test_paths_are_made_absolute_and_defaults_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = absolute(PipelineConfig(data="photos", weights="mine.pth", seed=3))
    expected = {"data": "photos", "weights": "mine.pth", "artifacts": "artifacts"}
    assert values == {key: str(tmp_path / value) for key, value in expected.items()} | {"seed": 3}


def test_names_that_are_no_paths_stay(tmp_path: Path) -> None:
    assert absolute(PipelineConfig(artifacts=str(tmp_path))) == {"data": "digits", "artifacts": str(tmp_path)}


@pytest.fixture
def client(prefect_api: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def command_line(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["deploy", *arguments], catch_exceptions=False)


def test_the_command_makes_the_pool_and_the_deployment(client: SyncPrefectClient, tmp_path: Path) -> None:
    said = command_line("--data", "digits", "--artifacts", str(tmp_path), "--set", "train.epochs=7", "--pool", "made")
    assert "prefect worker start --pool made" in said.stdout
    deployment = client.read_deployment_by_name("edgeline/scheduled")
    assert client.read_work_pool("made").type == "process"
    assert deployment.work_pool_name == "made"
    assert deployment.entrypoint == "edgeline.flows.orchestration.flow.edgeline"
    assert deployment.parameters == {"config": {"data": "digits", "artifacts": str(tmp_path), "train": {"epochs": 7}}}
    assert deployment.job_variables == JOB
    [schedule] = deployment.schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 3 * * *", "Europe/Prague")
    assert deployment.global_concurrency_limit is not None
    assert deployment.global_concurrency_limit.limit == 1
    assert deployment.concurrency_options is not None
    assert deployment.concurrency_options.collision_strategy == ConcurrencyLimitStrategy.CANCEL_NEW


def test_deploying_again_changes_it(client: SyncPrefectClient, tmp_path: Path) -> None:
    for cron in ("0 3 * * *", "30 4 * * MON"):
        said = command_line("--artifacts", str(tmp_path / cron[0]), "--deployment", "again", "--cron", cron, "--json")
    deployed = json.loads(said.stdout)
    deployment = client.read_deployment_by_name("edgeline/again")
    assert deployed["id"] == str(deployment.id)
    assert [schedule.schedule.cron for schedule in deployment.schedules] == ["30 4 * * MON"]
    assert deployment.parameters["config"]["artifacts"] == str(tmp_path / "3") == deployed["parameters"]["config"]["artifacts"]


NAMES = {"of a deployment": {"name": "a/b"}, "of a pool": {"pool": "prefect-none"}}


@pytest.mark.parametrize("arguments", NAMES.values(), ids=NAMES)
def test_a_name_that_prefect_refuses_is_told_in_one_line(prefect_api: str, arguments: dict[str, str]) -> None:
    with pytest.raises(EdgelineError, match="refuses the deployment") as failure:
        deploy(PipelineConfig(), **arguments)
    assert "\n" not in str(failure.value)
    assert failure.value.code == "deploy_failed"


PARAMETERS = {
    "a misspelt setting": {"train": {"epoch": 5}},
    "a value out of range": {"prepare": {"test_share": 2}},
    "a word that is none": {"train": {"strategy": "magic"}},
}


@pytest.mark.parametrize("config", PARAMETERS.values(), ids=PARAMETERS)
def test_the_api_refuses_parameters_that_the_configuration_would(
    client: SyncPrefectClient, tmp_path: Path, config: dict[str, Any]
) -> None:
    deployed = deploy(PipelineConfig(artifacts=str(tmp_path)), name="strict")
    with pytest.raises(PrefectHTTPStatusError, match="Validation failed"):
        client.create_flow_run_from_deployment(deployed.id, parameters={"config": config})


def test_the_form_describes_every_setting(client: SyncPrefectClient, tmp_path: Path) -> None:
    deployed = deploy(PipelineConfig(artifacts=str(tmp_path)), name="form")
    definitions = client.read_deployment(deployed.id).parameter_openapi_schema["definitions"]
    described = {name: field["description"] for name, field in definitions["TrainConfig"]["properties"].items()}
    assert described == {
        name: field.description for name, field in PipelineConfig.model_fields["train"].annotation.model_fields.items()
    }


def test_a_worker_refuses_artifacts_in_a_folder_that_it_will_remove(client: SyncPrefectClient, tmp_path: Path) -> None:
    deployed = deploy(PipelineConfig(artifacts=str(tmp_path)), name="relative")
    parameters = {"config": {"data": "digits"}}
    flow_run = client.create_flow_run_from_deployment(deployed.id, parameters=parameters)
    with pytest.raises(ConfigError, match="artifacts is 'artifacts'.*absolute path"):
        run_flow(edgeline, flow_run=flow_run, parameters=parameters)


def unknown_keys(values: Any, model: type[BaseModel]) -> set[str]:
    known = set(model.model_fields) | {field.alias for field in model.model_fields.values() if field.alias}
    return set(values) - known


def keys_that_prefect_drops(file: dict[str, Any]) -> set[str]:
    dropped = unknown_keys(file, PrefectYamlModel) - {"definitions"}  # anchors live there
    for deployment in file["deployments"]:
        dropped |= unknown_keys(deployment, DeploymentConfig)
        dropped |= unknown_keys(deployment["work_pool"], WorkPoolConfig)
        dropped |= unknown_keys(deployment["concurrency_limit"], ConcurrencyLimitSpec)
        for schedule in deployment["schedules"]:
            dropped |= unknown_keys(schedule, RawScheduleConfig)
    return dropped


def prefect_yaml() -> dict[str, Any]:
    file: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    return file


def test_prefect_yaml_holds_no_key_that_prefect_would_drop() -> None:
    assert keys_that_prefect_drops(prefect_yaml()) == set()


MISSPELT = ["enforce_paramter_schema", "cron", "concurency_limit"]


@pytest.mark.parametrize("key", MISSPELT)
def test_a_misspelt_key_would_be_found(key: str) -> None:
    file = prefect_yaml()
    file["deployments"][0][key] = True
    assert keys_that_prefect_drops(file) == {key}


@pytest.mark.parametrize("deployment", prefect_yaml()["deployments"], ids=lambda deployment: deployment["name"])
def test_a_deployment_of_prefect_yaml_makes_sense(deployment: dict[str, Any]) -> None:
    module, _, name = deployment["entrypoint"].rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), Flow)
    config = parse_config(deployment["parameters"]["config"])
    assert Path(config.artifacts).is_absolute()
    assert Path(config.data).is_absolute()
    assert deployment["enforce_parameter_schema"] is True
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    assert (deployment["work_pool"]["name"], deployment["work_pool"]["job_variables"]) == (POOL, JOB)
    for schedule in deployment["schedules"]:
        check_schedule(schedule["cron"], schedule["timezone"])
