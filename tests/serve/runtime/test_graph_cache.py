"""Optimized graphs on disk: bit-identical outputs, and every cached file is checked."""

import json
import logging
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeline.serve.artifact.manifest import Variant
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ArtifactError, GoldenError
from edgeline.serve.runtime import graph_cache
from edgeline.serve.runtime import session as session_module
from edgeline.serve.runtime.graph_cache import CachedGraph, cache_key, processor_identity
from edgeline.serve.runtime.session import SessionOptions, create_session

ROOT = Path(__file__).resolve().parents[3]
LABELS = ("red", "green", "blue", "dark")
OPEN = """
import sys
from pathlib import Path
from edgeline.serve.classifier import Classifier
for _ in range(int(sys.argv[3])):
    print(Classifier.open(sys.argv[1], threads=1, cache=Path(sys.argv[2])).self_test.samples)
"""

pytestmark = pytest.mark.skipif(not processor_identity(), reason="graphs are cached only if the processor is known")


def conv_model(*, int8: bool, seed: int = 0) -> bytes:
    """A convolution with the graph contract, float32 or quantized: the optimizer fuses it and changes its layout."""
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(seed)
    head = draw.normal(size=(32, 4)).astype(np.float32)
    held = {"scale": np.array(255, np.float32), "bias": draw.normal(size=32).astype(np.float32), "head": head}
    nodes = [
        helper.make_node("Cast", ["image"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["levels", "scale"], ["levels01"]),
        helper.make_node("Transpose", ["levels01"], ["planes"], perm=[0, 3, 1, 2]),
    ]
    if int8:
        held |= {"step": np.array(1 / 255, np.float32), "zero": np.array(0, np.uint8)}
        held |= {"fine": np.array(0.01, np.float32), "none": np.array(0, np.int8)}
        held |= {"weights8": draw.integers(-60, 60, (32, 3, 3, 3)).astype(np.int8), "wide": np.array(0.05, np.float32)}
        held["bias"] = np.round(held["bias"] / (0.01 / 255)).astype(np.int32)
        held |= {"bias_step": np.array(0.01 / 255, np.float32), "none32": np.array(0, np.int32)}
        nodes += [
            helper.make_node("QuantizeLinear", ["planes", "step", "zero"], ["planes8"]),
            helper.make_node("DequantizeLinear", ["planes8", "step", "zero"], ["input"]),
            helper.make_node("DequantizeLinear", ["weights8", "fine", "none"], ["weights"]),
            helper.make_node("DequantizeLinear", ["bias", "bias_step", "none32"], ["bias32"]),
            helper.make_node("Conv", ["input", "weights", "bias32"], ["conv"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["conv"], ["relu"]),
            helper.make_node("QuantizeLinear", ["relu", "wide", "zero"], ["relu8"]),
            helper.make_node("DequantizeLinear", ["relu8", "wide", "zero"], ["features"]),
        ]
    else:
        held["weights"] = draw.normal(size=(32, 3, 3, 3)).astype(np.float32)
        nodes += [
            helper.make_node("Conv", ["planes", "weights", "bias"], ["conv"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["conv"], ["features"]),
        ]
    nodes += [
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in ("probabilities", "logits")]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 12, 16, 3])
    graph = helper.make_graph(nodes, "conv", [image], outputs, [numpy_helper.from_array(v, k) for k, v in held.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    model.producer_name = "original"
    helper.set_model_props(model, {"edgeline.labels": "\n".join(LABELS)})
    return bytes(model.SerializeToString())


@pytest.fixture(params=["float32", "int8"])
def artifact(request: pytest.FixtureRequest, make_artifact: Callable[..., Path], seal: Callable[..., Path]) -> Path:
    """An artifact with a convolution, in float32 or int8."""
    return with_model(make_artifact(), conv_model(int8=request.param == "int8"), seal, precision=request.param)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def with_model(folder: Path, model: bytes, seal: Callable[..., Path], **variant: Any) -> Path:
    """Replace an artifact's model, and the outputs in its golden samples."""
    golden = json.loads((folder / "golden" / "golden.json").read_text())
    session = create_session(model, threads=1)
    for sample in golden["samples"]:
        pixels = np.asarray(Image.open(folder / sample["pixels"]))
        [probabilities], [logits] = session.run(["probabilities", "logits"], {"image": pixels[None]})
        sample |= {"probabilities": probabilities.tolist(), "logits": logits.tolist()}
        sample["label"] = LABELS[int(probabilities.argmax())]
    (folder / "golden" / "golden.json").write_text(json.dumps(golden))
    (folder / "model.onnx").write_bytes(model)
    [held] = json.loads((folder / "manifest.json").read_text())["variants"]
    return seal(folder, variants=[held | variant])


def cached_files(cache: Path, ending: str = "onnx") -> list[Path]:
    return sorted((cache / "optimized").glob(f"*.{ending}"))


def outputs_of(classifier: Classifier) -> list[bytes]:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 12, 16, 3), dtype=np.uint8)
    return [array.tobytes() for array in classifier.answer(pixels)]


def test_a_cached_graph_gives_bit_identical_outputs(artifact: Path, cache: Path) -> None:
    expected = outputs_of(Classifier.open(artifact, threads=1))
    assert outputs_of(Classifier.open(artifact, threads=1, cache=cache)) == expected
    [file] = cached_files(cache)
    before = file.stat().st_mtime_ns
    for threads in (1, 2):
        again = Classifier.open(artifact, threads=threads, cache=cache)
        assert outputs_of(again) == expected
        assert again.self_test is not None
    assert [(path, path.stat().st_mtime_ns) for path in cached_files(cache)] == [(file, before)], "read, not created again"
    assert sorted(path.suffix for path in file.parent.iterdir()) == [".json", ".onnx"], "no temporary files are left"
    assert stat.S_IMODE(cache.stat().st_mode) == stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_cached_graph_is_optimized_and_has_the_metadata_of_the_model(artifact: Path, cache: Path) -> None:
    import onnx

    Classifier.open(artifact, threads=1, cache=cache)
    before, after = onnx.load(artifact / "model.onnx"), onnx.load(cached_files(cache)[0])
    assert [node.op_type for node in after.graph.node] != [node.op_type for node in before.graph.node]
    assert list(after.metadata_props) == list(before.metadata_props)


def test_the_number_of_threads_does_not_change_the_cached_graph(artifact: Path, tmp_path: Path) -> None:
    for threads in (1, 2, 3):
        Classifier.open(artifact, threads=threads, cache=tmp_path / str(threads))
    one, *others = [cached_files(tmp_path / str(threads))[0].read_bytes() for threads in (1, 2, 3)]
    assert others == [one, one]


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "a flipped bit": lambda file, note: file.write_bytes(file.read_bytes()[:-9] + b"\x55" + file.read_bytes()[-8:]),
    "changed text in the metadata": lambda file, note: file.write_bytes(file.read_bytes().replace(b"original", b"0riginal")),
    "half of the graph": lambda file, note: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "no graph": lambda file, note: file.unlink(),
    "no note": lambda file, note: note.unlink(),
    "a note that is not JSON": lambda file, note: note.write_text("{"),
    "a note that is a list": lambda file, note: note.write_text("[]"),
    "a note without a digest": lambda file, note: note.write_text('{"size": 3}'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cached_graph_is_created_again(artifact: Path, cache: Path, damage: Callable[[Path, Path], object]) -> None:
    expected = outputs_of(Classifier.open(artifact, threads=1, cache=cache))
    [file], [note] = cached_files(cache), cached_files(cache, "json")
    held = file.read_bytes(), note.read_bytes()
    damage(file, note)
    assert outputs_of(Classifier.open(artifact, threads=1, cache=cache)) == expected
    assert (file.read_bytes(), note.read_bytes()) == held


def forge(cache: Path, data: bytes) -> None:
    """Replace a cached graph and its note: only the user, or a faulty runtime, can do this."""
    [file], [note] = cached_files(cache), cached_files(cache, "json")
    file.write_bytes(data)
    note.write_text(json.dumps({"size": len(data), "sha256": graph_cache.hashlib.sha256(data).hexdigest()}))


def test_a_cached_graph_that_does_not_load_is_created_again(artifact: Path, cache: Path) -> None:
    expected = outputs_of(Classifier.open(artifact, threads=1, cache=cache))
    forge(cache, b"not a model")
    assert outputs_of(Classifier.open(artifact, threads=1, cache=cache)) == expected
    assert cached_files(cache)[0].read_bytes() != b"not a model"


def test_golden_samples_reject_a_wrong_graph_from_the_cache(
    artifact: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = outputs_of(Classifier.open(artifact, threads=1, cache=cache))
    forge(cache, conv_model(int8=False, seed=1))
    assert outputs_of(Classifier.open(artifact, threads=1, cache=cache)) == expected
    assert "differs" in caplog.text


def test_the_graph_contract_is_checked_on_a_cached_graph(artifact: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    Classifier.open(artifact, threads=1, cache=cache)
    data = cached_files(cache)[0].read_bytes()
    assert data.count(b"red\ngreen") == 1
    forge(cache, data.replace(b"red\ngreen", b"green\nred"))
    Classifier.open(artifact, threads=1, cache=cache)
    assert "exported with other labels" in caplog.text
    assert cached_files(cache)[0].read_bytes() == data


def test_an_artifact_that_fails_its_golden_samples_is_rejected_and_not_cached(
    artifact: Path, cache: Path, seal: Callable[..., Path]
) -> None:
    (artifact / "model.onnx").write_bytes(conv_model(int8=False, seed=1))
    seal(artifact)
    with pytest.raises(GoldenError):
        Classifier.open(artifact, threads=1, cache=cache)
    assert list((cache / "optimized").iterdir()) == []


def test_a_model_that_does_not_load_is_rejected_as_without_a_cache(
    artifact: Path, cache: Path, seal: Callable[..., Path]
) -> None:
    (artifact / "model.onnx").write_bytes(b"not a model")
    seal(artifact)
    with pytest.raises(ArtifactError, match="cannot load the model"):
        Classifier.open(artifact, threads=1, cache=cache)
    assert list((cache / "optimized").iterdir()) == []


def test_the_cache_key_depends_on_everything_that_changes_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "multiplies_exactly", lambda: True)
    ort = session_module.load_onnxruntime()
    names = [cache_key("a" * 64, "one processor")]
    assert cache_key("a" * 64, "one processor") == names[0]
    names += [cache_key("b" * 64, "one processor"), cache_key("a" * 64, "another")]
    with monkeypatch.context() as other:
        other.setattr(ort, "__version__", "1.0")
        names.append(cache_key("a" * 64, "one processor"))
    with monkeypatch.context() as other:
        other.setattr(session_module, "SETTINGS", {**session_module.SETTINGS, "session.more": "1"})
        names.append(cache_key("a" * 64, "one processor"))
    monkeypatch.setattr(session_module, "multiplies_exactly", lambda: False)
    names.append(cache_key("a" * 64, "one processor"))
    assert len(set(names)) == len(names)
    assert cache_key("a" * 64, "one processor", saturates=False) == names[0], (
        "a model that cannot saturate needs no exact setting"
    )


OPTIONS: SessionOptions = {"threads": 3, "level": "basic", "saturates": False}


def test_the_cache_key_depends_on_every_option_but_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "multiplies_exactly", lambda: False)
    assert OPTIONS.keys() == SessionOptions.__annotations__.keys() == session_module.DEFAULTS.keys()
    default = cache_key("a" * 64, "one processor")
    changed = {name for name, value in OPTIONS.items() if cache_key("a" * 64, "one processor", **{name: value}) != default}
    assert changed == OPTIONS.keys() - {"threads"}


def test_an_unknown_processor_has_no_identity(tmp_path: Path) -> None:
    (tmp_path / "x86").write_text("processor\t: 0\nmodel name\t: A\ncpu MHz\t: 1\nflags\t: avx2 fma\n\nprocessor\t: 1\n")
    (tmp_path / "later").write_text("processor\t: 0\nmodel name\t: A\ncpu MHz\t: 2\nflags\t: avx2 fma\n\nprocessor\t: 1\n")
    (tmp_path / "other").write_text("processor\t: 0\nmodel name\t: A\ncpu MHz\t: 1\nflags\t: avx2 avx512f\n")
    (tmp_path / "empty").write_text("processor\t: 0\n")
    x86, later, other, empty, absent = (processor_identity(tmp_path / n) for n in ("x86", "later", "other", "empty", "absent"))
    assert x86 == later != other
    assert (empty, absent) == ("", "")


def test_other_formats_and_precisions_are_not_cached(cache: Path) -> None:
    def locate(format: str, precision: str) -> CachedGraph | None:
        variant = Variant(name="x", file="x", format=format, precision=precision, max_batch=1, verification={})
        return CachedGraph.locate(cache, "a" * 64, variant)

    assert locate("onnx", "float32") is not None
    assert locate("onnx", "int8") is not None
    for format, precision in (("ort", "float32"), ("ort", "int8"), ("openvino", "float32"), ("onnx", "float16 weights")):
        assert locate(format, precision) is None


def test_two_processes_at_once_leave_one_complete_file(artifact: Path, cache: Path) -> None:
    command = [sys.executable, "-c", OPEN, str(artifact), str(cache), "3"]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert outputs == [("4\n4\n4\n", "")] * 2
    assert len(cached_files(cache)) == 1
    assert len(list((cache / "optimized").iterdir())) == 2
    assert outputs_of(Classifier.open(artifact, threads=1, cache=cache)) == outputs_of(Classifier.open(artifact, threads=1))


@pytest.mark.parametrize("part", [".", "optimized"])
def test_a_folder_that_others_may_write_to_is_not_used(
    artifact: Path, cache: Path, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    Classifier.open(artifact, threads=1, cache=cache)
    [file], [note] = cached_files(cache), cached_files(cache, "json")
    used = note.stat().st_mtime_ns
    os.chmod(cache / part, 0o770)
    Classifier.open(artifact, threads=1, cache=cache)
    assert note.stat().st_mtime_ns == used
    assert [record.message for record in caplog.records if "is not used" in record.message] == [
        f"{cache / part} is not used: others may write to it; run chmod go-w, or choose another folder"
    ]
    assert file.exists()


def test_a_folder_that_cannot_be_written_only_disables_the_cache(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    expected = outputs_of(Classifier.open(artifact, threads=1))
    # The second belongs to this user and nobody can write to it, not even root.
    for place in (tmp_path / "file" / "cache", Path(f"/proc/{os.getpid()}"), Path(os.devnull)):
        assert outputs_of(Classifier.open(artifact, threads=1, cache=place)) == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_still_read(artifact: Path, cache: Path) -> None:
    Classifier.open(artifact, threads=1, cache=cache)
    os.chmod(cache / "optimized", 0o500)
    assert Classifier.open(artifact, threads=1, cache=cache).self_test is not None
    cached_files(cache)[0].read_bytes()
    os.chmod(cache / "optimized", 0o700)


def test_a_full_disk_only_disables_the_cache(artifact: Path, cache: Path) -> None:
    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    command = [sys.executable, "-c", OPEN, str(artifact), str(cache), "2"]
    ended = subprocess.run(command, cwd=ROOT, preexec_fn=limit_file_size, capture_output=True, text=True, check=False)
    assert ended.stdout == "4\n4\n", ended.stderr
    assert cached_files(cache) == []


def test_the_least_recently_used_graphs_are_deleted_first(
    artifact: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    Classifier.open(artifact, threads=1, cache=cache)
    [own], folder = cached_files(cache), cache / "optimized"
    for age in range(1, 20):
        for ending in ("onnx", "json"):
            (folder / f"{age:02}.{ending}").write_bytes(b"x" * 1000)
            os.utime(folder / f"{age:02}.{ending}", (1e9 - age, 1e9 - age))
    for name in ("left.partial", "left.note"):
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (1e9, 1e9))
    (folder / "now.partial").write_bytes(b"")
    own.unlink()
    Classifier.open(artifact, threads=1, cache=cache)
    assert cached_files(cache) == sorted([own, *(folder / f"{age:02}.onnx" for age in range(1, graph_cache.MAX_FILES))])
    assert [path.stem for path in cached_files(cache, "json")] == [path.stem for path in cached_files(cache)]
    assert [path.name for path in folder.iterdir() if path.suffix in (".partial", ".note")] == ["now.partial"]
    monkeypatch.setattr(graph_cache, "MAX_BYTES", own.stat().st_size + 2500)
    own.unlink()
    Classifier.open(artifact, threads=1, cache=cache)
    assert cached_files(cache) == sorted([own, folder / "01.onnx", folder / "02.onnx"])


def test_without_a_folder_nothing_is_cached(artifact: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    Classifier.open(artifact, threads=1)
    assert sorted(tmp_path.rglob("*")) == before
