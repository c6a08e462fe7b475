"""Hot reload while requests are served: new versions, bad versions, rollback."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edgeline.serve.artifact.channels import Channels, Followed
from edgeline.serve.classifier import Classifier, Outputs
from edgeline.serve.errors import ArtifactError
from edgeline.serve.http.service import ServingLimits
from edgeline.serve.inference.repository import ModelRepository
from edgeline.serve.inference.slot import Failure
from tests.support.cases import cases
from tests.support.loading import TestLoader

WAIT_S = 60.0
Publish = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "published"


@pytest.fixture
def publish(make_artifact: Any, store: Path, tmp_path: Path) -> Publish:
    """`publish(version, damage=None)`: publish an artifact atomically, whole or damaged; returns its folder."""

    def put(version: int, damage: Callable[[Path], None] = lambda folder: None, name: str = "colors", **fields: Any) -> Path:
        made = make_artifact(store=tmp_path / f"made-{name}-{version}", name=name, version=version, **fields)
        damage(made)
        (store / name).mkdir(parents=True, exist_ok=True)
        target = store / name / str(version)
        os.replace(made, target)
        return target

    return put


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


def truncate_model(folder: Path) -> None:
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-1])


def version_of(site: Any) -> int:
    return int(site.client.get("/readyz").json()["version"])


def open_narrow(folder: Path) -> Classifier:
    return Classifier.open(folder, threads=1)


def repository_of(path: Path, open_classifier: Callable[[Path], Classifier] = open_narrow) -> ModelRepository:
    return ModelRepository([path], TestLoader(open_classifier), poll_s=0.01)


def test_a_published_version_takes_over_and_the_previous_one_stays_loaded(publish: Publish, store: Path, serving: Any) -> None:
    publish(1)
    with serving(store / "colors") as site:
        assert version_of(site) == 1
        publish(2)
        until(lambda: version_of(site) == 2)
        status = site.client.get("/readyz").json()
        assert (status["previous"], status["rejected"], status["rolled_back_from"]) == (1, None, None)
        assert site.service.models.versions("colors") == [1, 2]


def test_a_path_that_is_a_single_version_is_not_followed(publish: Publish, serving: Any) -> None:
    first = publish(1)
    with serving(first) as site:
        publish(2)
        site.service.models.reload()
        site.service.models.reload()
        assert version_of(site) == 1


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a file that differs": (truncate_model, "digest_mismatch"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "artifact_invalid"),
    "an unreadable manifest": (lambda folder: (folder / "manifest.json").write_text("{"), "manifest_invalid"),
    "a file too many": (lambda folder: (folder / "more").write_text("x"), "artifact_invalid"),
}


@pytest.mark.parametrize(("damage", "code"), cases(BAD, quick=["a file that differs"]))
def test_a_bad_version_is_rejected_with_a_reason_and_the_old_one_stays_in_service(
    publish: Publish, store: Path, serving: Any, damage: Callable[[Path], None], code: str
) -> None:
    publish(1)
    with serving(store / "colors") as site:
        publish(2, damage)
        until(lambda: site.client.get("/readyz").json()["rejected"] is not None)
        status = site.client.get("/readyz").json()
        assert (status["version"], status["rejected"]["version"], status["rejected"]["code"]) == (1, 2, code)
        assert str(store) not in json.dumps(status)
        assert site.service.models.slots[0].rejections == 1
        metrics = site.client.get("/metrics").text
        assert 'edgeline_rejected_versions_total{name="colors"} 1.0' in metrics


def test_a_version_that_fails_its_golden_samples_is_rejected(
    publish: Publish, store: Path, serving: Any, seal: Any, make_artifact: Any
) -> None:
    def reverse_probabilities(folder: Path) -> None:
        golden = json.loads((folder / "golden" / "golden.json").read_text())
        for sample in golden["samples"]:
            sample["probabilities"] = sample["probabilities"][::-1]
        (folder / "golden" / "golden.json").write_text(json.dumps(golden))
        seal(folder, version=2)

    publish(1)
    with serving(store / "colors") as site:
        publish(2, reverse_probabilities)
        until(lambda: site.client.get("/readyz").json()["rejected"] is not None)
        assert site.client.get("/readyz").json()["rejected"]["code"] == "golden_mismatch"
        assert version_of(site) == 1


def test_a_rejected_version_is_tried_again_when_its_files_change(publish: Publish, store: Path, serving: Any) -> None:
    publish(1)
    with serving(store / "colors") as site:
        folder = publish(2, truncate_model)
        until(lambda: site.client.get("/readyz").json()["rejected"] is not None)
        whole = (store / "colors" / "1" / "model.onnx").read_bytes()
        (folder / "model.onnx").write_bytes(whole)
        until(lambda: version_of(site) == 2)
        assert site.client.get("/readyz").json()["rejected"] is None


def test_a_rejected_version_is_forgotten_when_it_is_removed(publish: Publish, store: Path, serving: Any) -> None:
    publish(1)
    with serving(store / "colors") as site:
        folder = publish(2, truncate_model)
        until(lambda: site.client.get("/readyz").json()["rejected"] is not None)
        shutil.rmtree(folder)
        until(lambda: site.client.get("/readyz").json()["rejected"] is None)
        assert version_of(site) == 1


def test_a_rejected_version_that_reappears_is_tried_again(publish: Publish, store: Path, serving: Any, tmp_path: Path) -> None:
    publish(1)
    with serving(store / "colors") as site:
        folder = publish(2, truncate_model)
        until(lambda: site.client.get("/readyz").json()["rejected"] is not None)
        folder.rename(tmp_path / "away")
        until(lambda: site.client.get("/readyz").json()["rejected"] is None)
        (tmp_path / "away").rename(folder)
        until(lambda: site.client.get("/readyz").json()["rejected"] is not None)
        assert version_of(site) == 1


def test_a_rollback_is_instant_and_lasts_until_a_newer_version_appears(publish: Publish, store: Path, serving: Any) -> None:
    publish(1)
    with serving(store / "colors") as site:
        publish(2)
        until(lambda: version_of(site) == 2)
        site.service.models.roll_back()
        status = site.client.get("/readyz").json()
        assert (status["version"], status["rolled_back_from"]) == (1, 2)
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


def test_a_loaded_version_keeps_answering_when_its_files_are_moved_away(publish: Publish, store: Path, serving: Any) -> None:
    folder = publish(1)
    photo = (folder / "golden" / "0.jpg").read_bytes()
    with serving(store / "colors") as site:
        (store / "colors").rename(store / "moved")
        assert site.client.post("/predict", content=photo).status_code == 200
        (store / "moved").rename(store / "colors")
        publish(2)
        until(lambda: version_of(site) == 2)


def test_an_artifact_that_is_missing_at_start_is_loaded_once_it_appears(publish: Publish, store: Path, serving: Any) -> None:
    with serving(store / "colors") as site:
        assert site.client.get("/readyz").json()["code"] == "artifact_invalid"
        publish(1)
        until(lambda: site.client.get("/readyz").status_code == 200)


def test_several_names_are_each_served_by_their_own_artifact(publish: Publish, store: Path, serving: Any) -> None:
    folder = publish(1)
    publish(7, name="shades")
    photo = (folder / "golden" / "0.jpg").read_bytes()
    with serving(store / "colors", store / "shades") as site:
        until(lambda: site.service.models.ready)
        for name, version in (("colors", 1), ("shades", 7)):
            answer = site.client.post("/predict", params={"model": name}, content=photo).json()
            assert (answer["model"], answer["version"]) == (name, version)
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


def test_the_champion_answers_when_the_challenger_fails(publish: Publish, serving: Any) -> None:
    class Faulty(Classifier):
        def run(self, pixels_NHW3: np.ndarray, *, explain: bool = False) -> Outputs:
            if self.self_test is not None and self.manifest.version == 2:
                raise ArtifactError("not finite", code="model_output_not_finite")
            return super().run(pixels_NHW3, explain=explain)

    champion, challenger = publish(1), publish(2)
    photo = (champion / "golden" / "0.jpg").read_bytes()
    limits = ServingLimits(challenger_share=1.0)
    with serving(champion, challenger=challenger, serving_limits=limits, open_classifier=Faulty.open) as site:
        until(lambda: site.service.models.challenger.current is not None)
        assert site.client.post("/predict", content=photo).json()["version"] == 1
        assert 'edgeline_challenger_answers_total{agreement="failed"} 1.0' in site.client.get("/metrics").text


@pytest.mark.long
def test_no_request_fails_while_good_and_bad_versions_are_published(publish: Publish, store: Path, serving: Any) -> None:
    folder = publish(1)
    photos = [(folder / "golden" / f"{index}.jpg").read_bytes() for index in range(4)]
    statuses: list[int] = []
    done = threading.Event()

    def send_requests(url: str) -> None:
        with httpx.Client(base_url=url, timeout=WAIT_S, verify=False) as client:
            while not done.is_set():
                for photo in photos:
                    statuses.append(client.post("/predict", content=photo).status_code)

    with serving(store / "colors") as site:
        clients = [threading.Thread(target=send_requests, args=(site.url,)) for _ in range(2)]
        for thread in clients:
            thread.start()
        try:
            for version in range(2, 8):
                slot, before = site.service.models.slots[0], site.service.models.slots[0].rejections
                publish(version, truncate_model if version % 3 == 0 else lambda folder: None)
                if version % 3 == 0:
                    until(lambda: slot.rejections > before)  # noqa: B023
                else:
                    until(lambda: version_of(site) == version)  # noqa: B023
        finally:
            done.set()
            for thread in clients:
                thread.join(WAIT_S)
        assert slot.rejections == 2
        assert slot.reloads == 4
    assert set(statuses) == {200}


def failure_to_load(publish: Publish, store: Path, error: Exception) -> Failure:
    """How a version is reported whose loading raises an error."""

    def broken(folder: Path) -> Classifier:
        raise error

    publish(1)
    models = repository_of(store / "colors", broken)
    models.start()
    until(lambda: models.slots[0].failure is not None)
    assert models.close(WAIT_S)
    failure = models.slots[0].failure
    assert failure is not None
    return failure


def test_an_unexpected_error_while_loading_is_logged_and_reported(
    publish: Publish, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failure = failure_to_load(publish, store, RuntimeError("secret"))
    assert failure.code == "internal_error"
    assert "secret" not in failure.reason
    assert any(record.exc_info for record in caplog.records)


def test_too_little_memory_for_a_version_is_named_without_the_paths_of_the_machine(
    publish: Publish, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """F18: in the server's log, the first cause is named too."""
    error = ImportError("/opt/lib/onnxruntime.so: failed to map segment from shared object")
    failure = failure_to_load(publish, store, error)
    assert failure.code == "out_of_memory"
    assert "/opt/lib" not in failure.reason
    assert "/opt/lib/onnxruntime.so: failed to map segment" in caplog.text
    assert not any(record.exc_info for record in caplog.records)


