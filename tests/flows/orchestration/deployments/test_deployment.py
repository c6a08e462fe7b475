import importlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import yaml
from prefect import Flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.cli.deploy._models import (  # the keys it reads of a file; it silently drops all others
    ConcurrencyLimitSpec,
    DeploymentConfig,
    PrefectYamlModel,
    RawScheduleConfig,
    WorkPoolConfig,
)
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import ConcurrencyLimitStrategy
from prefect.exceptions import PrefectHTTPStatusError
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.schema_tools import validate
from pydantic import BaseModel
from typer.testing import CliRunner

from edgeline.flows.cli.main import app
from edgeline.flows.cli.operations.deploy import deploy_pipeline
from edgeline.flows.orchestration.deployments import deployment as deployment_module
from edgeline.flows.orchestration.deployments.deployment import (
    JOB,
    DeploymentOptions,
    absolute_parameters,
    check_schedule,
    deploy,
)
from edgeline.flows.orchestration.flow import edgeline
from edgeline.pipeline.config import PipelineConfig, parse_config
from edgeline.serve.errors import ConfigError, EdgelineError
from tests.support.cases import cases

ROOT = Path(__file__).parents[4]

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
    assert result.stderr == (
        "warning: no worker of the work pool 'made' is online, so runs wait; start one: prefect worker start --pool made\n"
    )
    deployment = client.read_deployment_by_name("edgeline/digits")
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


@pytest.fixture(scope="module")
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL of a web hook, and what was sent to it."""
    received: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hook(prefect_api: str, receiver: tuple[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What the block `custom-webhook/people` has sent."""
    block = CustomWebhookNotificationBlock(
        name="people", url=receiver[0], json_data={"subject": "{{subject}}", "body": "{{body}}"}, allow_private_urls=True
    )
    block.save("people", overwrite=True)
    return receiver[1]


def event(name: str, resource: str, **payload: Any) -> dict[str, Any]:
    return {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": name,
        "resource": {"prefect.resource.id": resource, "prefect.resource.name": resource.rpartition(".")[2]},
        "payload": payload,
    }


LOOP = {
    "edgeline-retrain": "0 3 * * *",
    "edgeline-prune": "0 5 * * *",
    "edgeline-monitor": "0 6 * * *",
    **dict.fromkeys(("edgeline-compare", "edgeline-promote", "edgeline-rollback"), ""),
}


@pytest.mark.long
def test_drift_starts_a_retraining_and_people_are_told_and_deploying_again_adds_nothing(
    client: SyncPrefectClient, hook: list[dict[str, Any]], tmp_path: Path, wait_for: Callable[..., Any]
) -> None:
    arguments = (
        "--artifacts",
        str(tmp_path),
        "--name",
        "birds",
        "--pool",
        "loop",
        "--retrain",
        "--inbox",
        str(tmp_path / "in"),
    )
    arguments += ("--monitor", "http://127.0.0.1:1/drift", "--notify", "custom-webhook/people", "--json")
    client.create_work_pool(WorkPoolCreate(name="loop", type="process"))
    client.send_worker_heartbeat("loop", "here", heartbeat_interval_seconds=600)
    deployed = [json.loads(command_line(*arguments).stdout) for _ in range(2)]
    assert deployed[0] == deployed[1]
    assert deployed[0]["workers"] == 1
    assert deployed[0]["others"] | {"edgeline-retrain/birds": "0 3 * * *"} == {
        f"{key}/birds": cron for key, cron in LOOP.items()
    }
    mine = [each for each in client.read_deployments() if each.name == "birds"]
    assert len(mine) == len(LOOP)
    assert {each.version for each in mine} == {version("edgeline")}
    assert all(each.tags == ["edgeline", "birds"] and each.enforce_parameter_schema for each in mine)
    assert {cron for each in mine for cron in (schedule.schedule.cron for schedule in each.schedules)} == set(LOOP.values()) - {
        ""
    }
    automations = [each for each in client.read_automations() if "birds" in each.name]
    assert sorted(each.name for each in automations) == sorted(deployed[0]["automations"])
    [retraining] = [each for each in automations if each.name.endswith("retrain after drift")]

    of_model, of_automation = "edgeline.model.birds", f"prefect.automation.{retraining.id}"
    client.request(
        "POST",
        "/events",
        json=[
            event("edgeline.model.drifted", of_model, drifted=["brightness", "contrast"], message="it is dark"),
            event("edgeline.model.rejected", of_model, message="worse: version 2"),
            event("prefect.automation.action.failed", of_automation, reason="no such deployment"),
            event("edgeline.model.drifted", "edgeline.model.cats", drifted=["width"], message="other cats"),
        ],
    )

    def started() -> list[Any]:
        of_deployment = DeploymentFilter(id=DeploymentFilterId(any_=[UUID(deployed[0]["id"])]))
        runs = client.read_flow_runs(deployment_filter=of_deployment)
        return [run for run in runs if not run.auto_scheduled]

    [run] = wait_for(started)
    assert run.parameters["drifted"] == ["brightness", "contrast"]
    assert run.parameters["inbox"] == str(tmp_path / "in")
    assert run.parameters["config"]["name"] == "birds"
    wait_for(lambda: len(hook) >= 3)
    assert {message["body"] for message in hook} == {"it is dark", "worse: version 2", "no such deployment"}
    assert {message["subject"] for message in hook} == {
        f"birds: {name}" for name in ("edgeline.model.drifted", "edgeline.model.rejected", "prefect.automation.action.failed")
    }


