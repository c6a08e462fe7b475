"""Work on shards: in order, bounded, with the first error; what a configuration of the engine must have."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.validation import hash_files
from edgeline.pipeline.engine_config import EngineConfig, engine_config
from edgeline.pipeline.engines.map_shards import AHEAD, FEWEST, divide, map_shards
from edgeline.pipeline.runs.run import create_run, stated_config
from edgeline.serve.errors import ConfigError, EdgelineError
from edgeline.serve.preprocess import Limits

TWO = EngineConfig(workers=2)


def test_results_are_in_the_order_of_the_shards_whatever_finishes_first() -> None:
    others_done = threading.Event()

    def work(shard: int) -> int:
        if shard == 0:
            assert others_done.wait(30)
        if shard == 9:
            others_done.set()
        return shard

    finished: list[int] = []
    assert list(map_shards(work, range(12), TWO, finished=finished.append)) == list(range(12))
    assert sorted(finished) == list(range(12))
    assert finished.index(0) > 0


def test_shards_are_read_only_as_far_ahead_as_results_are_used() -> None:
    read = 0

    def shards() -> Iterator[int]:
        nonlocal read
        while read < 10_000:
            read += 1
            yield read

    results = map_shards(lambda shard: shard, shards(), TWO)
    for expected in range(1, 101):
        assert next(results) == expected
        assert read <= expected + AHEAD * TWO.workers
    results.close()
    assert read < 200


def test_the_first_error_in_order_is_raised_and_no_thread_is_left() -> None:
    before = threading.active_count()

    def work(shard: int) -> int:
        if shard in (3, 5):
            raise ValueError(f"shard {shard}")
        return shard

    used = []
    with pytest.raises(ValueError, match="shard 3"):
        used.extend(map_shards(work, range(100), TWO))
    assert threading.active_count() == before


@pytest.mark.parametrize("count", [0, 1, 31, 1000, 100_000])
def test_items_are_divided_into_consecutive_shards(count: int) -> None:
    shards = list(divide(range(count), 128))
    assert [item for shard in shards for item in shard] == list(range(count))
    assert all(1 <= len(shard) <= 128 for shard in shards)
    assert len(shards) >= min(count, FEWEST)


PROBLEMS = {
    "no address": ({"kind": "dask"}, r"engine: .*needs the address .* engine\.address=tcp://HOST:8786"),
    "an address of nothing": ({"address": "tcp://10.0.0.5:8786"}, r"not used by the kind local; set engine\.kind=dask"),
    "another engine": ({"kind": "ray"}, r"engine\.kind: .*'local' or 'dask'"),
    "workers of a cluster": ({"kind": "dask", "address": "tcp://h:1", "workers": 3}, "for the kind local only"),
}


@pytest.mark.parametrize(("values", "message"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_setting_that_does_not_fit_is_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [f"engine.{name}={value}" for name, value in values.items()])
    with pytest.raises(ConfigError, match=message):
        engine_config(**values)


def test_the_engine_is_no_part_of_a_run(tmp_path: Path) -> None:
    local = load_config(None, [], artifacts=str(tmp_path))
    cluster = load_config(None, ["engine.kind=dask", "engine.address=tcp://10.0.0.5:8786"], artifacts=str(tmp_path))
    assert create_run(local, "x").folder == create_run(cluster, "x").folder
    assert stated_config(local) == stated_config(cluster)


@pytest.mark.parametrize("address", ["nonsense", "http://127.0.0.1:8787"])
def test_an_address_that_is_none_is_one_line_with_what_to_start(address: str) -> None:
    with pytest.raises(EdgelineError, match="no Dask scheduler answers at .* start one with `dask scheduler") as caught:
        hash_files([__file__], Limits(), EngineConfig(kind="dask", address=address))
    assert caught.value.code == "engine_unreachable"
