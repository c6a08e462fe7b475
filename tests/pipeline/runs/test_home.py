import os
import pwd
from pathlib import Path

import pytest

from edgeline.pipeline.runs.home import ensure_home


def no_entry(user: int) -> pwd.struct_passwd:
    raise KeyError(f"getpwuid(): uid not found: {user}")


def test_the_artifacts_folder_is_the_home_of_a_user_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F9: an arbitrary user id in a container."""
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    monkeypatch.chdir(tmp_path)
    ensure_home(Path("artifacts"))
    assert Path.home() == tmp_path / "artifacts"
    assert Path.home().is_dir()


@pytest.mark.parametrize("variable", ["HOME", None], ids=["F9-HOME", "F9-an entry of the user"])
def test_a_home_is_kept(variable: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if variable is None:
        monkeypatch.delenv("HOME")
    before = os.environ.get("HOME")
    ensure_home(tmp_path / "artifacts")
    assert os.environ.get("HOME") == before
    assert not (tmp_path / "artifacts").exists()
