"""What happens by itself on a Prefect server: a retraining after drift, and messages to people.

An automation is found by its name, so deploying again updates it.

The parameter of a run that an automation starts is a template, which Prefect renders to text; only as JSON it becomes a list
again. With a parameter of the wrong type no run is started: Prefect logs that on its server and emits
`prefect.automation.action.failed`. Only failures of the retraining are reported to people: a message about a message that
could not be sent would fail in the same way, without end.
"""

from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import RunDeployment, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from edgeline.flows.orchestration.monitoring import DRIFTED
from edgeline.flows.orchestration.report import PROMOTED, REJECTED, resource_id
from edgeline.serve.errors import ConfigError

ACTION_FAILED = "prefect.automation.action.failed"
AS_JSON = {"__prefect_kind": "jinja", "template": "{{ event.payload.drifted | tojson }}"}


def find_notifier(client: SyncPrefectClient, block: str) -> UUID:
    """The id of a notification block.

    Args:
        client: of the server.
        block: its type and name, such as `slack-webhook/team`.

    Raises:
        ConfigError: there is no such block, or it sends no notifications.
    """
    kind, _, name = block.partition("/")
    try:
        if not kind or not name:
            raise ConfigError(f"--notify is {block!r}, expected the type and name of a block, such as slack-webhook/team")
        found = client.read_block_document_by_name(name, kind, include_secrets=False)
    except ObjectNotFound as error:
        raise ConfigError(
            f"the server has no block {block!r}: `prefect block ls` lists those that it has, and its UI creates one",
            code="block_missing",
        ) from error
    if found.block_schema is None or "notify" not in found.block_schema.capabilities:
        raise ConfigError(f"the block {block!r} sends no notifications; expected one such as slack-webhook/team")
    return found.id


def apply_automations(client: SyncPrefectClient, name: str, retrain: UUID, notifier: UUID | None) -> tuple[str, ...]:
    """Create or update the automations of a model.

    Args:
        client: of the server.
        name: of the artifact.
        retrain: id of the deployment of `edgeline-retrain`.
        notifier: id of the notification block, if there is one.

    Returns:
        Their names.
    """
    retraining = AutomationCore(
        name=f"edgeline {name}: retrain after drift",
        description="Without new labeled photos the run ends as `Waiting for labels`.",
        trigger=EventTrigger(
            expect={DRIFTED}, match={"prefect.resource.id": resource_id(name)}, posture=Posture.Reactive, threshold=1
        ),
        actions=[
            RunDeployment(
                source="selected", deployment_id=retrain, parameters={"drifted": {"__prefect_kind": "json", "value": AS_JSON}}
            )
        ],
    )
    applied = _apply(client, retraining)
    if notifier is None:
        return (retraining.name,)
    notifying = AutomationCore(
        name=f"edgeline {name}: notify",
        description="Of drift, of each decision about a new version, and of a retraining that could not be started.",
        trigger=EventTrigger(
            expect={DRIFTED, PROMOTED, REJECTED, ACTION_FAILED},
            match={"prefect.resource.id": [resource_id(name), f"prefect.automation.{applied}"]},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            SendNotification(
                block_document_id=notifier,
                subject=f"{name}: {{{{ event.event }}}}",
                body="{{ event.payload.message or event.payload.reason }}",
            )
        ],
    )
    _apply(client, notifying)
    return retraining.name, notifying.name


def _apply(client: SyncPrefectClient, automation: AutomationCore) -> UUID:
    found = client.read_automations_by_name(automation.name)
    if not found:
        return client.create_automation(automation)
    client.update_automation(found[0].id, automation)
    return found[0].id
