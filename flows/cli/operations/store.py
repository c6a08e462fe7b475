"""The commands about a store and what is in use: `list`, `show`, `promote`, `rollback`, `yank`, `prune` and `monitor`.

Nothing heavy is imported here; each command imports what it needs when it runs.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeline.flows.cli.options import Json
from edgeline.serve.artifact.channels import LATEST, STABLE, check_channel, read_channels
from edgeline.serve.errors import ArtifactError, ConfigError, EdgelineError

if TYPE_CHECKING:
    from edgeline.serve.artifact.channels import Channels, Event
    from edgeline.serve.artifact.manifest import Manifest

Store = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of published artifacts.")]
NamePath = Annotated[Path, typer.Argument(metavar="STORE/NAME", help="A name's folder in a store.")]
Version = Annotated[int, typer.Argument(min=1, metavar="VERSION", help="Number of a published version.")]
ChannelName = Annotated[str, typer.Option("--channel", help="`stable`, `canary` or a channel of another name.")]
Why = Annotated[str, typer.Option("--why", help="The reason, for the history.")]


def list_store(store: Store = Path("artifacts/store"), as_json: Json = False) -> None:
    """List the artifacts of a store: versions, channels, accuracy.

    edgeline list artifacts/store
    """
    from edgeline.serve.artifact.reader import names

    found = [_summary(store / name) for name in names(store)]
    if as_json:
        print(json.dumps(found))
        return
    if not found:
        raise ConfigError(
            f"{store} has no published artifact; `edgeline run` publishes to <artifacts>/store", code="store_empty"
        )
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("name", "versions", "channels", "stable: accuracy", "MB", box=None, pad_edge=False)
    for each in found:
        pointers = ", ".join(f"{channel} {version}" for channel, version in each["channels"].items())
        yanked = f", {len(each['yanked'])} yanked" if each["yanked"] else ""
        accuracy = "" if each["top1"] is None else f"{each['top1']:.1%}"
        size = "" if each["bytes"] is None else f"{each['bytes'] / 1e6:.1f}"
        table.add_row(escape(each["name"]), f"{len(each['versions'])}{yanked}", pointers, accuracy, size)
    Console(highlight=False).print(table)


def show(path: NamePath, as_json: Json = False) -> None:
    """Show the versions, channels and history of a name: who changed what, when and why.

    edgeline show artifacts/store/birds
    """
    from edgeline.serve.artifact.reader import versions

    folder = _name_folder(path)
    channels = read_channels(folder)
    summary = _summary(folder)
    if as_json:
        print(json.dumps(summary | {"history": channels.to_json()["history"]}))
        return
    for version in versions(folder):
        at = [channel for channel, number in summary["channels"].items() if number == version]
        marks = [*at, *([f"yanked: {channels.yanked[version]}"] if version in channels.yanked else [])]
        print(f"version {version}  {_described(folder / str(version))}{'  <- ' + ', '.join(marks) if marks else ''}")
    if channels.history:
        print("history, the newest first")
    for event in reversed(channels.history):
        print(f"  {event.at}  {_sentence(event)}, by {event.by}: {event.why}")
        if event.decision is not None:
            print(f"    {folder / event.decision}")


def promote(path: NamePath, version: Version, channel: ChannelName = STABLE, why: Why = "by hand") -> None:
    """Set a channel to a version. Servers and devices that follow the channel switch to it.

    edgeline promote artifacts/store/birds 7 --why 'checked on the new camera'

    edgeline promote artifacts/store/birds 8 --channel canary
    """
    from edgeline.export.promotion.channels import Change
    from edgeline.export.promotion.channels import promote as promote_version

    print(_sentence(promote_version(_name_folder(path), version, Change(check_channel(channel), why=why))))


def rollback(path: NamePath, channel: ChannelName = STABLE, why: Why = "by hand") -> None:
    """Set a channel to the version that it had before.

    edgeline rollback artifacts/store/birds --why 'misses sparrows'
    """
    from edgeline.export.promotion.channels import roll_back

    print(_sentence(roll_back(_name_folder(path), check_channel(channel), why)))


def yank(
    path: NamePath,
    version: Version,
    why: Why = "by hand",
    undo: Annotated[bool, typer.Option("--undo", help="Allow a yanked version again.")] = False,
) -> None:
    """Withdraw a version: whatever channel has it, servers and devices return to the version before. Its files stay.

    edgeline yank artifacts/store/birds 7 --why 'trained on wrong labels'
    """
    from edgeline.export.promotion.channels import yank as yank_version
    from edgeline.serve.artifact.reader import versions

    folder = _name_folder(path)
    print(_sentence(yank_version(folder, version, why, undo=undo)))
    try:
        read_channels(folder).version(STABLE, versions(folder))
    except ArtifactError as error:
        print(f"warning: {error}; servers keep what they have loaded")


def prune(
    artifacts: Annotated[Path, typer.Option(help="Folder of runs and the store.")] = Path("artifacts"),
    keep: Annotated[int, typer.Option(min=1, help="Newest versions, and newest runs, of each name to keep in any case.")] = 3,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed; without it nothing is removed.")] = False,
    as_json: Json = False,
) -> None:
    """List old versions and runs that nothing needs; with `--yes`, remove them.

    Kept are the newest of each name, every version that a channel has or had, the runs that published them, and runs that were
    written to in the last day.

        edgeline prune --artifacts artifacts --keep 5

        edgeline prune --artifacts artifacts --keep 5 --yes
    """
    from edgeline.flows.operations.prune import plan_prune
    from edgeline.flows.operations.prune import prune as remove

    plan = plan_prune(artifacts, keep)
    removed = remove(plan) if yes else []
    entries = (*plan.versions, *plan.runs)
    if as_json:
        rows = [{"path": str(each.path), "bytes": each.bytes, "removed": each.path in removed} for each in entries]
        print(json.dumps(rows))
        return
    for each in entries:
        state = "removed" if each.path in removed else "kept, because it is needed now" if yes else "would be removed"
        print(f"{each.path}  {each.bytes / 1e6:,.1f} MB  {state}")
    total = sum(each.bytes for each in entries) / 1e6
    hint = "; remove them with --yes" if entries and not yes else ""
    print(f"{len(plan.versions)} versions and {len(plan.runs)} runs, {total:,.1f} MB{hint}")


def monitor(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The artifact's name.")],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SNAPSHOT...", help="Drift snapshots: files, folders of them, or URLs such as http://HOST/drift."
        ),
    ],
    artifacts: Annotated[Path, typer.Option(help="Folder of runs and the store.")] = Path("artifacts"),
    channel: ChannelName = STABLE,
    rate: Annotated[
        float, typer.Option(min=0.0001, max=0.5, help="Probability of a false alarm, over all windows of a version.")
    ] = 0.05,
    as_json: Json = False,
) -> None:
    """Test what devices and servers have seen against the held-out images of the version in use; exit code 3 for an alarm.

    The snapshots of that version are one window. Each statistic gets a permutation test, corrected for their number; the alarm
    is corrected for the number of windows too, so it is false with the stated probability however often this runs.

        edgeline monitor birds http://127.0.0.1:8000/drift

        edgeline monitor birds devices/ --rate 0.01
    """
    from edgeline.flows.operations.monitor import monitor as monitor_model
    from edgeline.flows.operations.monitor import monitoring_lines, to_dict

    found = monitor_model(artifacts, name, sources, channel=channel, alpha=rate)
    if as_json:
        print(json.dumps(to_dict(found)))
    else:
        for line in monitoring_lines(found):
            print(line)
    if found.monitored is not None and found.monitored.alarm:
        raise typer.Exit(3)


def _name_folder(path: Path) -> Path:
    from edgeline.serve.artifact.manifest import FILE_NAME
    from edgeline.serve.artifact.reader import names, versions

    if versions(path):
        return path
    if (path / FILE_NAME).is_file():
        raise ConfigError(f"{path} is a single version; name the folder above it, {path.parent}", code="not_a_name")
    if found := names(path) if path.is_dir() else []:
        listed = ", ".join(str(path / name) for name in found[:5])
        raise ConfigError(f"{path} is a store; name one of its artifacts: {listed}", code="not_a_name")
    raise ConfigError(f"{path} has no published versions; expected a name's folder in a store", code="not_published")


def _summary(folder: Path) -> dict[str, Any]:
    from edgeline.serve.artifact.reader import versions

    published, channels = versions(folder), read_channels(folder)
    at = _versions_of(channels, published)
    manifest = _manifest(folder / str(at[STABLE])) if STABLE in at else None
    variants = [] if manifest is None else [entry for entry in manifest.files if entry.path == manifest.variants[0].file]
    return {
        "name": folder.name,
        "versions": published,
        "channels": at,
        "yanked": {str(version): reason for version, reason in channels.yanked.items()},
        "top1": None if manifest is None else manifest.metrics.get("top1", {}).get("value"),
        "bytes": variants[0].size if variants else None,
    }


def _versions_of(channels: "Channels", published: list[int]) -> dict[str, int]:
    """The version of each channel that has one."""
    found = {}
    for channel in (STABLE, *sorted(channels.pointers.keys() - {STABLE}), LATEST):
        try:
            found[channel] = channels.version(channel, published)
        except ArtifactError:
            continue
    return found


def _described(folder: Path) -> str:
    if (manifest := _manifest(folder)) is None:
        return "cannot be read"
    accuracy = manifest.metrics.get("top1", {}).get("value")
    share = "" if accuracy is None else f", accuracy {accuracy:.1%}"
    return f"{manifest.created[:16].replace('T', ' ')}  {len(manifest.labels)} classes{share}"


def _manifest(folder: Path) -> "Manifest | None":
    from edgeline.serve.artifact.manifest import FILE_NAME, Manifest

    try:
        return Manifest.from_json((folder / FILE_NAME).read_bytes())
    except (OSError, EdgelineError):
        return None


def _sentence(event: "Event") -> str:
    match event.action:
        case "promote" if event.before is None:
            return f"{event.channel} is set to version {event.version}"
        case "promote":
            return f"{event.channel} moves from version {event.before} to {event.version}"
        case "rollback":
            return f"{event.channel} returns from version {event.before} to {event.version}"
        case "keep":
            return f"{event.channel} stays at version {event.before}, version {event.version} is not promoted"
        case "yank":
            return f"version {event.version} is yanked"
        case _:
            return f"version {event.version} is allowed again"