def test_the_index_lists_every_loaded_or_rejected_version(publish: Publish, store: Path) -> None:
    publish(1)
    models = repository_of(store / "colors")
    models.start()
    until(lambda: models.ready)
    publish(2)
    until(lambda: models.versions("colors") == [1, 2])
    publish(3, truncate_model)
    until(lambda: models.slots[0].rejected_version is not None)
    assert models.close(WAIT_S)
    assert [(row["version"], row["state"]) for row in models.index()] == [("1", "READY"), ("2", "READY"), ("3", "UNAVAILABLE")]
    assert models.names() == ["colors"]
    found = models.get("colors", 1)
    assert found is not None
    assert found.manifest.version == 1
    assert models.get("colors", 3) is None
    assert models.get("nobody") is None


def set_channels(store: Path, pointers: dict[str, int], yanked: dict[int, str] | None = None) -> None:
    channels = Channels(pointers=pointers, yanked=yanked or {})
    partial = store / "colors" / "channels.partial"
    partial.write_text(json.dumps(channels.to_json()))
    os.replace(partial, store / "colors" / "channels.json")


def test_a_server_follows_the_stable_version_up_and_down_and_ignores_a_newer_one(
    publish: Publish, store: Path, serving: Any
) -> None:
    publish(1)
    publish(2)
    set_channels(store, {"stable": 1})
    with serving(store / "colors") as site:
        assert version_of(site) == 1
        publish(3)
        set_channels(store, {"stable": 2})
        until(lambda: version_of(site) == 2)
        set_channels(store, {"stable": 1})
        until(lambda: version_of(site) == 1)
        assert site.client.get("/readyz").json()["rejected"] is None


