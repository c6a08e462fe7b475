"""Run the code in docs/devices: golden samples pass, faults are named, and pixels are identical."""

import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeline.serve.artifact.manifest import Manifest
from edgeline.serve.classifier import Classifier
from edgeline.serve.preprocess import (
    EXIF_ORIENTATION,
    INTERPOLATIONS,
    SIDEWAYS,
    UPRIGHT,
    PreprocessSpec,
    fit,
    jpeg_scale,
    preprocess,
    reduced_box,
)
from edgeline.serve.runtime.session import load_onnxruntime
from tests.support.image_files import OPAQUE_BMP, WITH_METADATA, WITHOUT_END, encode, picture

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
DEVICES = ROOT / "docs" / "devices"
HARNESS = ROOT / "tests" / "devices"
STB, JSON = Path("/usr/include/stb/stb_image.h"), Path("/usr/include/nlohmann/json.hpp")
TURBOJPEG, ORG_JSON = Path("/usr/include/turbojpeg.h"), Path("/usr/share/java/com.android.json.jar")

# ONNX Runtime's own releases are in no package registry; this package for a game engine has its headers and Android classes.
RUNTIME = ("com.github.asus4.onnxruntime@0.4.9", "e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d")
KOTLIN = ("kotlin-compiler@2.4.20", "c23dab400d7ce5ea8b6c909947c0ca5454189e4bb1108695b5f464500e5e950f")

Port = Callable[..., subprocess.CompletedProcess[str]]
"""`port(folder, variant, *photos)`: its exit code and output."""


def need(*programs: str, files: tuple[Path, ...] = ()) -> None:
    """Skip with a reason if a program is missing."""
    missing = [program for program in programs if not shutil.which(program)]
    missing += [str(path) for path in files if not path.exists()]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def fetch(package: tuple[str, str], folder: Path, wanted: str) -> Path:
    """Fetch an npm package, which must be the known one, and extract what matches; skip where no registry answers."""
    need("npm")
    name, sha256 = package
    folder.mkdir()
    done = subprocess.run(["npm", "pack", "--silent", name], cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"{name} cannot be fetched")
    [archive] = folder.glob("*.tgz")
    with archive.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == sha256
    with tarfile.open(archive) as tar:
        tar.extractall(folder, [entry for entry in tar if re.search(wanted, entry.name)], filter="data")
    archive.unlink()
    return folder / "package"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for compilers and their output; hundreds of MB, so it is deleted afterwards."""
    folder = tmp_path_factory.mktemp("workshop")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def android_runtime(workshop: Path) -> Path:
    """ONNX Runtime's Android package: `classes.jar` and `headers/`."""
    package = fetch(RUNTIME, workshop / "runtime", r"onnxruntime\.aar$")
    with zipfile.ZipFile(package / "Plugins" / "Android" / "onnxruntime.aar") as archive:
        archive.extractall(workshop / "aar")
    return workshop / "aar"


# The ports.


