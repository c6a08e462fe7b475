"""Exchange of versions while requests go on: new ones, bad ones, and back."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeline.serve.classifier import Classifier, Outputs
from edgeline.serve.errors import ArtifactError
from edgeline.serve.http.service import ServingLimits
from edgeline.serve.inference import sandbox as candidate
from edgeline.serve.inference.repository import ModelRepository
from edgeline.serve.inference.sandbox import validate_in_subprocess
from edgeline.serve.preprocess import Limits

WAIT_S = 60.0
PIXELS = Limits().max_pixels
Publish = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "published"


@pytest.fixture
def publish(make_artifact: Any, store: Path, tmp_path: Path) -> Publish:
    """`publish(version, damage=None)`: the artifact's folder, there at once and whole, or damaged."""

    def put(version: int, damage: Callable[[Path], None] = lambda folder: None, name: str = "colors", **fields: Any) -> Path:
        made = make_artifact(store=tmp_path / f"made-{name}-{version}", name=name, version=version, **fields)
        damage(made)
        (store / name).mkdir(parents=True, exist_ok=True)
        target = store / name / str(version)
        os.replace(made, target)
        return target

    return put


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


def cut_the_model(folder: Path) -> None:
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-1])


def version_of(site: Any) -> int:
    return int(site.client.get("/readyz").json()["version"])


def models_of(path: Path, **options: Any) -> ModelRepository:
    return ModelRepository([path], lambda folder: Classifier.open(folder, threads=1), max_pixels=PIXELS, poll_s=0.01, **options)


def test_a_version_that_is_published_takes_over_and_the_old_one_stays_at_hand(
    publish: Publish, store: Path, serving: Any
) -> None:
    publish(1)
    with serving(store / "colors") as site:
        assert version_of(site) == 1
        publish(2)
        until(lambda: version_of(site) == 2)
        told = site.client.get("/readyz").json()
        assert (told["previous"], told["refused"], told["rolled_back_from"]) == (1, None, None)
        assert site.service.models.versions("colors") == [1, 2]


def test_a_version_that_is_named_itself_is_not_followed(publish: Publish, serving: Any) -> None:
    first = publish(1)
    with serving(first) as site:
        publish(2)
        site.service.models.reload()
        site.service.models.reload()
        assert version_of(site) == 1


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a file that differs": (cut_the_model, "digest_mismatch"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "artifact_invalid"),
    "an unreadable manifest": (lambda folder: (folder / "manifest.json").write_text("{"), "manifest_invalid"),
    "a file too many": (lambda folder: (folder / "more").write_text("x"), "artifact_invalid"),
}


@pytest.mark.parametrize(("damage", "code"), BAD.values(), ids=BAD)
def test_a_bad_version_is_refused_with_its_reason_and_the_old_one_serves_on(
    publish: Publish, store: Path, serving: Any, damage: Callable[[Path], None], code: str
) -> None:
    publish(1)
    with serving(store / "colors") as site:
        publish(2, damage)
        until(lambda: site.client.get("/readyz").json()["refused"] is not None)
        told = site.client.get("/readyz").json()
        assert (told["version"], told["refused"]["version"], told["refused"]["code"]) == (1, 2, code)
        assert str(store) not in json.dumps(told)
        assert site.service.models.slots[0].refusals == 1
        metrics = site.client.get("/metrics").text
        assert 'edgeline_refusals_total{name="colors"} 1.0' in metrics


def test_other_answers_than_its_golden_ones_refuse_a_version(
    publish: Publish, store: Path, serving: Any, seal: Any, make_artifact: Any
) -> None:
    def lie(folder: Path) -> None:
        golden = json.loads((folder / "golden" / "golden.json").read_text())
        for sample in golden["samples"]:
            sample["probabilities"] = sample["probabilities"][::-1]
        (folder / "golden" / "golden.json").write_text(json.dumps(golden))
        seal(folder, version=2)

    publish(1)
    with serving(store / "colors") as site:
        publish(2, lie)
        until(lambda: site.client.get("/readyz").json()["refused"] is not None)
        assert site.client.get("/readyz").json()["refused"]["code"] == "golden_mismatch"
        assert version_of(site) == 1


