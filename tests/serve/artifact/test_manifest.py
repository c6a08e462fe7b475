"""Manifests: the schema, unknown fields, paths and labels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeline.serve.artifact.manifest import MAX_BYTES, Manifest, check_labels, is_safe_path
from edgeline.serve.errors import ManifestError


@pytest.fixture(name="data")
def written(artifact_template: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((artifact_template / "manifest.json").read_text())
    return data


def test_a_manifest_survives_a_round_trip(data: dict[str, Any]) -> None:
    manifest = Manifest.from_dict(data)
    assert manifest.to_dict() == data
    assert Manifest.from_dict(manifest.to_dict()) == manifest
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_fields_of_a_newer_version_are_kept(data: dict[str, Any]) -> None:
    newer = data | {"signature": {"keyid": "k1"}, "channel": "stable"}
    manifest = Manifest.from_dict(newer)
    assert manifest.extra == {"signature": {"keyid": "k1"}, "channel": "stable"}
    assert json.loads(manifest.to_json()) == newer


def test_a_manifest_older_than_scaled_decoding_is_unchanged_by_a_round_trip(data: dict[str, Any]) -> None:
    del data["preprocess"]["jpeg_decoding"]
    manifest = Manifest.from_dict(data)
    assert manifest.preprocess.jpeg_decoding == "full"
    assert json.loads(manifest.to_json()) == data


def test_labels_of_any_script_survive(data: dict[str, Any]) -> None:
    labels = ["Zürich", "日本", "🐝", "عربي"]
    assert Manifest.from_json(Manifest.from_dict(data | {"labels": labels}).to_json()).labels == tuple(labels)


def test_all_problems_are_reported_at_once(data: dict[str, Any]) -> None:
    data["files"][0] |= {"path": "../../etc/passwd", "sha256": "x"}
    data["variants"][0] |= {"file": "absent.onnx", "max_batch": 0}
    broken = data | {
        "name": "No Good",
        "version": 0,
        "created": "yesterday",
        "labels": ["a", "a", " b", ""],
        "inputs": [{"name": "image"}],
        "preprocess": data["preprocess"] | {"height": 0, "interpolation": "nearest"},
    }
    with pytest.raises(ManifestError) as rejection:
        Manifest.from_dict(broken)
    message = str(rejection.value)
    for problem in (
        "name must be",
        "version must be at least 1",
        "created must be",
        "duplicate labels: a",
        "' b'",
        "inputs must be",
        "height must be",
        "interpolation must be",
        "'../../etc/passwd' is not a plain relative path",
        "invalid size or sha256",
        "absent.onnx is not among the files",
        "max_batch must be at least 1",
    ):
        assert problem in message


Change = Callable[[dict[str, Any]], Any]

INVALID: dict[str, tuple[Change, str]] = {
    "another schema": (lambda d: d | {"schema": "edgeline.artifact/2"}, "schema 'edgeline.artifact/2'"),
    "no schema": (lambda d: {}, "schema None"),
    "a field missing": (lambda d: {name: d[name] for name in d if name != "labels"}, "lacks labels"),
    "a field of another type": (lambda d: d | {"labels": "red"}, "labels must be list, got str"),
    "a version that is true": (lambda d: d | {"version": True}, "version must be int, got bool"),
    "labels that are numbers": (lambda d: d | {"labels": [1, 2]}, "labels must be text"),
    "one label": (lambda d: d | {"labels": ["red"]}, "at least 2, got 1"),
    "no variants": (lambda d: d | {"variants": []}, "at least one model"),
    "a file that is text": (lambda d: d | {"files": ["model.onnx"]}, r"files\[0\] must have exactly"),
    "a file with a field too many": (lambda d: d | {"files": [d["files"][0] | {"url": "x"}]}, r"files\[0\] must have exactly"),
    "a size that is text": (lambda d: d | {"files": [d["files"][0] | {"size": "3"}]}, r"files\[0\] has a wrong type in size"),
    "a size that is true": (lambda d: d | {"files": [d["files"][0] | {"size": True}]}, r"files\[0\] has a wrong type in size"),
    "a file twice": (lambda d: d | {"files": d["files"] + d["files"][:1]}, "each file once"),
    "the manifest among its files": (
        lambda d: d | {"files": [*d["files"], d["files"][0] | {"path": "manifest.json"}]},
        "not the manifest itself",
    ),
    "a list": (lambda d: [d], "must be an object, got list"),
}


@pytest.mark.parametrize(("change", "reason"), INVALID.values(), ids=INVALID)
def test_a_manifest_that_violates_its_schema_is_rejected(data: dict[str, Any], change: Change, reason: str) -> None:
    with pytest.raises(ManifestError, match=reason):
        Manifest.from_dict(change(data))


NOT_JSON = {
    "empty": b"",
    "half": b'{"schema":',
    "not UTF-8": b'{"schema": "\xff"}',
    "deep": b"[" * 100_000,
    "a number of 5,000 digits": b'{"version": ' + b"9" * 5000 + b"}",
    "NaN": b'{"metrics": {"loss": NaN}}',
    "infinity": b'{"metrics": {"loss": -Infinity}}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "a name twice": b'{"version": 1, "version": 2}',
    "a name twice further down": b'{"files": [{"path": "a", "path": "b"}]}',
}


@pytest.mark.parametrize("data", NOT_JSON.values(), ids=NOT_JSON)
def test_invalid_json_is_rejected(data: bytes) -> None:
    with pytest.raises(ManifestError, match="is not JSON"):
        Manifest.from_json(data)


def test_a_manifest_over_the_limit_is_rejected_without_parsing() -> None:
    with pytest.raises(ManifestError, match="the limit is"):
        Manifest.from_json(b"[" * (MAX_BYTES + 1))


SAFE = ["model.onnx", "golden/0.jpg", "a/b/c", "with space.txt", "ünïcode", "-rf", "...", ".hidden"]
UNSAFE = ["", ".", "..", "/", "/etc/passwd", "../x", "a/../b", "a/..", "./a", "a/./b", "a//b", "a/", "C:\\x", "a\\b", "c:x"]
UNSAFE += ["a\nb", "a\0b", "\u202eb", "a?b", "a*", '"', "<", "|"]


@pytest.mark.parametrize("path", SAFE)
def test_a_plain_relative_path_is_safe(path: str) -> None:
    assert is_safe_path(path)


@pytest.mark.parametrize("path", UNSAFE, ids=repr)
def test_a_path_that_may_leave_its_folder_is_not_safe(path: str) -> None:
    assert not is_safe_path(path)


@given(st.text("./\\ab:\0\n", max_size=12))
def test_a_safe_path_stays_below_its_folder(path: str) -> None:
    if is_safe_path(path):
        root = Path("/store/name/1")
        resolved = root.joinpath(path)
        assert ".." not in resolved.parts
        assert resolved.relative_to(root).as_posix() == path


BAD_LABELS = {
    "empty": ["a", ""],
    "blanks around": ["a", " b"],
    "a line break": ["a", "b\nc"],
    "an escape": ["a", "\x1b[31m"],
    "right to left override": ["a", "\u202eb"],
    "twice": ["a", "a"],
    "one": ["a"],
    "a number": ["a", 3],
}


@pytest.mark.parametrize("labels", BAD_LABELS.values(), ids=BAD_LABELS)
def test_invalid_labels_have_problems(labels: list[Any]) -> None:
    assert check_labels(labels)


def test_valid_labels_have_no_problems() -> None:
    assert check_labels(["a b", "ß", "<script>", "=cmd()", "日本"]) == []


def test_the_error_for_an_unknown_variant_lists_the_variants(data: dict[str, Any]) -> None:
    manifest = Manifest.from_dict(data)
    assert manifest.variant() is manifest.variant("onnx-fp32")
    with pytest.raises(ManifestError, match=r"no variant 'int4'; this artifact has onnx-fp32"):
        manifest.variant("int4")