def script(name: str) -> Port:
    def run(folder: Path, variant: str, *photos: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(DEVICES / "python" / name), str(folder), variant, *map(str, photos)]
        return subprocess.run(command, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def with_edgeline() -> Port:
    return script("with_edgeline.py")


@pytest.fixture(scope="module")
def without_edgeline() -> Port:
    return script("device.py")


@pytest.fixture(scope="module")
def cpp(workshop: Path, request: pytest.FixtureRequest) -> Port:
    need("g++", files=(STB, JSON, TURBOJPEG))
    libraries = [*(Path(load_onnxruntime().__file__).parent / "capi").glob("libonnxruntime.so.*")]
    if not libraries:
        pytest.skip("this onnxruntime wheel has no library for C++")
    source, runtime = workshop / "cpp", workshop / "ort"
    shutil.copytree(DEVICES / "cpp", source)
    (runtime / "lib").mkdir(parents=True)
    shutil.copytree(request.getfixturevalue("android_runtime") / "headers", runtime / "include")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (runtime / "lib" / name).symlink_to(libraries[0])
    page = (source / "README.md").read_text(encoding="utf-8")
    [command] = re.findall(r"^g\+\+ .*$", page, re.MULTILINE)
    environment = {**os.environ, "ORT": str(runtime), "LD_LIBRARY_PATH": str(runtime / "lib")}
    done = subprocess.run(["bash", "-c", command], cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def run(folder: Path, variant: str, *photos: Path) -> subprocess.CompletedProcess[str]:
        command = [str(source / "edgeline"), str(folder), variant, *map(str, photos)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def java(workshop: Path, android_runtime: Path) -> list[str]:
    """The command that runs the Kotlin code, compiled with the lines of its page and with stand-ins for Android's classes."""
    need("java", "javac", files=(ORG_JSON,))
    kotlin = fetch(KOTLIN, workshop / "kotlin", r"/(bin/kotlinc|lib/.*\.jar)$")
    page = (DEVICES / "android" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```kotlin\n(.*?)```", page, re.DOTALL)
    functions = [f"fun usage{i}(context: Context, photo: File) {{\n{lines}}}\n" for i, lines in enumerate(blocks)]
    (workshop / "Usage.kt").write_text(
        "package edgeline\n\nimport android.content.Context\nimport java.io.File\n\n" + "".join(functions)
    )
    stand_ins, program = workshop / "stand_ins", workshop / "program.jar"
    subprocess.run(["javac", "-d", stand_ins, *(HARNESS / "android").rglob("*.java")], check=True)
    classes = f"{android_runtime / 'classes.jar'}:{ORG_JSON}:{stand_ins}"
    sources = [*sorted((DEVICES / "android").glob("*.kt")), HARNESS / "Harness.kt", workshop / "Usage.kt"]
    (kotlin / "bin" / "kotlinc").chmod(0o755)
    done = subprocess.run(
        [kotlin / "bin" / "kotlinc", "-d", program, "-include-runtime", "-cp", classes, *sources],
        env={**os.environ, "JAVA_OPTS": "-Xmx1g -XX:TieredStopAtLevel=1"},  # a compiler should start quickly here
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return ["java", "-cp", f"{program}:{classes}", "edgeline.HarnessKt"]


@pytest.fixture(scope="module")
def kotlin(java: list[str], workshop: Path) -> Port:
    """The golden check in Kotlin; this process stands in for the model, which needs Android."""

    def run(folder: Path, variant: str) -> subprocess.CompletedProcess[str]:
        classifier = Classifier.open(folder, variant=variant, verify=False)
        spec = classifier.manifest.preprocess
        size, pipe = spec.height * spec.width * 3, subprocess.PIPE
        command = [*java, "verify", str(folder), variant]
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            assert process.stdin
            assert process.stdout
            assert process.stderr
            while len(data := process.stdout.read(size)) == size:
                answers = classifier.answer(np.frombuffer(data, np.uint8).reshape(1, spec.height, spec.width, 3))
                process.stdin.write(np.concatenate(answers).astype(">f4").tobytes())
                process.stdin.flush()
            stderr = process.stderr.read().decode()
        return subprocess.CompletedProcess(command, process.returncode, "", stderr)

    return run


PYTHON = ["with_edgeline", "without_edgeline"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("cpp", "kotlin")]


@pytest.fixture
def port(request: pytest.FixtureRequest) -> Port:
    found: Port = request.getfixturevalue(request.param)
    return found


# Golden samples.


@pytest.mark.parametrize("port", [*PYTHON, *SLOW], indirect=True)
def test_every_variant_of_a_published_artifact_is_verified(port: Port, finished: Any) -> None:
    variants = Manifest.from_json((finished.artifact / "manifest.json").read_bytes()).variants
    assert len(variants) == 5
    for variant in variants:
        done = port(finished.artifact, variant.name)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("port", [*PYTHON, SLOW[0]], indirect=True)
def test_a_photo_gets_the_prediction_of_edgeline(port: Port, finished: Any) -> None:
    [photo, *_] = sorted((finished.artifact / "golden").glob("*.turned.jpg"))
    [[best]] = Classifier.open(finished.artifact, variant="ort-int8").predict([photo.read_bytes()], top_k=1)
    path, label, probability = port(finished.artifact, "ort-int8", photo).stdout.splitlines()[-1].split("\t")
    assert (path, label, float(probability)) == (str(photo), best.label, pytest.approx(best.probability, abs=1e-5))


@pytest.mark.parametrize("port", [*PYTHON, *SLOW], indirect=True)
def test_a_golden_sample_that_is_decoded_scaled_is_verified(port: Port, make_artifact: Any) -> None:
    folder = make_artifact()
    spec = Manifest.from_json((folder / "manifest.json").read_bytes()).preprocess
    with Image.open(folder / "golden" / "3.jpg") as large:
        assert jpeg_scale(large.height, large.width, spec) == 8
    done = port(folder, "onnx-fp32")
    assert done.returncode == 0, done.stderr


def change_pixels(folder: Path, _: dict[str, Any]) -> None:
    stored = np.asarray(Image.open(folder / "golden" / "0.png").copy())
    Image.fromarray(np.flip(stored, axis=2)).save(folder / "golden" / "0.png")


FAULTS: dict[str, tuple[Callable[[Path, dict[str, Any]], None], str]] = {
    "red and blue swapped": (change_pixels, r"golden/0\.jpg: .*(other pixels|produces different pixels)"),
    "another probability": (
        lambda _, golden: golden["samples"][1]["probabilities"].__setitem__(0, 0.4),
        r"golden/1\.jpg: (a probability differs|other probabilities)",
    ),
    "another logit": (
        lambda _, golden: golden["samples"][2]["logits"].__setitem__(0, 99.0),
        r"golden/2\.jpg: .*(a logit differs|other logits)",
    ),
    "another order of labels": (lambda _, golden: golden["samples"][0].update(label="dark"), r"not in the model's order"),
}


@pytest.mark.parametrize("port", [*PYTHON, *SLOW], indirect=True)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(port: Port, fault: str, make_artifact: Any, seal: Any) -> None:
    folder = make_artifact()
    path = folder / "golden" / "golden.json"
    golden = json.loads(path.read_text())
    plant, message = FAULTS[fault]
    plant(folder, golden)
    path.write_text(json.dumps(golden))
    done = port(seal(folder), "onnx-fp32")
    assert done.returncode != 0
    assert re.search(message, done.stderr), done.stderr


def test_a_changed_file_is_rejected_without_edgeline_too(without_edgeline: Port, make_artifact: Any) -> None:
    folder = make_artifact()
    (folder / "labels.txt").write_text("green\nred\nblue\ndark\n")
    done = without_edgeline(folder, "onnx-fp32")
    assert (done.returncode, done.stderr) == (1, "labels.txt is not what the manifest names\n")


# Pixels.


def cases() -> Iterator[tuple[np.ndarray, tuple[int, int], int, int, PreprocessSpec]]:
    """Pictures of noise, so that any rounding shows; size, scale, orientation, crop and filter vary.

    Yields the stored picture at a JPEG scale, its full width and height, the scale, its orientation, and the spec.
    """
    chance = np.random.default_rng(7)
    for index in range(90):
        width, height = (int(side) for side in chance.integers(1, 300 if index % 3 else 1200, 2))
        model_width = int(chance.integers(1, 60))
        spec = PreprocessSpec(
            height=max(1, int(model_width * chance.uniform(0.3, 1.5))),
            width=model_width,
            crop_fraction=float(chance.uniform(0.1, 1)) if index % 2 else 0.875,
            interpolation=sorted(INTERPOLATIONS)[index // 3 % len(INTERPOLATIONS)],
        )
        orientation = index % 10
        scale = jpeg_scale(*((height, width) if orientation in SIDEWAYS else (width, height)), spec)
        levels = chance.integers(0, 256, (-(-height // scale), -(-width // scale), 3), dtype=np.uint8)
        yield levels if index % 4 else levels // 128 * 255, (width, height), scale, orientation, spec


@pytest.fixture(scope="module")
def cpp_pixels(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    need("g++")
    program = tmp_path_factory.mktemp("pixels") / "pixels"
    strict = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{DEVICES / 'cpp'}"]
    subprocess.run(["g++", *strict, HARNESS / "pixels.cpp", "-o", program], check=True)
    return [str(program)]


@pytest.fixture(scope="module")
def kotlin_pixels(java: list[str]) -> list[str]:
    return [*java, "pixels"]


@pytest.mark.parametrize("program", ["cpp_pixels", pytest.param("kotlin_pixels", marks=pytest.mark.slow)])
def test_a_port_produces_identical_pixels(program: str, request: pytest.FixtureRequest) -> None:
    given, expected, scales = bytearray(), [], set()
    for picture_HW3, (width, height), scale, orientation, spec in cases():
        numbers = (width, height, scale, orientation, spec.width, spec.height, repr(spec.crop_fraction), spec.interpolation)
        given += " ".join(map(str, numbers)).encode() + b"\n" + picture_HW3.tobytes()
        image = Image.fromarray(picture_HW3)
        image = image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
        size = (height, width) if orientation in SIDEWAYS else (width, height)
        scales.add(scale)
        expected.append(bytes([scale]))
        expected.append(fit(image, spec, reduced_box(*size, orientation, scale, spec)).tobytes())
    done = subprocess.run(request.getfixturevalue(program), input=bytes(given), capture_output=True, check=True)
    assert scales == {1, 2, 4, 8}
    assert done.stdout == b"".join(expected)


@pytest.fixture(scope="module")
def cpp_photo(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    need("g++", files=(STB, TURBOJPEG))
    program = tmp_path_factory.mktemp("photo") / "photo"
    includes = ["-std=c++17", "-O1", f"-I{DEVICES / 'cpp'}", f"-I{STB.parent}"]
    subprocess.run(["g++", *includes, HARNESS / "photo.cpp", "-lturbojpeg", "-o", program], check=True)
    return [str(program)]


@pytest.fixture(scope="module")
def kotlin_photo(java: list[str]) -> list[str]:
    return [*java, "photo"]


SHAPES = {
    "as phones take it": (1600, 1200, 1),
    "lying, of odd size": (1603, 1197, 6),
    "upside down, of odd size": (1101, 1607, 3),
}
# Debian's libjpeg-turbo and Pillow's decode alike; the stand-in for Android's averages colors another way.
PHOTO_TOLERANCES = {"cpp_photo": 0.02, "kotlin_photo": 0.5}


@pytest.mark.parametrize("program", ["cpp_photo", pytest.param("kotlin_photo", marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_port_scales_a_large_photo_as_the_reference_does(
    program: str, shape: tuple[int, int, int], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    width, height, orientation = shape
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    blotches = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    photo = tmp_path / "photo.jpg"
    Image.fromarray(blotches).resize((width, height), Image.Resampling.BICUBIC).save(photo, quality=92, exif=exif)
    spec = PreprocessSpec(height=96, width=112)
    numbers = (spec.height, spec.width, repr(spec.crop_fraction), spec.interpolation)
    command = [*request.getfixturevalue(program), str(photo), *map(str, numbers)]
    observed = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    expected = preprocess(photo.read_bytes(), spec)
    assert np.abs(observed.reshape(expected.shape).astype(int) - expected).mean() <= PHOTO_TOLERANCES[program]
    assert jpeg_scale(min(width, height), min(width, height), spec) == 4


# What is no pixel.

SMALL = PreprocessSpec(height=24, width=32)
OF_PNG = {name: files for name, files in WITH_METADATA.items() if "PNG" in name and "EXIF of the wrong" not in name}
OF_CPP = {name: files for name, files in WITH_METADATA.items() if "WebP" not in name and "text cut off" not in name}
VECTORS = {
    "without_edgeline_pixels": OPAQUE_BMP | OF_PNG,
    "cpp_photo": OPAQUE_BMP | OF_CPP | WITHOUT_END,
    "kotlin_photo": OPAQUE_BMP,  # the rest is up to Android's decoders, which a desktop Java does not have
}


@pytest.fixture(scope="module")
def without_edgeline_pixels() -> Callable[[Path], np.ndarray]:
    device = runpy.run_path(str(DEVICES / "python" / "device.py"))
    return lambda path: device["pixels_of"](path.read_bytes(), SMALL.to_dict())


def pixels_by(port: Any, photo: Path) -> np.ndarray:
    """The pixels of a photo, by a function or a program."""
    if callable(port):
        pixels_HW3: np.ndarray = port(photo)
        return pixels_HW3
    numbers = (SMALL.height, SMALL.width, repr(SMALL.crop_fraction), SMALL.interpolation)
    done = subprocess.run([*port, str(photo), *map(str, numbers)], capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(SMALL.height, SMALL.width, 3)


@pytest.mark.filterwarnings("ignore:.*EXIF.*:UserWarning")
@pytest.mark.parametrize("name", ["without_edgeline_pixels", "cpp_photo", pytest.param("kotlin_photo", marks=pytest.mark.slow)])
def test_what_is_no_pixel_changes_no_pixel_of_a_port(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """F12, F13, G3."""
    port = request.getfixturevalue(name)
    differences = {}
    for case, (data, plain) in VECTORS[name].items():
        photo = tmp_path / ("photo.bmp" if "BMP" in case else "photo.jpg" if "JPEG" in case else "photo.png")
        photo.write_bytes(data)
        difference = np.abs(pixels_by(port, photo).astype(int) - preprocess(plain, SMALL)).mean()
        if difference > 0.02:
            differences[case] = difference
    assert differences == {}


def test_cpp_rejects_a_jpeg_that_lacks_more_than_its_end(cpp_photo: list[str], tmp_path: Path) -> None:
    """G3: cut anywhere in its last bytes, and between the scans of a progressive one."""
    photo = tmp_path / "photo.jpg"
    cut = [whole[:-missing] for _, whole in WITHOUT_END.values() for missing in range(3, 30)]
    progressive = encode(picture(), "JPEG", progressive=True)
    cut += [progressive[:at] for at in range(len(progressive)) if progressive.startswith((b"\xff\xda", b"\xff\xd9"), at)]
    assert len(cut) > 140
    for data in cut:
        photo.write_bytes(data)
        with pytest.raises(subprocess.CalledProcessError):
            pixels_by(cpp_photo, photo)