def test_a_version_that_was_refused_is_tried_again_when_its_files_have_changed(
    publish: Publish, store: Path, serving: Any
) -> None:
    publish(1)
    with serving(store / "colors") as site:
        folder = publish(2, cut_the_model)
        until(lambda: site.client.get("/readyz").json()["refused"] is not None)
        whole = (store / "colors" / "1" / "model.onnx").read_bytes()
        (folder / "model.onnx").write_bytes(whole)
        until(lambda: version_of(site) == 2)
        assert site.client.get("/readyz").json()["refused"] is None


def test_a_version_that_was_refused_is_forgotten_when_it_is_taken_away(publish: Publish, store: Path, serving: Any) -> None:
    publish(1)
    with serving(store / "colors") as site:
        folder = publish(2, cut_the_model)
        until(lambda: site.client.get("/readyz").json()["refused"] is not None)
        shutil.rmtree(folder)
        until(lambda: site.client.get("/readyz").json()["refused"] is None)
        assert version_of(site) == 1


def test_a_refused_version_that_comes_back_is_tried_again(publish: Publish, store: Path, serving: Any, tmp_path: Path) -> None:
    publish(1)
    with serving(store / "colors") as site:
        folder = publish(2, cut_the_model)
        until(lambda: site.client.get("/readyz").json()["refused"] is not None)
        folder.rename(tmp_path / "away")
        until(lambda: site.client.get("/readyz").json()["refused"] is None)
        (tmp_path / "away").rename(folder)
        until(lambda: site.client.get("/readyz").json()["refused"] is not None)
        assert version_of(site) == 1


def test_a_rollback_is_instant_and_holds_until_something_newer_comes(publish: Publish, store: Path, serving: Any) -> None:
    publish(1)
    with serving(store / "colors") as site:
        publish(2)
        until(lambda: version_of(site) == 2)
        site.service.models.roll_back()
        told = site.client.get("/readyz").json()
        assert (told["version"], told["rolled_back_from"]) == (1, 2)
        publish(3)
        until(lambda: version_of(site) == 3)
        assert site.client.get("/readyz").json()["rolled_back_from"] is None


def test_a_reload_undoes_a_rollback(publish: Publish, store: Path, serving: Any) -> None:
    publish(1)
    with serving(store / "colors") as site:
        publish(2)
        until(lambda: version_of(site) == 2)
        site.service.models.roll_back()
        site.service.models.reload()
        until(lambda: version_of(site) == 2)


def test_files_that_vanish_under_a_loaded_version_harm_nothing(publish: Publish, store: Path, serving: Any) -> None:
    folder = publish(1)
    photo = (folder / "golden" / "0.jpg").read_bytes()
    with serving(store / "colors") as site:
        (store / "colors").rename(store / "elsewhere")
        assert site.client.post("/predict", content=photo).status_code == 200
        (store / "elsewhere").rename(store / "colors")
        publish(2)
        until(lambda: version_of(site) == 2)


def test_what_does_not_load_at_first_is_loaded_when_it_comes(publish: Publish, store: Path, serving: Any) -> None:
    with serving(store / "colors") as site:
        assert site.client.get("/readyz").json()["code"] == "artifact_invalid"
        publish(1)
        until(lambda: site.client.get("/readyz").status_code == 200)


def test_several_names_are_served_each_by_its_own(publish: Publish, store: Path, serving: Any) -> None:
    folder = publish(1)
    publish(7, name="shades")
    photo = (folder / "golden" / "0.jpg").read_bytes()
    with serving(store / "colors", store / "shades") as site:
        until(lambda: site.service.models.ready)
        for name, version in (("colors", 1), ("shades", 7)):
            told = site.client.post("/predict", params={"model": name}, content=photo).json()
            assert (told["model"], told["version"]) == (name, version)
        assert site.client.post("/predict", content=photo).json()["model"] == "colors"
        reply = site.client.post("/predict", params={"model": "../colors"}, content=photo)
        assert (reply.status_code, reply.json()["code"]) == (404, "model_unknown")


