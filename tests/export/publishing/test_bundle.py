"""A published artifact: exactly the documented files, nothing about the machine, verified on a device without torch."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import pytest

from edgeline.export.publishing.bundle import write_bundle
from edgeline.export.publishing.publish import read_verification
from edgeline.export.verification.report import VerificationReport
from edgeline.pipeline.data.samples import read_prepared
from edgeline.pipeline.evaluation.report import Evaluation
from edgeline.pipeline.runs.run import Run
from edgeline.serve.artifact.manifest import Manifest
from edgeline.serve.preprocess import PreprocessSpec
from tests.support.cases import cases

ROOT = Path(__file__).resolve().parents[3]
PAGES = {
    *("manifest.json", "labels.txt", "model.onnx", "report.html", "card.md"),
    *("evaluation.json", "verification.json", "statistics.json", "images.npz"),
}
MODELS = {
    *("model.int8.onnx", "model.fp16.onnx", "model.ort", "model.int8.ort"),
    *("model.ort.operators.config", "model.int8.ort.operators.config"),
}


@pytest.fixture(name="manifest", scope="module")
def read(finished: Any) -> Manifest:
    return Manifest.from_json((finished.artifact / "manifest.json").read_bytes())


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_artifact_has_exactly_the_documented_files(finished: Any) -> None:
    files = files_of(finished.artifact)
    golden = {name for name in files if name.startswith("golden/")}
    assert files.keys() - golden == PAGES | MODELS
    samples = json.loads(files["golden/golden.json"])["samples"]
    assert len(samples) == finished.config.publish.golden == 5
    pages = {"golden/golden.json", "golden/README.md"}
    assert golden == pages | {s["file"] for s in samples} | {s["pixels"] for s in samples}
    assert not any(path.is_symlink() for path in finished.artifact.rglob("*"))


def test_an_artifact_has_the_results_of_the_run_byte_for_byte(finished: Any) -> None:
    for step, name in (("export", "model.onnx"), ("evaluate", "evaluation.json"), ("verify", "verification.json")):
        assert (finished.artifact / name).read_bytes() == (finished.run.step(step) / name).read_bytes()
    assert (finished.artifact / "labels.txt").read_bytes() == b"bark\nleaf\nsky\n"
    Evaluation.model_validate_json((finished.artifact / "evaluation.json").read_bytes())


def test_the_manifest_names_every_other_file_with_size_digest_and_role(finished: Any, manifest: Manifest) -> None:
    files = files_of(finished.artifact)
    del files["manifest.json"]
    assert {entry.path: (entry.size, entry.sha256) for entry in manifest.files} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()
    }
    roles = {entry.path: entry.role for entry in manifest.files if not entry.path.startswith("golden/")}
    kinds = {".onnx": "model", ".ort": "model", ".config": "operators"}
    pages = {name: Path(name).stem for name in PAGES - {"manifest.json", "images.npz"}}
    assert roles == pages | {"images.npz": "data"} | {name: kinds[Path(name).suffix] for name in MODELS}
    assert {entry.role for entry in manifest.files if entry.path.startswith("golden/")} == {"golden"}


def test_the_manifest_is_read_back_as_it_was_written(finished: Any, manifest: Manifest) -> None:
    assert manifest.to_json() == (finished.artifact / "manifest.json").read_bytes()
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_the_manifest_has_the_name_the_inputs_and_the_outputs(finished: Any, manifest: Manifest, spec: PreprocessSpec) -> None:
    assert (manifest.schema, manifest.name, manifest.version) == ("edgeline.artifact/1", "photos", 1)
    assert manifest.labels == ("bark", "leaf", "sky")
    assert manifest.preprocess == spec
    assert datetime.fromisoformat(manifest.created).tzinfo is not None
    graph = onnx.load_model_from_string(finished.model).graph
    for declared, value in zip((*manifest.inputs, *manifest.outputs), (*graph.input, *graph.output), strict=True):
        dimensions = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        assert (declared["name"], declared["shape"]) == (value.name, dimensions)
    assert [value["dtype"] for value in (*manifest.inputs, *manifest.outputs)] == ["uint8", "float32", "float32"]


def test_the_manifest_has_metrics_verification_and_provenance(finished: Any, manifest: Manifest) -> None:
    evaluation = json.loads((finished.artifact / "evaluation.json").read_text())
    verification = json.loads((finished.artifact / "verification.json").read_text())
    assert manifest.metrics["top1"] == evaluation["top1"]
    assert manifest.metrics["temperature"] == evaluation["calibration"]["temperature"]
    variant, *others = manifest.variants
    assert [other.name for other in others] == ["onnx-int8", "onnx-fp16", "ort-fp32", "ort-int8"]
    assert all(other.verification["passed"] for other in others)
    assert (variant.name, variant.file, variant.format, variant.precision) == ("onnx-fp32", "model.onnx", "onnx", "float32")
    assert variant.max_batch == finished.config.verify.max_batch == 16
    for each in manifest.variants:
        assert each.verification.keys() >= {"accuracy", "bytes", "latency", "start", "sqnr_db", "top1_agreement", "measured_on"}
    assert {other.saturates for other in others if other.precision == "int8"} == {True}
    assert manifest.verification["passed"] is True
    assert manifest.verification["max_difference"] == verification["max_difference"]
    prepared = read_prepared(finished.run.step("prepare"))
    provenance = manifest.provenance
    assert (provenance["backbone"], provenance["weights"], provenance["seed"]) == ("efficientnet_lite0", "imagenet", 0)
    assert provenance["data_sha256"] == prepared.fingerprint
    assert provenance["images"] == {split: len(prepared.of(split)) for split in ("train", "val", "test")}
    assert provenance["config"]["verify"]["max_batch"] == 16
    assert provenance["versions"].keys() >= {"torch", "timm", "pillow"}
    commands = {name: group["command"] for name, group in provenance["measured_on"].items()}
    assert commands == {
        "training": "edgeline train RUN",
        "evaluation": "edgeline evaluate RUN",
        "int8 choice": "edgeline variants RUN",
        "verification": "edgeline verify RUN",
    }


def test_every_group_of_figures_has_its_run_environment(finished: Any, manifest: Manifest) -> None:
    schema = json.loads((ROOT / "docs" / "schemas" / "measured_on.schema.json").read_text())
    verification = json.loads((finished.artifact / "verification.json").read_text())
    variants = (verification["reference"], *verification["variants"])
    groups = [*manifest.provenance["measured_on"].values(), verification["measured_on"], verification["int8"]["measured_on"]]
    groups += [variant["measured_on"] for variant in variants] + [
        variant.verification["measured_on"] for variant in manifest.variants
    ]
    for group in groups:
        jsonschema.validate(group, schema)
    assert verification["int8"]["calibration"]["images"] == 24
    assert re.fullmatch("[0-9a-f]{64}", verification["int8"]["calibration"]["sha256"])


def traces(folder: Path, *places: object) -> list[tuple[str, object]]:
    return [(name, place) for name, data in files_of(folder).items() for place in places if str(place).encode() in data]


def test_no_file_contains_traces_of_the_machine_or_of_data_paths(finished: Any, photos: Path) -> None:
    here = (finished.config.artifacts, finished.config.data, photos.parent, finished.run.folder.name, ROOT, Path.home())
    assert traces(finished.artifact, *here, "site-packages", "/tmp/", "file://") == []


@pytest.mark.long
def test_weights_from_a_file_are_named_without_their_folder(run: Run, redo: Callable[[Path], None], tmp_path: Path) -> None:
    path = run.step("train") / "checkpoint.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"weights": "/home/somebody/secret/own.safetensors"}))
    redo(run.step("train"))
    verification = VerificationReport.read(run.step("verify") / "verification.json")
    (tmp_path / "bundle").mkdir()
    manifest = write_bundle(run, tmp_path / "bundle", verification, version=3, content="c" * 64)
    assert (manifest.version, manifest.provenance["weights"]) == (3, "own.safetensors")
    assert manifest.provenance["content_sha256"] == "c" * 64
    assert traces(tmp_path / "bundle", "/home/somebody", "secret") == []


def test_the_verification_of_a_run_is_read_for_publishing(finished: Any) -> None:
    assert read_verification(finished.run).passed


# On a device.

DEVICE = """
import hashlib, io, json, random, sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ABSENT = {"torch", "torchvision", "timm", "onnx", "onnxscript", "sklearn", "scipy", "matplotlib", "prefect",
          "fastapi", "jinja2", "safetensors", "starlette", "uvicorn"}


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
from edgeline.flows.cli.main import main

