"""The templates of work pools in `docs/deploy`, against those that Prefect has for their types."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.utilities.templating import apply_values, find_placeholders

from edgeline.flows.orchestration.deployments.deployment import JOB

DEPLOY = Path(__file__).parents[4] / "docs" / "deploy"
KINDS = ("docker", "kubernetes")
METADATA = "collections_data/views/aggregate-worker-metadata.json"


def template(kind: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((DEPLOY / f"pool-{kind}.json").read_text(encoding="utf-8"))
    return read


def of_prefect(kind: str) -> dict[str, Any]:
    collections = json.loads(files("prefect.server.api").joinpath(METADATA).read_text(encoding="utf-8"))
    return next(types[kind]["default_base_job_configuration"] for types in collections.values() if kind in types)


def lacks(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where a value of Prefect's is missing or another one here; further keys are fine."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return [each for key in theirs for each in lacks(ours.get(key), theirs[key], f"{path}.{key}")]
    if isinstance(theirs, list) and isinstance(ours, list) and len(ours) == len(theirs):
        return [each for index, pair in enumerate(zip(ours, theirs, strict=True)) for each in lacks(*pair, f"{path}.{index}")]
    return [] if ours == theirs else [path]


def defaults(kind: str) -> dict[str, Any]:
    properties = template(kind)["variables"]["properties"]
    return {name: field["default"] for name, field in properties.items() if "default" in field}


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_has_all_of_prefects_for_its_type(kind: str) -> None:
    assert lacks(template(kind)["job_configuration"], of_prefect(kind)["job_configuration"]) == []
    ours, theirs = (each["variables"]["properties"] for each in (template(kind), of_prefect(kind)))
    assert theirs.keys() <= ours.keys()
    assert {name for name in theirs if ours[name].get("type") != theirs[name].get("type")} == set()


@pytest.mark.parametrize("kind", KINDS)
def test_the_variables_of_a_template_are_a_schema_that_its_defaults_meet(kind: str) -> None:
    variables = template(kind)["variables"]
    Draft7Validator.check_schema(variables)
    Draft7Validator(variables).validate(defaults(kind))
    Draft7Validator(variables).validate(JOB)  # what `edgeline deploy` sets for every pool
    used = {each.name for each in find_placeholders(template(kind)["job_configuration"])}
    assert used == variables["properties"].keys()


def test_a_kubernetes_job_asks_for_the_gpu_and_has_the_data() -> None:
    job = apply_values(template("kubernetes")["job_configuration"], defaults("kubernetes"))
    pod = job["job_manifest"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    [mount], [volume] = container["volumeMounts"], pod["volumes"]
    assert (mount["name"], mount["mountPath"]) == (volume["name"], "/srv/edgeline")
    assert volume["persistentVolumeClaim"]["claimName"] == "edgeline"


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_accepts_a_template_for_its_type(kind: str, prefect_api: str) -> None:
    with get_client(sync_client=True) as client:
        created = client.create_work_pool(WorkPoolCreate(name=f"of-{kind}", type=kind, base_job_template=template(kind)))
    assert created.base_job_template == template(kind)
