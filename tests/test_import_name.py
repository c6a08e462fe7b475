"""The one import name: from the repository, and from a wheel in a folder with a user's own modules of the same names."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.structure import PACKAGES, ROOT, read_modules

PUBLIC = ("Classifier", "Prediction", "__version__", "fit")


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_old_import_path_fails_and_names_the_new_one(package: str) -> None:
    done = run_python(f"import {package}", ROOT)
    assert done.returncode == 1
    assert f"ImportError: import edgeline.{package} instead of {package}" in done.stderr


def test_the_old_way_to_import_the_classifier_is_an_import_error() -> None:
    done = run_python("from serve.classifier import Classifier", ROOT)
    assert done.stderr.splitlines()[-1].startswith("ImportError: import edgeline.serve instead of serve")


def test_no_module_can_be_imported_under_two_names() -> None:
    names = [f"edgeline.{name}" for name in read_modules() if name.startswith(("serve.artifact", "serve.drift", "serve.cli"))]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "from pathlib import Path\n"
        "ours = [module for name, module in sys.modules.items() if name.startswith('edgeline')]\n"
        "real = [Path(module.__file__).resolve() for module in ours]\n"
        "assert len(real) == len(set(real)), 'a file is imported twice'\n"
        f"for package in {PACKAGES!r}:\n"
        "    try: importlib.import_module(package)\n"
        "    except ImportError: pass\n"
        "    else: raise SystemExit(package)"
    )
    done = run_python(code, ROOT)
    assert done.returncode == 0, done.stderr + done.stdout


def test_the_public_names_are_resolved_on_first_use() -> None:
    code = (
        "import edgeline, sys\n"
        "assert 'numpy' not in sys.modules\n"
        f"for name in {PUBLIC!r}: assert getattr(edgeline, name), name\n"
        f"assert set({PUBLIC!r}) <= set(dir(edgeline))\n"
        "try: edgeline.nothing\n"
        "except AttributeError as error: print(error)"
    )
    assert run_python(code, ROOT).stdout == "module 'edgeline' has no attribute 'nothing'\n"


@pytest.fixture(name="wheel", scope="module")
def built_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.mark.long
def test_the_wheel_holds_edgeline_alone_and_every_file_of_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"edgeline"}
    sources = {
        f"edgeline/{path.relative_to(ROOT).as_posix()}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources - names == set()
    assert "edgeline/py.typed" in names


USERS_FILES = ("serve.py", "flows.py", "pipeline.py", "export/__init__.py")


def test_a_users_own_modules_of_the_old_names_change_nothing(wheel: Path, tmp_path: Path) -> None:
    for name in USERS_FILES:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit('a module of the user was imported')\n")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    # The repository is not on this path: what is imported is what the wheel holds.
    code = (
        "import sys; sys.path.insert(1, 'site')\n"
        "from edgeline import Classifier\n"
        "import edgeline\n"
        "print(Classifier.__module__, edgeline.__file__)"
    )
    done = run_python(code, tmp_path)
    assert done.stdout.split() == ["edgeline.serve.classifier", str(tmp_path / "site" / "edgeline" / "__init__.py")], (
        done.stderr
    )