folder, everywhere = Path(sys.argv[1]), sys.argv[2] == "everywhere"


def check(*options):
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["edgeline", "check", str(folder), *options]
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main() or 0
        except SystemExit as ended:
            code = ended.code or 0
    return code, out.getvalue() + err.getvalue()


def offsets(size):
    chance = random.Random(size)
    places = {0, size // 2, size - 1, *(chance.randrange(size) for _ in range(3))}
    return sorted(places) if everywhere else [size // 2]


def flipped(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << offset % 8
    path.write_bytes(data)


found = {"rejected": 0, "passed": [], "reasons": set()}
parsed, loads = [], json.loads
json.loads = lambda *a, **k: parsed.append(1) or loads(*a, **k)
for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"):
    whole = path.read_bytes()
    changes = [lambda offset=offset: flipped(path, offset) for offset in offsets(len(whole))]
    changes += [lambda: path.write_bytes(whole + b"!"), lambda: path.write_bytes(whole[:-1])] if everywhere else []
    changes.append(path.unlink)
    for change in changes:
        change()
        parsed.clear()
        code, output = check()
        if code == 1 and len(parsed) == 1:
            found["rejected"] += 1
            found["reasons"].add(output.rpartition("[")[2].strip("]\\n"))
        else:
            found["passed"].append([path.name, code, output, len(parsed)])
        path.write_bytes(whole)
found["runtime"] = "onnxruntime" in sys.modules
import PIL.Image
found["pictures"] = PIL.Image._initialized

manifest = folder / "manifest.json"
whole = manifest.read_bytes()
found["manifest"] = []
for offset in offsets(len(whole)):
    flipped(manifest, offset)
    code, output = check("--json")
    report = json.loads(output)
    same = report.get("manifest_sha256") == hashlib.sha256(whole).hexdigest()
    found["manifest"].append([code, report["verified"], same])
    manifest.write_bytes(whole)

found["code"], found["output"] = check()
found["reasons"] = sorted(found["reasons"])
found["absent"] = sorted(ABSENT & set(sys.modules))
print(json.dumps(found))
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("places", "changes"), cases({"one place": ("once", 2), "many": ("everywhere", 7)}, quick=["one place"])
)
def test_a_device_without_torch_verifies_it_and_rejects_it_with_any_byte_changed(
    artifact: Path, places: str, changes: int
) -> None:
    """Runs in a process with the base install only. Nothing but the manifest is parsed before all files match it."""
    command = [sys.executable, "-c", DEVICE, str(artifact), places]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    found = json.loads(ended.stdout)
    assert found["passed"] == []
    assert found["rejected"] >= changes * (len(PAGES) - 1 + len(MODELS))
    assert found["reasons"] == ["artifact_invalid", "digest_mismatch"], "the first for a file that is gone"
    assert not found["runtime"], "no model was loaded"
    assert not found["pictures"], "no image was opened"
    for code, verified, same in found["manifest"]:
        assert (code == 1 and not verified) or not same, "a manifest that still passes is recognized by its digest"
    assert found["code"] == 0, found["output"]
    assert re.search("photos 1 is verified on this machine", found["output"])
    assert re.search("5 golden samples", found["output"])
    assert found["absent"] == []
