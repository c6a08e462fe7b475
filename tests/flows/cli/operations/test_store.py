"""The commands about a store, from the command line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EDGELINE = str(Path(sys.executable).with_name("edgeline"))


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([EDGELINE, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(name="folder")
def of_a_name(make_artifact: Callable[..., Path]) -> Path:
    for version in (2, 3):
        make_artifact(version=version)
    return make_artifact(version=1).parent


def test_a_version_goes_into_use_and_out_of_use_again(folder: Path) -> None:
    assert run("promote", folder, 1).stdout == "stable is set to version 1\n"
    assert run("promote", folder, 2, "--why", "sees sparrows").stdout == "stable moves from version 1 to 2\n"
    assert run("promote", folder, 3, "--channel", "canary").stdout == "canary is set to version 3\n"
    assert run("rollback", folder, "--why", "misses owls").stdout == "stable returns from version 2 to 1\n"
    assert run("yank", folder, 3, "--why", "wrong labels").stdout == "version 3 is yanked\n"
    shown = run("show", folder).stdout.splitlines()
    assert [line.split("  <- ")[-1] for line in shown[:3]] == ["stable", "latest", "yanked: wrong labels"]
    assert shown[3] == "history, the newest first"
    assert [line.rpartition(": ")[2] for line in shown[4:]] == [
        "wrong labels",
        "misses owls",
        "by hand",
        "sees sparrows",
        "by hand",
    ]
    held = json.loads(run("show", folder, "--json").stdout)
    assert (held["channels"], held["yanked"]) == ({"stable": 1, "latest": 2}, {"3": "wrong labels"})
    assert [event["action"] for event in held["history"]] == ["promote"] * 3 + ["rollback", "yank"]
    listed = json.loads(run("list", folder.parent, "--json").stdout)
    assert [(each["name"], each["versions"]) for each in listed] == [("colors", [1, 2, 3])]
    table = run("list", folder.parent).stdout
    assert "colors" in table
    assert "stable 1, latest 2" in table


def test_yanking_the_only_version_warns_that_servers_keep_it(make_artifact: Callable[..., Path]) -> None:
    done = run("yank", make_artifact(version=1).parent, 1, "--why", "wrong labels")
    assert done.stdout.splitlines()[0] == "version 1 is yanked"
    assert "servers keep what they have loaded" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "{folder}/1"), "is a single version; name the folder above it"),
        (("show", "{store}"), "is a store; name one of its artifacts"),
        (("promote", "{store}/absent", 1), "has no published versions"),
        (("promote", "{folder}", 9), "has no version 9; published: 1, 2, 3 [version_unknown]"),
        (("promote", "{folder}", 1, "--channel", "A"), "is no name of a channel"),
        (("rollback", "{folder}"), "no channel 'stable' to roll back"),
        (("list", "{store}/absent"), "has no published artifact"),
    ],
)
def test_bad_input_is_one_line(folder: Path, arguments: tuple[object, ...], message: str) -> None:
    done = run(*(str(each).format(folder=folder, store=folder.parent) for each in arguments))
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
