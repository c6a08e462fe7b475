"""A real Dask cluster on this machine: the same bytes, lost workers, and workers that differ."""

import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from edgeline.pipeline.config import PipelineConfig, load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.validation import hash_files
from edgeline.pipeline.engine_config import EngineConfig
from edgeline.serve.errors import EdgelineError
from edgeline.serve.preprocess import Limits
from tests.support.dask_processes import Cluster, dask_cluster

pytestmark = pytest.mark.long
EACH = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers; tests that end one start another."""
    with dask_cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of different pictures, large enough that a shard takes a while, and one that is broken."""
    folder = tmp_path_factory.mktemp("photos")
    for label, red in {"ants": 60, "bees": 120, "flies": 180}.items():
        (folder / label).mkdir()
        for index in range(EACH):
            picture = Image.linear_gradient("L").resize((640, 480)).rotate(index)
            Image.merge("RGB", (picture, picture.point(lambda level, index=index: level * index // EACH), picture.point(
                lambda level, red=red: red))).save(folder / label / f"{index}.jpg")  # fmt: skip
    (folder / "ants" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    return folder


def configured(photos: Path, artifacts: Path, cluster: Cluster | None) -> PipelineConfig:
    engine = ["engine.kind=dask", f"engine.address={cluster.address}"] if cluster else []
    return load_config(None, engine, data=str(photos), artifacts=str(artifacts))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "receipt.json"}


def test_prepare_writes_the_same_bytes_as_on_one_machine(cluster: Cluster, photos: Path, tmp_path: Path) -> None:
    local_run, local = prepare(configured(photos, tmp_path / "local", None))
    run, result = prepare(configured(photos, tmp_path / "dask", cluster))
    assert run.folder.name == local_run.folder.name
    assert contents(result.folder) == contents(local.folder)
    assert prepare(configured(photos, tmp_path / "dask", None))[1].reused


def test_a_worker_that_is_killed_in_mid_run_loses_nothing(cluster: Cluster, photos: Path, tmp_path: Path) -> None:
    killed = threading.Event()

    def kill_one() -> None:
        """As soon as the first results are in the cache, so the workers are busy."""
        cache = tmp_path / "dask" / "cache" / "images.sqlite"
        while not killed.is_set() and not (cache.exists() and cache.stat().st_size > 40_000):
            time.sleep(0.005)
        cluster.workers[0].send_signal(signal.SIGKILL)
        killed.set()

    thread = threading.Thread(target=kill_one)
    thread.start()
    try:
        _, result = prepare(configured(photos, tmp_path / "dask", cluster))
        in_time = killed.is_set()
    finally:
        killed.set()
        thread.join()
        cluster.workers.pop(0).wait()
        cluster.add_worker()
    assert in_time
    _, local = prepare(configured(photos, tmp_path / "local", None))
    assert contents(result.folder) == contents(local.folder)


def test_a_worker_with_another_version_is_named_before_any_work(cluster: Cluster, photos: Path, tmp_path: Path) -> None:
    described = tmp_path / "path" / "edgeline-0.0.9.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: edgeline\nVersion: 0.0.9\n")
    cluster.add_worker({"PYTHONPATH": str(tmp_path / "path"), "PYTHONSAFEPATH": "1"})  # not the metadata of the working folder
    try:
        with pytest.raises(EdgelineError, match=r"worker tcp://\S+ has edgeline 0\.0\.9, this process has 0\.1\.0") as caught:
            prepare(configured(photos, tmp_path / "artifacts", cluster))
        assert caught.value.code == "worker_differs"
        assert not (tmp_path / "artifacts" / "cache" / "images.sqlite").exists()
    finally:
        worker = cluster.workers.pop()
        worker.kill()
        worker.wait()


def test_a_worker_without_the_files_is_named_before_any_work(
    cluster: Cluster, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A size that only this process sees stands in for a folder that is not mounted there: all processes share this disk."""
    from edgeline.pipeline.engines import dask_cluster as engine

    monkeypatch.setattr(engine, "size_of", lambda path: 1)
    with pytest.raises(EdgelineError, match=r"worker tcp://\S+ has another file at .*; mount the same folder there") as caught:
        prepare(configured(photos, tmp_path / "artifacts", cluster))
    assert caught.value.code == "worker_files"


def test_a_scheduler_that_is_lost_ends_the_call_with_one_line(photos: Path, tmp_path: Path) -> None:
    with dask_cluster(tmp_path, workers=1) as own:
        config = configured(photos, tmp_path / "artifacts", own)
        hash_files([str(path) for path in sorted(photos.rglob("*.jpg"))], Limits(), config.engine)

        def kill_scheduler() -> None:
            cache = tmp_path / "artifacts" / "cache" / "images.sqlite"
            while not cache.exists():
                time.sleep(0.005)
            own.scheduler.send_signal(signal.SIGKILL)

        thread = threading.Thread(target=kill_scheduler)
        thread.start()
        with pytest.raises(EdgelineError) as caught:
            prepare(config)
        thread.join()
    assert caught.value.code in ("engine_lost", "engine_unreachable")


@pytest.mark.parametrize("kind", ["nothing", "a server of another kind", "a scheduler without a worker"])
def test_an_address_that_does_not_answer_is_one_line_within_seconds(kind: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        if kind == "nothing":
            other.close()
        if kind != "a scheduler without a worker":
            with pytest.raises(EdgelineError, match="no Dask scheduler answers at tcp://"):
                hash_files([__file__], Limits(), EngineConfig(kind="dask", address=address))
            return
    with (
        dask_cluster(tmp_path, workers=0) as own,
        pytest.raises(EdgelineError, match="has no worker; .* start `dask worker tcp"),
    ):
        hash_files([__file__], Limits(), EngineConfig(kind="dask", address=own.address))


def test_scoring_writes_the_same_bytes_as_on_one_machine(
    cluster: Cluster, make_artifact: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    from edgeline.flows.operations.score import ScoreOptions, score
    from edgeline.serve.artifact.channels import Followed

    followed = Followed(make_artifact())
    engine = EngineConfig(kind="dask", address=cluster.address)
    score(followed, photos, str(tmp_path / "local"))
    score(followed, photos, str(tmp_path / "dask"), ScoreOptions(engine=engine))
    parts = {path.name: path.read_bytes() for path in (tmp_path / "local").glob("*.parquet")}
    assert len(parts) > 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "dask").glob("*.parquet")} == parts
    shutil.rmtree(tmp_path / "local")
    assert score(followed, photos, str(tmp_path / "dask")).reused == len(parts)
