"""The manifest of an artifact: its metadata, the model's inputs and outputs, and its files.

Properties, each with a test:
- `Manifest.from_dict(manifest.to_dict()) == manifest`, and unknown fields are preserved;
- every path is relative, POSIX, without `..`, and unique;
- all problems of a manifest are reported at once.
"""

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, Self, TypeVar

from edgeline.serve.artifact.labels import check_labels
from edgeline.serve.errors import ManifestError
from edgeline.serve.preprocess import PreprocessSpec

SCHEMA = "edgeline.artifact/1"
FILE_NAME = "manifest.json"
MAX_BYTES = 8 * 2**20
"""A larger manifest is rejected without reading it; 20,000 labels need about 0.5 MiB."""

NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")
"""Artifact names; they are used in folder names and URLs."""
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of an artifact."""

    path: str
    """Relative to the artifact's folder, with forward slashes."""
    size: int
    """Bytes."""
    sha256: str
    """Lower-case hex."""
    role: str
    """`model`, `operators`, `labels`, `golden`, `evaluation`, `verification`, `statistics`, `data`, `report` or `card`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One executable form of the model."""

    name: str
    """For example `onnx-fp32`."""
    file: str
    """Path of its file in the artifact."""
    format: str
    """A key of `serve.runtime.backends.BACKENDS`, for example `onnx`."""
    precision: str
    """`float32`, `int8`, `float16 weights` (computes in float32) or `float16`."""
    max_batch: int
    """Largest batch size that was verified."""
    verification: dict[str, Any]
    """Summary of the verification; `verification.json` has all results.

    `passed` is null, with the reason in `not_run`, if it could not run on the machine that verified the others.
    """

    @property
    def saturates(self) -> bool:
        """Whether int8 products may saturate on x86 without VNNI: True unless the verification found that they cannot."""
        return self.verification.get("saturates") is not False


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The contents of `manifest.json`."""

    name: str
    version: int
    created: str
    labels: tuple[str, ...]
    preprocess: PreprocessSpec
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]
    variants: tuple[Variant, ...]
    files: tuple[FileEntry, ...]
    metrics: dict[str, Any]
    verification: dict[str, Any]
    provenance: dict[str, Any]
    task: str = "image-classification"
    schema: str = SCHEMA
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields of a newer minor schema, preserved unchanged."""

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parse a manifest file.

        Raises:
            ManifestError: not JSON, too large, or invalid as for `from_dict`.
        """
        if len(data) > MAX_BYTES:
            raise ManifestError(f"{FILE_NAME} has {len(data):,} bytes, the limit is {MAX_BYTES:,}")
        try:
            text = data.decode("utf-8")  # json.loads would guess the encoding and accept a byte order mark
            return cls.from_dict(json.loads(text, parse_constant=_reject_constant, object_pairs_hook=_unique))
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{FILE_NAME} is not JSON: {error}") from error

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Validate a manifest.

        Raises:
            ManifestError: with every problem found, separated by `; `.
        """
        if not isinstance(data, dict):
            raise ManifestError(f"{FILE_NAME} must be an object, got {type(data).__name__}")
        if data.get("schema") != SCHEMA:
            raise ManifestError(f"{FILE_NAME} has schema {data.get('schema')!r}, this version of edgeline reads {SCHEMA!r}")
        if missing := sorted(_TYPES.keys() - data.keys()):
            raise ManifestError(f"{FILE_NAME} lacks {', '.join(missing)}")
        problems = [
            f"{name} must be {kind.__name__}, got {type(data[name]).__name__}"
            for name, kind in _TYPES.items()
            if not isinstance(data[name], kind) or isinstance(data[name], bool)
        ]
        if problems:
            raise ManifestError(f"{FILE_NAME}: " + "; ".join(problems))
        files = _entries(FileEntry, data["files"], "files", problems)
        variants = _entries(Variant, data["variants"], "variants", problems)
        try:
            spec = PreprocessSpec.from_dict(data["preprocess"])
        except ManifestError as error:
            problems.append(str(error))
        problems += _problems(data, files, variants)
        if problems:
            raise ManifestError(f"{FILE_NAME}: " + "; ".join(problems))
        return cls(
            **{name: data[name] for name in ("name", "version", "created", "metrics", "verification", "provenance", "task")},
            labels=tuple(data["labels"]),
            preprocess=spec,
            inputs=tuple(data["inputs"]),
            outputs=tuple(data["outputs"]),
            variants=tuple(variants),
            files=tuple(files),
            extra={name: value for name, value in data.items() if name not in _TYPES},
        )

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON types."""
        return {
            "schema": self.schema,
            "name": self.name,
            "version": self.version,
            "created": self.created,
            "task": self.task,
            "labels": list(self.labels),
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "preprocess": self.preprocess.to_dict(),
            "variants": [_fields_of(variant) for variant in self.variants],
            "metrics": self.metrics,
            "verification": self.verification,
            "provenance": self.provenance,
            "files": [_fields_of(entry) for entry in self.files],
            **self.extra,
        }

    def to_json(self) -> bytes:
        """The bytes of `manifest.json`."""
        return (json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()

    def variant(self, name: str | None = None) -> Variant:
        """The named variant, or the first one, which is the float32 reference.

        Raises:
            ManifestError: no variant has that name.
        """
        for variant in self.variants:
            if name in (None, variant.name):
                return variant
        raise ManifestError(f"no variant {name!r}; this artifact has {', '.join(v.name for v in self.variants)}")

    def file(self, path: str) -> FileEntry:
        """The entry of a file.

        Raises:
            ManifestError: the file is not in the manifest.
        """
        for entry in self.files:
            if entry.path == path:
                return entry
        raise ManifestError(f"{FILE_NAME} has no file {path!r}")


_TYPES: dict[str, type] = {
    "schema": str,
    "name": str,
    "version": int,
    "created": str,
    "task": str,
    "labels": list,
    "inputs": list,
    "outputs": list,
    "preprocess": dict,
    "variants": list,
    "metrics": dict,
    "verification": dict,
    "provenance": dict,
    "files": list,
}


def is_safe_path(path: str) -> bool:
    """Whether a relative path stays inside its folder, on every operating system."""
    parts = PurePosixPath(path).parts
    return (
        bool(parts)
        and path == "/".join(parts)
        and not any(part in ("..", ".") or part.startswith("/") for part in parts)
        and path.isprintable()
        and not set(path) & set('\\:*?"<>|')
    )


def _reject_constant(name: str) -> None:
    raise ValueError(f"it contains {name}, which is not valid JSON")


def _unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's members; parsers differ in which of two with the same name they use, so that is an error."""
    found = dict(members)
    if len(found) < len(members):
        raise ValueError("an object has the same name twice")
    return found


