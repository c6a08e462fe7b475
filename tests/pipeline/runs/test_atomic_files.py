import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgeline.pipeline.runs.atomic_files import digest_of, replace_file, write_json


def test_a_value_that_is_not_part_of_json_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "a.json", {"loss": math.nan})
    assert digest_of([1, "a"]) == digest_of((1, "a"))


def test_json_is_indented_and_not_escaped(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "猫"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "name": "猫"\n}\n'


def test_a_file_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    replace_file(path, lambda new: write_json(new, 1))

    def fail(new: Path) -> None:
        new.write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        replace_file(path, fail)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["1\n"]


def test_a_file_can_be_replaced_by_many_threads_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: replace_file(path, lambda new: write_json(new, [number] * 1000)), range(64)))
    assert len(set(json.loads(path.read_text()))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
