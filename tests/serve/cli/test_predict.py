"""`edgeline predict` as a process on a device: pipes, a watched folder, signals, newer versions, statistics."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from edgeline.serve.runtime.graph_cache import processor_identity
from tests.support.cases import cases

ROOT = Path(__file__).resolve().parents[3]
MAIN = [sys.executable, "-c", "from edgeline.flows.cli.main import main; main()"]
DEADLINE_S = 20

Run = Callable[..., tuple[int, str, str]]


@contextlib.contextmanager
def started(artifact: Path, *options: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run `edgeline predict`; killed at the end if it still runs."""
    command = [*MAIN, "predict", str(artifact), "--top-k", "1", *map(str, options)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def next_line(stream: IO[bytes] | None) -> dict[str, Any]:
    assert stream is not None
    return dict(json.loads(stream.readline()))


def label_of(line: dict[str, Any]) -> str:
    return str(line["predictions"][0]["label"] if "predictions" in line else line["code"])


def ended(process: subprocess.Popen[bytes], number: signal.Signals | None = None) -> tuple[int, bytes, bytes]:
    """Send a signal, or close stdin, and return the exit code and the rest of stdout and stderr."""
    if number is not None:
        process.send_signal(number)
        assert process.wait(DEADLINE_S) is not None
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


@pytest.fixture(name="photos")
def golden_photos(artifact_template: Path) -> list[Path]:
    return [artifact_template / "golden" / f"{index}.jpg" for index in range(4)]


# Through a pipe


def test_each_path_is_classified_before_the_next_one_is_read(artifact_template: Path, photos: list[Path]) -> None:
    with started(artifact_template, "--stream", "lines") as process:
        assert process.stdin
        for photo, label in zip(photos, ["red", "green", "blue", "dark"], strict=True):
            process.stdin.write(os.fsencode(photo) + b"\n")
            process.stdin.flush()
            line = next_line(process.stdout)
            assert (line["path"], label_of(line)) == (str(photo), label)
        assert ended(process) == (0, b"", b"")


def test_frames_are_classified_on_arrival_and_broken_ones_are_reported(artifact_template: Path, photos: list[Path]) -> None:
    frames = [photo.read_bytes() for photo in photos]
    with started(artifact_template, "-", "--stream", "mjpeg") as process:
        assert process.stdin
        process.stdin.write(frames[0])
        process.stdin.flush()
        assert next_line(process.stdout)["frame"] == 1
        process.stdin.write(frames[1][:-100] + frames[2] + frames[3])
        code, out, err = ended(process)
    found = {line["frame"]: label_of(line) for line in map(json.loads, out.splitlines())}
    assert found == {2: "image_truncated", 3: "blue", 4: "dark"}
    assert (code, err) == (1, b"")


ENDS = {
    f"{number.name}-{stream}": (number, stream) for number in (signal.SIGTERM, signal.SIGINT) for stream in ("lines", "mjpeg")
}


@pytest.mark.parametrize(("number", "stream"), cases(ENDS, quick=["SIGTERM-lines", "SIGINT-mjpeg"]))
def test_a_signal_ends_a_silent_pipe_with_code_0(
    artifact_template: Path, photos: list[Path], number: signal.Signals, stream: str
) -> None:
    with started(artifact_template, "--stream", stream) as process:
        assert process.stdin
        process.stdin.write(photos[0].read_bytes() if stream == "mjpeg" else os.fsencode(photos[0]) + b"\nhalf a pa")
        process.stdin.flush()
        assert label_of(next_line(process.stdout)) == "red"
        assert ended(process, number) == (0, b"", b"")


# A watched folder


def test_new_files_are_classified_until_a_signal(artifact_template: Path, photos: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "incoming"
    folder.mkdir()
    shutil.copy(photos[0], folder / "first.jpg")
    with started(artifact_template, "--watch", folder, "--existing", "--every", 0.05) as process:
        first = next_line(process.stdout)
        assert (first["path"], label_of(first)) == (str(folder / "first.jpg"), "red")
        (folder / "broken.jpg").write_text("no image")
        assert label_of(next_line(process.stdout)) == "not_an_image"
        shutil.copy(photos[1], folder / ".hidden")
        os.rename(folder / ".hidden", folder / "second.jpg")
        assert label_of(next_line(process.stdout)) == "green"
        before = {path.name: path.stat() for path in folder.iterdir()}
        shutil.rmtree(folder)
        assert process.stderr
        assert process.stderr.readline().endswith(b"; waiting for it\n")
        folder.mkdir()
        shutil.copy(photos[2], folder / "third.jpg")
        assert process.stderr.readline().endswith(b" can be read again\n")
        assert label_of(next_line(process.stdout)) == "blue"
        assert ended(process, signal.SIGTERM) == (0, b"", b"")
    assert set(before) == {"first.jpg", "broken.jpg", "second.jpg"}


def test_a_signal_among_many_images_leaves_complete_lines_and_code_0(
    artifact_template: Path, photos: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "incoming"
    folder.mkdir()
    photo = shutil.copy(photos[0], tmp_path / "photo.jpg")
    for index in range(3000):
        os.link(photo, folder / f"{index}.jpg")
    with started(artifact_template, "--watch", folder, "--existing", "--every", 0.05) as process:
        next_line(process.stdout)
        code, out, err = ended_reading(process)
    assert (code, err) == (0, b"")
    lines = out.splitlines(keepends=True)
    assert 0 <= len(lines) < 2999
    assert all(line.endswith(b"\n") and label_of(json.loads(line)) == "red" for line in lines)


def ended_reading(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    """As `ended` with SIGTERM, of a process that writes more than a pipe holds."""
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


# Newer versions


def test_a_newer_version_is_used_from_the_next_image_on(make_artifact: Any, photos: list[Path], tmp_path: Path) -> None:
    artifact = make_artifact().parent
    newer = make_artifact(version=2, store=tmp_path / "elsewhere")
    drift = tmp_path / "drift.json"
    with started(artifact, "--stream", "lines", "--follow", "--drift", drift) as process:
        assert process.stdin
        assert process.stderr

        def answered(photo: Path) -> dict[str, Any]:
            assert process.stdin
            process.stdin.write(os.fsencode(photo) + b"\n")
            process.stdin.flush()
            return next_line(process.stdout)

        assert answered(photos[0])["version"] == 1
        os.rename(newer, artifact / "2")
        assert process.stderr.readline() == b"edgeline: switched to colors 2\n"
        assert answered(photos[1])["version"] == 2
        assert answered(photos[1])["version"] == 2
        assert ended(process, signal.SIGTERM) == (0, b"", b"")
    cached = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("drift.json*")}
    assert {name: (held["version"], held["count"]) for name, held in cached.items()} == {
        "drift.json": (2, 2),
        "drift.json.1": (1, 1),
    }


# Unused options


def test_unused_options_import_nothing(artifact_template: Path, photos: list[Path]) -> None:
    program = (
        "import sys; from edgeline.flows.cli import main as cli\n"
        "try: cli.main()\n"
        "finally: print(sorted(n for n in sys.modules if n.startswith('edgeline.serve.') or n == 'cv2'), file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, "predict", str(artifact_template), str(photos[0])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    unused = ["drift.", "inputs.folder_watcher", "inputs.camera", "inputs.mjpeg", "hot_reload"]
    assert [name for name in unused if f"'edgeline.serve.{name}" in done.stderr] == []
    assert "cv2" not in done.stderr
    assert "edgeline.serve.cli.output" in done.stderr


# Command lines

REJECTED: dict[str, tuple[list[str], int, str]] = {
    "images and a folder": (["x.jpg", "--watch", "."], 2, "IMAGE and --watch cannot be combined"),
    "two sources": (["--watch", ".", "--camera", "0"], 2, "--watch and --camera cannot be combined"),
    "an image and a stream": (["x.jpg", "--stream", "lines"], 2, "IMAGE and --stream cannot be combined"),
    "an unknown framing": (["--stream", "zip"], 2, "'lines', 'mjpeg'"),
    "nothing": ([], 2, "missing IMAGE"),
    "existing files of an image": (["x.jpg", "--existing"], 2, "only valid with --watch"),
    "an interval for an image": (["x.jpg", "--every", "1"], 2, "only valid with --watch and --camera"),
    "a single version to watch": (["x.jpg", "--follow"], 1, "use its parent folder"),
    "statistics nowhere": (["x.jpg", "--drift", "/no/such/folder/d.json"], 1, "expected a path in an existing folder"),
    "a folder as the file of statistics": (["x.jpg", "--drift", "."], 1, "cannot be a file"),
    "a camera without OpenCV": (["--camera", "0"], 1, "pip install 'edgeline[camera]'"),
}


@pytest.mark.parametrize(("arguments", "code", "message"), REJECTED.values(), ids=REJECTED)
def test_an_invalid_command_line_is_rejected(
    run: Run, artifact_template: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setenv("COLUMNS", "200")
    found, out, err = run("predict", artifact_template, *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


def test_text_and_json_can_be_chosen_against_the_default(run: Run, artifact_template: Path, photos: list[Path]) -> None:
    assert run("predict", artifact_template, photos[0], "--top-k", 1, "--json")[1].startswith('{"path": ')
    with started(artifact_template, "--stream", "mjpeg", "--text") as process:
        assert process.communicate(photos[0].read_bytes() + b"\xff\xd8\xff", timeout=DEADLINE_S) == (
            b"frame 1: red 99.7%\n",
            b"edgeline: frame 2: the frame is truncated or damaged: it has an invalid JPEG marker [image_truncated]\n",
        )


def test_the_statistics_are_written_at_the_end(run: Run, artifact_template: Path, photos: list[Path], tmp_path: Path) -> None:
    code, _, _ = run("predict", artifact_template, *photos, tmp_path / "absent.jpg", "--drift", tmp_path / "drift.json")
    assert code == 1
    snapshot = json.loads((tmp_path / "drift.json").read_text())
    assert (snapshot["count"], snapshot["predicted"]["counts"]) == (4, [1, 1, 1, 1])
    assert [path.name for path in tmp_path.iterdir()] == ["drift.json"]


def test_the_optimized_graph_is_cached_with_the_option(
    run: Run, artifact_template: Path, photos: list[Path], tmp_path: Path
) -> None:
    first = run("predict", artifact_template, *photos, "--cache", tmp_path / "cache")
    cached = list((tmp_path / "cache" / "optimized").glob("*.onnx"))
    assert len(cached) == bool(processor_identity())
    assert run("predict", artifact_template, *photos, "--cache", tmp_path / "cache") == first
    assert run("predict", artifact_template, *photos) == first


ENCODINGS = {
    "F17-ASCII": ({"PYTHONIOENCODING": "ascii"}, r"warm \U0001f525"),
    "F17-the C locale": ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, r"warm \U0001f525"),
    "F17-UTF-8": ({"PYTHONIOENCODING": "utf-8"}, "warm 🔥"),
}


ENCODED = {
    f"{name}-{command}": (*values, command) for name, values in ENCODINGS.items() for command in ("predict", "predict --json")
}


@pytest.mark.parametrize(
    ("environment", "printed", "command"),
    cases(ENCODED, quick=["F17-ASCII-predict", "F17-the C locale-predict --json", "F17-UTF-8-predict"]),
)
def test_a_label_that_the_terminal_cannot_show_is_escaped(
    environment: dict[str, str], printed: str, command: str, make_artifact: Callable[..., Path], seal: Callable[..., Path]
) -> None:
    artifact = make_artifact()
    labels = ["warm 🔥", *(artifact / "labels.txt").read_text().splitlines()[1:]]
    (artifact / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    golden = artifact / "golden" / "golden.json"
    golden.write_text(golden.read_text().replace('"red"', '"warm \\ud83d\\udd25"'))
    seal(artifact, labels=labels)
    arguments = [*command.split(), str(artifact), str(artifact / "golden" / "0.jpg")]
    done = subprocess.run([*MAIN, *arguments], env=os.environ | environment, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    if command == "predict":
        assert printed in done.stdout
    else:
        assert json.loads(done.stdout)["predictions"][0]["label"] == "warm 🔥"
