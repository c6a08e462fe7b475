"""`edgeline predict` and `edgeline check`: output, exit codes and errors."""

import inspect
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgeline.serve.cli import register as register_module
from edgeline.serve.cli import serve as serve_command
from edgeline.serve.inbox.folder import InboxLimits
from edgeline.serve.preprocess import PILLOW_MAX_PIXELS, Limits

ROOT = Path(__file__).resolve().parents[3]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(name="photos")
def folder_of_photos(artifact_template: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, name in enumerate(["b.jpg", "a.jpg", "c.jpeg", "d.png"]):
        shutil.copy(artifact_template / "golden" / f"{index}.jpg", folder / name)
    return folder


# predict


def test_each_image_gets_a_readable_line(run: Run, artifact_template: Path, photos: Path) -> None:
    code, out, err = run("predict", artifact_template, photos / "b.jpg", photos / "a.jpg", "--top-k", 2)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{photos}/b.jpg: red 99.7% (green 0.2%)",
        f"{photos}/a.jpg: green 99.4% (blue 0.4%)",
    ]


def test_with_top_k_1_only_one_class_is_printed(run: Run, artifact_template: Path, photos: Path) -> None:
    assert run("predict", artifact_template, photos / "b.jpg", "--top-k", 1)[1] == f"{photos}/b.jpg: red 99.7%\n"


def test_json_has_an_object_per_line(run: Run, artifact_template: Path, photos: Path) -> None:
    code, out, _ = run("predict", artifact_template.parent, photos / "b.jpg", "--json", "--top-k", 1)
    answer = json.loads(out)
    assert code == 0
    assert answer["predictions"][0]["probability"] == pytest.approx(0.9968, abs=1e-3)
    del answer["predictions"][0]["probability"]
    assert answer.pop("times").keys() == {"decode_ms", "infer_ms"}
    assert answer == {
        "path": f"{photos}/b.jpg",
        "model": "colors",
        "version": 1,
        "variant": "onnx-fp32",
        "predictions": [{"label": "red", "index": 0}],
    }


def test_the_files_of_a_folder_are_classified_in_order(run: Run, artifact_template: Path, photos: Path) -> None:
    (photos / ".hidden.jpg").write_bytes(b"not looked at")
    (photos / "deeper").mkdir()
    (photos / "deeper" / "e.jpg").write_bytes(b"not looked at")
    code, out, err = run("predict", artifact_template, photos, "--json")
    assert (code, err) == (0, "")
    assert [Path(json.loads(line)["path"]).name for line in out.splitlines()] == ["a.jpg", "b.jpg", "c.jpeg", "d.png"]


def test_an_image_is_read_from_stdin(run: Run, artifact_template: Path, photos: Path) -> None:
    code, out, _ = run("predict", artifact_template, "-", "--top-k", 1, stdin=(photos / "b.jpg").read_bytes())
    assert (code, out) == (0, "-: red 99.7%\n")


def test_a_bad_image_is_reported_and_the_others_are_classified(run: Run, artifact_template: Path, photos: Path) -> None:
    (photos / "a.jpg").write_text("no image")
    (photos / "bb.jpg").touch()
    code, out, err = run("predict", artifact_template, photos, photos / "absent.jpg", "--top-k", 1)
    assert code == 1
    assert [line.rpartition(": ")[2] for line in out.splitlines()] == ["red 99.7%", "blue 99.8%", "dark 54.0%"]
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"edgeline: {photos}/a.jpg: ")
    assert [line.rpartition(" ")[2] for line in lines] == ["[not_an_image]", "[image_empty]", "[image_unreadable]"]


def test_a_bad_image_is_an_object_in_json(run: Run, artifact_template: Path, photos: Path) -> None:
    (photos / "a.jpg").write_text("no image")
    code, out, err = run("predict", artifact_template, photos / "a.jpg", photos / "b.jpg", "--json")
    bad, good = map(json.loads, out.splitlines())
    assert (code, err) == (1, "")
    assert bad.keys() == {"path", "model", "version", "variant", "error", "code"}
    assert (bad["code"], bad["path"]) == ("not_an_image", f"{photos}/a.jpg")
    assert good["predictions"][0]["label"] == "red"


