"""The walls: who may import whom, and what an import may bring along."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FORBIDDEN = {
    "serve": {
        "torch",
        "torchvision",
        "timm",
        "onnx",
        "onnxscript",
        "prefect",
        "pydantic",
        "sklearn",
        "pipeline",
        "export",
        "flows",
    },
    "pipeline": {"onnx", "onnxscript", "prefect", "export", "flows"},
    "export": {"prefect", "flows"},
    "flows": set(),
}
HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxscript",
    "prefect",
    "pydantic",
    "sklearn",
    "matplotlib",
    "starlette",
    "uvicorn",
    "httptools",
    "prometheus_client",
}
PREFECT_MODULES = {
    "tasks.py",
    "line_flow.py",
    "run_report.py",
    "deployments.py",
    "server.py",
    "embedded.py",
    "embedded_server.py",
}


def imported_roots(source: str) -> set[str]:
    """Top-level names of everything a module imports, within functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_a_layer_imports_only_downwards(layer: str) -> None:
    broken = {}
    for path in sorted((ROOT / layer).rglob("*.py")):
        if wrong := imported_roots(path.read_text(encoding="utf-8")) & FORBIDDEN[layer]:
            broken[path.name] = sorted(wrong)
    assert broken == {}


def test_prefect_is_imported_by_the_modules_that_are_about_it_and_no_others() -> None:
    using = {
        path.name for path in (ROOT / "flows").glob("*.py") if "prefect" in imported_roots(path.read_text(encoding="utf-8"))
    }
    assert using <= PREFECT_MODULES


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_a_package_file_holds_a_docstring_and_imports_nothing(layer: str) -> None:
    tree = ast.parse((ROOT / layer / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_no_module_shadows_a_dependency(layer: str) -> None:
    names = {path.stem for path in (ROOT / layer).glob("*.py")}
    assert not names & {"onnx", "onnxruntime", "prefect", "torch", "http", "numpy", "PIL", "typer", "utils", "common"}


ENTRIES = {
    "the command line": ("edgeline.flows.cli.main", HEAVY),
    "the classifier": ("edgeline.serve.classifier", HEAVY),
    "the line": ("edgeline.flows.steps", HEAVY - {"pydantic"}),
}


@pytest.mark.parametrize(("module", "heavy"), ENTRIES.values(), ids=ENTRIES)
def test_importing_an_entry_point_loads_nothing_heavy(module: str, heavy: set[str]) -> None:
    program = f"import sys, {module}; print(sorted({{name.partition('.')[0] for name in sys.modules}} & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module",
    [
        "edgeline.flows.steps",
        "edgeline.flows.cli.run",
        "edgeline.export.publishing.publish",
        "edgeline.pipeline.training.train",
        "edgeline.export.verification.verify",
    ],
)
def test_below_the_flow_everything_works_without_prefect(module: str) -> None:
    program = f"import sys; sys.modules['prefect'] = None; import {module}"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
