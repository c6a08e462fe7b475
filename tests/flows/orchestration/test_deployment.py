import importlib
import json
from collections.abc import Iterator
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.cli.deploy._models import (  # the keys it reads of a file; it silently drops all others
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
from edgeline.flows.cli.operations.deploy import deploy_pipeline
from edgeline.flows.orchestration.deployment import JOB, DeploymentOptions, absolute_parameters, check_schedule, deploy
from edgeline.flows.orchestration.flow import edgeline
from edgeline.pipeline.config import PipelineConfig, parse_config
from edgeline.serve.errors import ConfigError, EdgelineError
from tests.support.cases import cases

ROOT = Path(__file__).parents[3]

INVALID = {
    "words": ("every night", "UTC", "cron 'every night' is not a cron expression"),
    "an empty cron": ("", "UTC", "cron '' is not a cron expression"),
    "too few fields": ("0 3 * *", "UTC", "cron '0 3 .*' is not a cron expression"),
    "seconds": ("* * * * * *", "UTC", "is not a cron expression"),
    "a nickname": ("@daily", "UTC", "is not a cron expression"),
    "minute 61": ("61 * * * *", "UTC", "is not a cron expression"),
    "an unknown zone": ("0 3 * * *", "Europe/Atlantis", "'Europe/Atlantis' is not a time zone"),
    "an offset": ("0 3 * * *", "+01:00", "'\\+01:00' is not a time zone"),
    "an empty zone": ("0 3 * * *", "", "'' is not a time zone"),
    "both": ("x", "y", "cron 'x' .*; 'y' is not a time zone"),
}


@pytest.mark.parametrize(("cron", "timezone", "message"), INVALID.values(), ids=INVALID)
def test_an_invalid_schedule_is_rejected_before_the_server_is_contacted(cron: str, timezone: str, message: str) -> None:
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(ConfigError, match=message):
        deploy(PipelineConfig(), DeploymentOptions(cron=cron, timezone=timezone))


@pytest.mark.parametrize("cron", ["0 3 * * *", "*/5 0-6 1,15 * MON-FRI", "0 4 * * 1#2"])
def test_cron_expressions_with_five_fields_are_accepted(cron: str) -> None:
    check_schedule(cron, "Europe/Prague")


def test_deploying_without_a_configured_server_fails() -> None:
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(ConfigError, match="PREFECT_API_URL=http"):
        deploy(PipelineConfig())


def test_parameters_have_absolute_paths_and_no_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = absolute_parameters(PipelineConfig(data="photos", weights="mine.pth", seed=3))
    expected = {"data": "photos", "weights": "mine.pth", "artifacts": "artifacts"}
    assert values == {key: str(tmp_path / value) for key, value in expected.items()} | {"seed": 3}


def test_the_embedded_data_keep_their_name_in_the_parameters(tmp_path: Path) -> None:
    assert absolute_parameters(PipelineConfig(artifacts=str(tmp_path))) == {"data": "digits", "artifacts": str(tmp_path)}


@pytest.fixture
def client(prefect_api: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def command_line(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["deploy", *arguments], catch_exceptions=False)


def test_the_command_creates_the_pool_and_the_deployment(client: SyncPrefectClient, tmp_path: Path) -> None:
    result = command_line("--data", "digits", "--artifacts", str(tmp_path), "--set", "train.epochs=7", "--pool", "made")
    assert "prefect worker start --pool made" in result.stdout
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


def test_deploying_again_updates_the_deployment(client: SyncPrefectClient, tmp_path: Path) -> None:
    for cron in ("0 3 * * *", "30 4 * * MON"):
        result = command_line("--artifacts", str(tmp_path / cron[0]), "--deployment", "again", "--cron", cron, "--json")
    deployed = json.loads(result.stdout)
    deployment = client.read_deployment_by_name("edgeline/again")
    assert deployed["id"] == str(deployment.id)
    assert [schedule.schedule.cron for schedule in deployment.schedules] == ["30 4 * * MON"]
    assert deployment.parameters["config"]["artifacts"] == str(tmp_path / "3") == deployed["parameters"]["config"]["artifacts"]


OPTIONS = {
    "name": ("--deployment", "nightly"),
    "cron": ("--cron", "5 4 * * *"),
    "timezone": ("--timezone", "UTC"),
    "pool": ("--pool", "others"),
    "retrain": ("--retrain",),
}
"""The command's option for each field of `DeploymentOptions`, with a value other than the default."""


def test_every_field_of_the_deployment_options_is_an_option_of_the_command(client: SyncPrefectClient, tmp_path: Path) -> None:
    assert OPTIONS.keys() == {field.name for field in fields(DeploymentOptions)}
    given = [word for option in OPTIONS.values() for word in option]
    assert command_line("--artifacts", str(tmp_path), *given).exit_code == 0
    deployment = client.read_deployment_by_name("edgeline-retrain/nightly")
    [schedule] = deployment.schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("5 4 * * *", "UTC")
    assert deployment.work_pool_name == "others"


def test_every_option_of_the_command_is_a_setting_or_a_field_of_the_deployment_options() -> None:
    shared = {"data", "config", "name", "artifacts", "overrides", "as_json"}
    own = {option.removeprefix("--") for option, *_ in OPTIONS.values()}
    assert signature(deploy_pipeline).parameters.keys() == shared | own


NAMES = {"of a deployment": {"name": "a/b"}, "of a pool": {"pool": "prefect-none"}}


@pytest.mark.parametrize("arguments", NAMES.values(), ids=NAMES)
def test_a_name_that_prefect_rejects_is_reported_in_one_line(prefect_api: str, arguments: dict[str, str]) -> None:
    with pytest.raises(EdgelineError, match="rejects the deployment") as failure:
        deploy(PipelineConfig(), DeploymentOptions(**arguments))
    assert "\n" not in str(failure.value)
    assert failure.value.code == "deploy_failed"


def test_a_deployment_can_decide_about_its_versions(client: SyncPrefectClient, tmp_path: Path) -> None:
    deployed = deploy(PipelineConfig(artifacts=str(tmp_path)), DeploymentOptions(name="deciding", retrain=True))
    assert deployed.deployment == "edgeline-retrain/deciding"
    found = client.read_deployment(deployed.id)
    assert found.entrypoint == "edgeline.flows.orchestration.flow.retrain"
    assert found.parameter_openapi_schema["properties"].keys() == {"config", "accepted"}


PARAMETERS = {
    "a misspelled setting": {"train": {"epoch": 5}},
    "a value out of range": {"prepare": {"test_share": 2}},
    "an unknown strategy": {"train": {"strategy": "magic"}},
}


@pytest.mark.parametrize("config", cases(PARAMETERS, quick=["a misspelled setting"]))
def test_the_api_rejects_parameters_that_the_configuration_rejects(
    client: SyncPrefectClient, tmp_path: Path, config: dict[str, Any]
) -> None:
    deployed = deploy(PipelineConfig(artifacts=str(tmp_path)), DeploymentOptions(name="strict"))
    with pytest.raises(PrefectHTTPStatusError, match="Validation failed"):
        client.create_flow_run_from_deployment(deployed.id, parameters={"config": config})


def test_the_form_describes_every_setting(client: SyncPrefectClient, tmp_path: Path) -> None:
    deployed = deploy(PipelineConfig(artifacts=str(tmp_path)), DeploymentOptions(name="form"))
    definitions = client.read_deployment(deployed.id).parameter_openapi_schema["definitions"]
    described = {name: field["description"] for name, field in definitions["TrainConfig"]["properties"].items()}
    assert described == {
        name: field.description for name, field in PipelineConfig.model_fields["train"].annotation.model_fields.items()
    }


def test_a_worker_rejects_a_relative_artifacts_folder(client: SyncPrefectClient, tmp_path: Path) -> None:
    deployed = deploy(PipelineConfig(artifacts=str(tmp_path)), DeploymentOptions(name="relative"))
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


def test_prefect_yaml_has_no_key_that_prefect_would_drop() -> None:
    assert keys_that_prefect_drops(prefect_yaml()) == set()


MISSPELLED = ["enforce_paramter_schema", "cron", "concurency_limit"]


@pytest.mark.parametrize("key", MISSPELLED)
def test_a_misspelled_key_would_be_found(key: str) -> None:
    file = prefect_yaml()
    file["deployments"][0][key] = True
    assert keys_that_prefect_drops(file) == {key}


@pytest.mark.parametrize("deployment", prefect_yaml()["deployments"], ids=lambda deployment: deployment["name"])
def test_each_deployment_of_prefect_yaml_is_valid(deployment: dict[str, Any]) -> None:
    module, _, name = deployment["entrypoint"].rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), Flow)
    config = parse_config(deployment["parameters"]["config"])
    assert Path(config.artifacts).is_absolute()
    assert Path(config.data).is_absolute()
    assert deployment["enforce_parameter_schema"] is True
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    assert (deployment["work_pool"]["name"], deployment["work_pool"]["job_variables"]) == (DeploymentOptions().pool, JOB)
    for schedule in deployment["schedules"]:
        check_schedule(schedule["cron"], schedule["timezone"])