def test_a_server_leaves_a_yanked_version_for_the_one_before_and_does_not_return_by_a_signal(
    publish: Publish, store: Path, serving: Any
) -> None:
    for version in (1, 2):
        publish(version)
    with serving(store / "colors") as site:
        assert version_of(site) == 2
        set_channels(store, {}, {2: "wrong labels"})
        until(lambda: version_of(site) == 1)
        site.service.models.roll_back()
        assert version_of(site) == 1
        set_channels(store, {})
        until(lambda: version_of(site) == 2)


def test_if_every_version_is_yanked_the_loaded_one_stays_and_the_reason_is_shown(
    publish: Publish, store: Path, serving: Any
) -> None:
    publish(1)
    with serving(store / "colors") as site:
        set_channels(store, {}, {1: "wrong labels"})
        until(lambda: site.client.get("/readyz").json()["rejected"] is not None)
        status = site.client.get("/readyz").json()
        assert (status["version"], status["rejected"]["code"]) == (1, "version_yanked")
        assert "1 because wrong labels" in status["rejected"]["reason"]


def test_a_damaged_list_of_channels_changes_nothing_and_is_shown(publish: Publish, store: Path, serving: Any) -> None:
    publish(1)
    publish(2)
    with serving(store / "colors") as site:
        (store / "colors" / "channels.json").write_text("{")
        until(lambda: site.client.get("/readyz").json()["rejected"] is not None)
        status = site.client.get("/readyz").json()
        assert (status["version"], status["rejected"]["code"]) == (2, "channels_invalid")
        assert str(store) not in status["rejected"]["reason"]
        (store / "colors" / "channels.json").unlink()
        until(lambda: site.client.get("/readyz").json()["rejected"] is None)


def test_the_challenger_is_the_version_of_the_canary_channel(publish: Publish, store: Path) -> None:
    publish(1)
    publish(2)
    set_channels(store, {"stable": 1, "canary": 2})
    models = ModelRepository(
        [store / "colors"], TestLoader(open_narrow), challenger=Followed(store / "colors", "canary"), poll_s=0.01
    )
    models.start()
    try:
        until(lambda: models.ready and models.challenger is not None and models.challenger.current is not None)
        assert models.challenger is not None
        assert models.challenger.current is not None
        current = models.current()
        assert current is not None
        assert (current.manifest.version, models.challenger.current.manifest.version) == (1, 2)
    finally:
        models.close(WAIT_S)