Entry = TypeVar("Entry", FileEntry, Variant)


def _entries(kind: type[Entry], items: list[Any], where: str, problems: list[str]) -> list[Entry]:
    entries = []
    types = {name: dict if name == "verification" else hint for name, hint in kind.__annotations__.items()}
    for index, item in enumerate(items):
        if not isinstance(item, dict) or item.keys() != types.keys():
            problems.append(f"{where}[{index}] must have exactly {', '.join(types)}")
        elif wrong := [name for name, type_ in types.items() if not isinstance(item[name], type_) or item[name] is True]:
            problems.append(f"{where}[{index}] has a wrong type in {', '.join(wrong)}")
        else:
            entries.append(kind(**item))
    return entries


def _problems(data: dict[str, Any], files: list[FileEntry], variants: list[Variant]) -> list[str]:
    problems = check_labels(data["labels"])
    if not NAME.fullmatch(data["name"]):
        problems.append(f"name must be lower-case letters, digits, - and _, got {data['name']!r}")
    if data["version"] < 1:
        problems.append(f"version must be at least 1, got {data['version']}")
    try:
        datetime.fromisoformat(data["created"])
    except ValueError:
        problems.append(f"created must be an ISO 8601 time, got {data['created']!r}")
    paths = [entry.path for entry in files]
    problems += [f"file path {path!r} is not a plain relative path" for path in paths if not is_safe_path(path)]
    if len(set(paths)) < len(paths) or FILE_NAME in paths:
        problems.append("files must contain each file once, and not the manifest itself")
    for entry in files:
        if entry.size < 0 or not SHA256.fullmatch(entry.sha256):
            problems.append(f"{entry.path}: invalid size or sha256")
    if not variants:
        problems.append("variants must have at least one model")
    problems += [f"variant {v.name}: max_batch must be at least 1, got {v.max_batch}" for v in variants if v.max_batch < 1]
    problems += [f"variant {v.name}: {v.file} is not among the files" for v in variants if v.file not in paths]
    for where in ("inputs", "outputs"):
        if not all(isinstance(value, dict) and {"name", "dtype", "shape"} <= value.keys() for value in data[where]):
            problems.append(f"{where} must be objects with name, dtype and shape")
    return problems


def _fields_of(entry: FileEntry | Variant) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in entry.__annotations__}