def test_an_empty_folder_is_an_error(run: Run, artifact_template: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, out, err = run("predict", artifact_template, tmp_path / "empty")
    assert (code, out) == (1, "")
    assert "this folder has no files" in err


def test_a_huge_file_is_rejected_unread(run: Run, artifact_template: Path, tmp_path: Path) -> None:
    (tmp_path / "huge.jpg").touch()
    os.truncate(tmp_path / "huge.jpg", 2**40)
    code, _, err = run("predict", artifact_template, tmp_path / "huge.jpg")
    assert code == 1
    assert "the image has 1,099,511,627,776 bytes, the limit is 16,777,216 [image_too_large]" in err


def test_an_endless_stdin_is_cut_off(artifact_template: Path) -> None:
    command = [sys.executable, "-c", "from edgeline.flows.cli.main import main; main()", "predict", str(artifact_template), "-"]
    with open("/dev/zero", "rb") as zeros:
        ended = subprocess.run(command, cwd=ROOT, stdin=zeros, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert "[image_too_large]" in ended.stderr


def test_pillows_own_warnings_are_not_shown(run: Run, artifact_template: Path, tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 30), (200, 40, 30))
    picture.save(tmp_path / "exif.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 1, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT\x35\xaf\x06\x1e")
    code, out, err = run("predict", artifact_template, tmp_path / "exif.jpg", tmp_path / "large.png", "--top-k", 1)
    assert code == 1
    assert out.startswith(f"{tmp_path}/exif.jpg: red")
    assert re.fullmatch(r"edgeline: \S+/large.png: .* the limit is 50,000,000 \[image_too_large\]\n", err)


def test_a_malicious_file_name_stays_on_its_line(run: Run, artifact_template: Path, photos: Path) -> None:
    names = ["x\ny.jpg", "\x1b[31m.jpg", os.fsdecode(b"\xff.jpg")]
    for name in names:
        shutil.copy(photos / "b.jpg", photos / name)
    code, out, _ = run("predict", artifact_template, *(photos / name for name in names), "--top-k", 1)
    assert code == 0
    assert [line.rpartition("/")[2] for line in out.splitlines()] == [
        "x?y.jpg: red 99.7%",
        "?[31m.jpg: red 99.7%",
        "?.jpg: red 99.7%",
    ]
    code, out, _ = run("predict", artifact_template, *(photos / name for name in names), "--json")
    assert [json.loads(line)["path"].rpartition("/")[2] for line in out.splitlines()] == names


REJECTED: dict[str, tuple[list[str], int]] = {
    "no artifact": (["/absent", "x.jpg"], 1),
    "an unknown variant": (["ARTIFACT", "x.jpg", "--variant", "int4"], 1),
    "no image": (["ARTIFACT"], 2),
    "top-k of 0": (["ARTIFACT", "x.jpg", "--top-k", "0"], 2),
    "an unknown option": (["ARTIFACT", "x.jpg", "--topk", "3"], 2),
}


@pytest.mark.parametrize(("arguments", "expected"), REJECTED.values(), ids=REJECTED)
def test_an_invalid_command_line_is_rejected_without_a_traceback(
    run: Run, artifact_template: Path, arguments: list[str], expected: int
) -> None:
    code, out, err = run("predict", *(artifact_template if argument == "ARTIFACT" else argument for argument in arguments))
    assert (code, out) == (expected, "")
    assert err
    assert "Traceback" not in err
    if expected == 1:
        assert len(err.splitlines()) == 1


# check


def test_a_valid_artifact_is_verified_with_its_measurements(run: Run, artifact_template: Path) -> None:
    code, out, err = run("check", artifact_template)
    assert (code, err) == (0, "")
    assert out.startswith("colors 1 is verified on this machine\n")
    assert "12, " in out
    assert "4 golden samples" in out
    assert "tolerated 0.001" in out


def test_check_prints_the_numbers_as_json(run: Run, artifact_template: Path) -> None:
    code, out, _ = run("check", artifact_template.parent, "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["verified"], report["name"], report["version"], report["files"]) == (True, "colors", 1, 12)
    [self_test] = report["variants"]
    assert (self_test["variant"], self_test["samples"], self_test["tolerance"]) == ("onnx-fp32", 4, 0.001)
    assert 0 <= self_test["max_difference"] < 1e-5


def test_times_are_measured_with_the_option(run: Run, artifact_template: Path) -> None:
    code, out, err = run("check", artifact_template, "--time")
    assert (code, err) == (0, "")
    assert "ms per image (p50 / p95) with threads=1" in out
    assert re.search(r"\d MB(, exact-precision setting on)?\n", out)
    assert out.splitlines()[-1].startswith("  measured on ")
    [self_test] = json.loads(run("check", artifact_template, "--time", "--json")[1])["variants"]
    assert self_test.keys() >= {"samples", "latency", "start", "measured_on"}


def second_variant(folder: Path) -> list[dict[str, Any]]:
    manifest = json.loads((folder / "manifest.json").read_text())
    shutil.copy(folder / "model.onnx", folder / "model.second.onnx")
    return [*manifest["variants"], manifest["variants"][0] | {"name": "second", "file": "model.second.onnx"}]


def test_every_variant_is_verified_unless_one_is_chosen(run: Run, make_artifact: Any, seal: Any) -> None:
    folder = make_artifact()
    seal(folder, variants=second_variant(folder))
    verified = [found["variant"] for found in json.loads(run("check", folder, "--json")[1])["variants"]]
    assert verified == ["onnx-fp32", "second"]
    verified = [found["variant"] for found in json.loads(run("check", folder, "--json", "--variant", "second")[1])["variants"]]
    assert verified == ["second"]


def test_a_bad_second_variant_fails_the_check(run: Run, make_artifact: Any, seal: Any) -> None:
    folder = make_artifact()
    variants = second_variant(folder)
    (folder / "model.second.onnx").write_bytes(b"no model")
    seal(folder, variants=variants)
    assert run("check", folder, "--variant", "onnx-fp32")[0] == 0
    code, out, err = run("check", folder)
    assert (code, out) == (1, "")
    assert "[model_unloadable]" in err


def test_a_damaged_artifact_is_not_verified(run: Run, make_artifact: Any) -> None:
    folder = make_artifact()
    data = bytearray((folder / "model.onnx").read_bytes())
    data[100] ^= 1
    (folder / "model.onnx").write_bytes(data)
    code, out, err = run("check", folder)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert "model.onnx" in err
    assert "[digest_mismatch]" in err
    code, out, err = run("check", folder, "--json")
    report = json.loads(out)
    assert (code, err, report["verified"], report["code"]) == (1, "", False, "digest_mismatch")


def test_the_digest_of_the_manifest_is_printed(run: Run, artifact_template: Path) -> None:
    import hashlib

    digest = hashlib.sha256((artifact_template / "manifest.json").read_bytes()).hexdigest()
    assert digest in run("check", artifact_template)[1]


# All commands


@pytest.mark.parametrize("command", ["predict", "check", "serve"])
def test_help_has_an_example(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"edgeline {command} artifacts/store/" in out


def test_the_defaults_of_serve_are_those_of_preprocess() -> None:
    defaults = {name: parameter.default for name, parameter in inspect.signature(serve_command.serve).parameters.items()}
    assert (defaults["max_bytes"], defaults["max_pixels"]) == (Limits().max_bytes, Limits().max_pixels)
    assert serve_command.PILLOW_MAX_PIXELS == PILLOW_MAX_PIXELS
    inbox = InboxLimits()
    assert (inbox.photos, inbox.size_bytes) == (serve_command.INBOX_PHOTOS, serve_command.INBOX_MB * 2**20)


# Variants that this machine has no runtime for


def with_variant(folder: Path, seal: Any, name: str, format: str, files: list[str]) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"another runtime's")
    held = json.loads((folder / "manifest.json").read_text())
    other = {"name": name, "file": files[0], "format": format, "precision": "float16", "max_batch": 4}
    seal(folder, variants=[*held["variants"], other | {"verification": {"passed": None, "not_run": "why"}}])
    return folder


PACKAGE = [
    f"model.mlpackage/{n}"
    for n in ("Manifest.json", *(f"Data/com.apple.CoreML/{m}" for m in ("model.mlmodel", "weights/weight.bin")))
]
# Each: the variant's name, its format, its files, the message, and the error code if it is chosen explicitly.
NOT_RUN = {
    "of another system": pytest.param(
        "coreml-fp16",
        "coreml",
        PACKAGE,
        "model.mlpackage/Manifest.json cannot run on this system: Core ML runs on macOS and iOS; check and run it there",
        "not_run_here",
        marks=pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs here"),
    ),
    "of a runtime that is not installed": pytest.param(
        "executorch-fp32",
        "executorch",
        ["model.pte"],
        "this needs the package 'executorch': pip install 'edgeline[executorch]'",
        "missing_extra",
        marks=pytest.mark.skipif(find_spec("executorch") is not None, reason="ExecuTorch is installed here"),
    ),
}


@pytest.mark.parametrize(("name", "format", "files", "message", "code"), NOT_RUN.values(), ids=NOT_RUN)
def test_check_reports_variants_that_cannot_run_and_verifies_the_others(
    run: Run, make_artifact: Any, seal: Any, name: str, format: str, files: list[str], message: str, code: str
) -> None:
    folder = with_variant(make_artifact(), seal, name, format, files)
    exit_code, out, err = run("check", folder)
    assert (exit_code, err) == (0, "")
    assert f"  {name}  not run, and so not verified: {message}\n" in out
    assert "  onnx-fp32  inputs and outputs match the manifest" in out
    _, out, _ = run("check", folder, "--json")
    assert json.loads(out)["variants"][1] == {"variant": name, "not_run": message}


@pytest.mark.parametrize(("name", "format", "files", "message", "code"), NOT_RUN.values(), ids=NOT_RUN)
def test_check_fails_if_the_chosen_variant_cannot_run(
    run: Run, make_artifact: Any, seal: Any, name: str, format: str, files: list[str], message: str, code: str
) -> None:
    folder = with_variant(make_artifact(), seal, name, format, files)
    assert run("check", folder, "--variant", name) == (1, "", f"edgeline: {message} [{code}]\n")


def test_check_fails_if_a_file_of_a_variant_that_cannot_run_was_changed(run: Run, make_artifact: Any, seal: Any) -> None:
    folder = with_variant(make_artifact(), seal, "executorch-fp32", "executorch", ["model.pte"])
    (folder / "model.pte").write_bytes(b"another runtimes'")
    code, _, err = run("check", folder)
    assert code == 1
    assert "model.pte" in err


def test_every_command_module_of_the_folder_is_registered() -> None:
    modules = {path.stem for path in Path(register_module.__file__).parent.glob("*.py")}
    assert modules - {"__init__", "register", "options", "output"} == {command.__name__ for command in register_module.COMMANDS}