WRONG = {
    "no such block": (("--retrain", "--notify", "slack-webhook/nobody"), "has no block 'slack-webhook/nobody'"),
    "no type": (("--retrain", "--notify", "nobody"), "expected the type and name of a block"),
    "not about a plain pipeline": (("--monitor", "x.json"), "add --retrain"),
}


@pytest.mark.parametrize(("arguments", "reason"), WRONG.values(), ids=WRONG)
def test_wrong_options_of_the_loop_are_reported_and_nothing_is_created(
    client: SyncPrefectClient, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        command_line("--artifacts", str(tmp_path), "--name", "wrong", "--pool", "wrong", *arguments)
    assert not [each for each in client.read_work_pools() if each.name == "wrong"]


def test_a_worker_with_another_version_of_edgeline_fails_with_both_versions(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(deployment_module, "version", lambda _: "9.0")
        deployed = deploy(PipelineConfig(artifacts=str(tmp_path)), DeploymentOptions(name="newer"))
    flow_run = client.create_flow_run_from_deployment(deployed.id)
    with pytest.raises(ConfigError, match=rf"has edgeline {version('edgeline')}, the deployment was made with edgeline 9\.0"):
        run_flow(edgeline, flow_run=flow_run, parameters=flow_run.parameters)


OPTIONS = {
    "name": ("--deployment", "nightly"),
    "cron": ("--cron", "5 4 * * *"),
    "timezone": ("--timezone", "UTC"),
    "pool": ("--pool", "others"),
    "retrain": ("--retrain",),
    "monitor": ("--monitor", "devices"),
    "inbox": ("--inbox", "inbox"),
    "notify": ("--notify", "custom-webhook/people"),
}
"""The command's option for each field of `DeploymentOptions`, with a value other than the default."""


def test_every_field_of_the_deployment_options_is_an_option_of_the_command(
    client: SyncPrefectClient, hook: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert OPTIONS.keys() == {field.name for field in fields(DeploymentOptions)}
    given = [word for option in OPTIONS.values() for word in option]
    assert command_line("--artifacts", str(tmp_path), *given).exit_code == 0
    deployment = client.read_deployment_by_name("edgeline-retrain/nightly")
    [schedule] = deployment.schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("5 4 * * *", "UTC")
    assert deployment.work_pool_name == "others"
    assert deployment.entrypoint == "edgeline.flows.orchestration.flow.retrain"
    assert deployment.parameter_openapi_schema["properties"].keys() == {"config", "accepted", "drifted", "inbox"}
    assert deployment.parameters["inbox"] == str(tmp_path / "inbox")
    assert client.read_deployment_by_name("edgeline-monitor/nightly").parameters["sources"] == [str(tmp_path / "devices")]
    assert [each.name for each in client.read_automations() if each.name.startswith("edgeline digits")]


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
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, Flow)
    parameters = deployment["parameters"]
    validate(parameters, found.parameters.model_dump(), raise_on_error=True, ignore_required=True)
    config = parameters.get("config", {})
    assert all(Path(path).is_absolute() for path in (parameters | config).get("artifacts", "").split())
    if config:
        assert Path(parse_config(config).data).is_absolute()
    assert deployment["enforce_parameter_schema"] is True
    collision = "CANCEL_NEW" if deployment["schedules"] else "ENQUEUE"
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": collision}
    assert (deployment["work_pool"]["name"], deployment["work_pool"]["job_variables"]) == (DeploymentOptions().pool, JOB)
    for schedule in deployment["schedules"]:
        check_schedule(schedule["cron"], schedule["timezone"])


def test_prefect_yaml_has_what_the_command_creates() -> None:
    flows = {deployment["entrypoint"].rpartition(".")[2]: deployment for deployment in prefect_yaml()["deployments"]}
    planned = deployment_module.plan(PipelineConfig(), DeploymentOptions(retrain=True, monitor=("x",)))
    for each in planned:
        [cron] = [schedule["cron"] for schedule in flows[each.flow.fn.__name__]["schedules"]] or [""]
        assert cron == each.cron, each.flow.name