def test_a_challenger_answers_its_share_and_its_agreement_is_counted(publish: Publish, store: Path, serving: Any) -> None:
    champion, challenger = publish(1), publish(2)
    photo = (champion / "golden" / "0.jpg").read_bytes()
    with serving(champion, challenger=challenger, serving_limits=ServingLimits(challenger_share=0.25)) as site:
        until(lambda: site.service.models.challenger.current is not None)
        versions = [site.client.post("/predict", content=photo).json()["version"] for _ in range(20)]
        assert versions == [1, 1, 1, 2] * 5
        until(lambda: 'edgeline_challenger_answers_total{agreement="same"} 5.0' in site.client.get("/metrics").text)


def test_where_the_challenger_fails_the_champion_answers(publish: Publish, serving: Any) -> None:
    class Faulty(Classifier):
        def run(self, pixels_NHW3: np.ndarray, *, explain: bool = False) -> Outputs:
            if self.proof is not None and self.manifest.version == 2:
                raise ArtifactError("no number", code="model_output_not_finite")
            return super().run(pixels_NHW3, explain=explain)

    champion, challenger = publish(1), publish(2)
    photo = (champion / "golden" / "0.jpg").read_bytes()
    limits = ServingLimits(challenger_share=1.0)
    with serving(champion, challenger=challenger, serving_limits=limits, open_classifier=Faulty.open) as site:
        until(lambda: site.service.models.challenger.current is not None)
        assert site.client.post("/predict", content=photo).json()["version"] == 1
        assert 'edgeline_challenger_answers_total{agreement="failed"} 1.0' in site.client.get("/metrics").text


def test_no_request_fails_while_versions_come_good_and_bad(publish: Publish, store: Path, serving: Any) -> None:
    folder = publish(1)
    photos = [(folder / "golden" / f"{index}.jpg").read_bytes() for index in range(4)]
    statuses: list[int] = []
    done = threading.Event()

    def ask(url: str) -> None:
        with httpx.Client(base_url=url, timeout=WAIT_S) as client:
            while not done.is_set():
                for photo in photos:
                    statuses.append(client.post("/predict", content=photo).status_code)

    with serving(store / "colors") as site:
        asking = [threading.Thread(target=ask, args=(site.url,)) for _ in range(2)]
        for thread in asking:
            thread.start()
        try:
            for version in range(2, 8):
                slot, before = site.service.models.slots[0], site.service.models.slots[0].refusals
                publish(version, cut_the_model if version % 3 == 0 else lambda folder: None)
                if version % 3 == 0:
                    until(lambda: slot.refusals > before)  # noqa: B023
                else:
                    until(lambda: version_of(site) == version)  # noqa: B023
        finally:
            done.set()
            for thread in asking:
                thread.join(WAIT_S)
        assert slot.refusals == 2
        assert slot.swaps == 4
    assert set(statuses) == {200}


# The child


def endless(folder: Path) -> None:
    """Put a graph there that answers after 2**62 rounds."""
    model = onnx.load(folder / "model.onnx")
    names = {"i": TensorProto.INT64, "go": TensorProto.BOOL, "held": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info(name, kind, []) for name, kind in names.items()]
    outputs = [helper.make_tensor_value_info(f"{name}_out", names[name], []) for name in ("go", "held")]
    nodes = [helper.make_node("Identity", ["go"], ["go_out"]), helper.make_node("Sin", ["held"], ["held_out"])]
    body = helper.make_graph(nodes, "round", inputs, outputs)
    graph = model.graph
    graph.initializer.append(helper.make_tensor("rounds", TensorProto.INT64, [], [2**62]))
    graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    last = graph.node[-1]
    kept, last.output[0] = last.output[0], "before"
    graph.node.append(helper.make_node("ReduceSum", ["before"], ["start"], keepdims=0))
    graph.node.append(helper.make_node("Loop", ["rounds", "yes", "start"], ["end"], body=body))
    graph.node.append(helper.make_node("Add", ["before", "end"], [kept]))
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def test_a_good_candidate_passes(artifact_template: Path) -> None:
    validate_in_subprocess(artifact_template, max_pixels=PIXELS)


def test_a_graph_that_never_ends_is_given_up(make_artifact: Any, seal: Any) -> None:
    folder = make_artifact()
    endless(folder)
    seal(folder)
    with pytest.raises(ArtifactError, match="not proven within 3 s") as refusal:
        validate_in_subprocess(folder, max_pixels=PIXELS, time_s=3)
    assert refusal.value.code == "candidate_too_slow"


def test_a_bad_candidate_is_refused_by_its_own_error(make_artifact: Any) -> None:
    folder = make_artifact()
    cut_the_model(folder)
    with pytest.raises(ArtifactError, match=r"model\.onnx") as refusal:
        validate_in_subprocess(folder, max_pixels=PIXELS)
    assert refusal.value.code == "digest_mismatch"


ENDS = {
    "a crash": ("kill -SEGV $$", "ended a process by SIGSEGV"),
    "out of time": ("kill -XCPU $$", "ended a process by SIGXCPU"),
    "an exit code": ("exit 7", "exit code 7 and told nothing"),
    "nonsense": ("echo nonsense; exit 1", "exit code 1 and told nothing"),
}


@pytest.mark.parametrize(("script", "reason"), ENDS.values(), ids=ENDS)
def test_a_child_that_dies_refuses_its_candidate(
    artifact_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ArtifactError, match=reason) as refusal:
        validate_in_subprocess(artifact_template, max_pixels=PIXELS)
    assert refusal.value.code == "candidate_crashed"


CONFINED = """
import json, os, resource, signal
from edgeline.serve.inference.sandbox import drop_privileges
drop_privileges()
left = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1] for name in ("AS", "CPU", "CORE", "FSIZE", "NOFILE")}
print(json.dumps({**left, "nice": os.nice(0), "alarm": signal.alarm(0)}))
"""


def test_a_child_has_no_rights_to_much() -> None:
    root = Path(candidate.__file__).resolve().parents[2]
    ended = subprocess.run([sys.executable, "-c", CONFINED], cwd=root, capture_output=True, text=True, check=True)
    left = json.loads(ended.stdout)
    assert left["FSIZE"] == left["CORE"] == 0
    assert 0 < left["AS"] <= candidate.MEMORY_BYTES
    assert 0 < left["CPU"] <= candidate.CPU_S
    assert 0 < left["NOFILE"] <= candidate.FILES
    assert left["nice"] >= 10
    assert 0 < left["alarm"] <= candidate.TIME_S


def test_loading_that_fails_by_a_bug_says_so_and_goes_on(
    publish: Publish, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(folder: Path) -> Classifier:
        raise RuntimeError("secret")

    publish(1)
    models = ModelRepository([store / "colors"], broken, max_pixels=PIXELS, poll_s=0.01)
    models.start()
    until(lambda: models.slots[0].failure is not None)
    assert models.close(WAIT_S)
    failure = models.slots[0].failure
    assert failure is not None
    assert failure.code == "internal_error"
    assert "secret" not in failure.reason
    assert any(record.exc_info for record in caplog.records)


def test_the_index_tells_of_every_version_that_was_loaded_or_refused(publish: Publish, store: Path) -> None:
    publish(1)
    models = models_of(store / "colors")
    models.start()
    until(lambda: models.ready)
    publish(2)
    until(lambda: models.versions("colors") == [1, 2])
    publish(3, cut_the_model)
    until(lambda: models.slots[0].refused is not None)
    assert models.close(WAIT_S)
    assert [(row["version"], row["state"]) for row in models.index()] == [("1", "READY"), ("2", "READY"), ("3", "UNAVAILABLE")]
    assert models.names() == ["colors"]
    found = models.get("colors", 1)
    assert found is not None
    assert found.manifest.version == 1
    assert models.get("colors", 3) is None
    assert models.get("nobody") is None
