"""Which package and which subpackage may import which, and what an import may load."""

import ast
import subprocess
import sys
from collections import Counter
from functools import cache

import pytest

from tests.support.structure import PACKAGES, ROOT, Module, cycles, project_imports, read_modules

NOT_ON_A_DEVICE = {"torch", "torchvision", "timm", "onnx", "onnxscript", "prefect", "pydantic", "sklearn"}
FORBIDDEN = {
    "serve": NOT_ON_A_DEVICE | {"pipeline", "export", "flows"},
    "pipeline": {"onnx", "onnxscript", "prefect", "export", "flows"},
    "export": {"prefect", "flows"},
    "flows": set(),
}
HTTP_LIBRARIES = {"starlette", "httptools", "prometheus_client", "python_multipart", "uvicorn", "anyio"}
SUBPACKAGE_FORBIDDEN = {
    "serve.inference": HTTP_LIBRARIES | {"serve.http"},
    "serve.http.transport": {"serve", "pipeline", "export", "flows"},
    "serve.artifact": {"onnxruntime", "serve.runtime", "serve.classifier", "serve.http", "serve.inference"},
    "serve.runtime": {"serve.classifier", "serve.http", "serve.inference", "serve.cli"},
    "serve.inputs": {"serve.http", "serve.inference", "serve.cli"},
    "serve.drift": {"onnxruntime", "serve.http", "serve.inference", "serve.cli"},
    "serve.http": {"serve.cli", "serve.labeling"},
    "serve.inbox": HTTP_LIBRARIES | {"serve.http", "serve.inference", "serve.labeling", "serve.cli"},
    "serve.labeling": {"serve.inference", "serve.cli"},
    "pipeline.runs": {
        "torch",
        "pipeline.data",
        "pipeline.models",
        "pipeline.training",
        "pipeline.evaluation",
        "pipeline.experiments",
    },
    "pipeline.data": {"torch", "pipeline.models", "pipeline.training", "pipeline.evaluation"},
    "pipeline.models": {"pipeline.training", "pipeline.evaluation"},
    "pipeline.training": {"pipeline.evaluation", "pipeline.experiments"},
    "pipeline.evaluation": {"pipeline.experiments"},
    "pipeline.experiments": {"torch", "pipeline.models", "pipeline.training"},
    "pipeline.explanation": {"pipeline.data", "pipeline.training", "pipeline.evaluation"},
    "export.graph": {"export.publishing", "export.verification", "export.emulation", "export.external"},
    "export.parity": {"export.publishing", "export.verification", "export.quantization", "export.converters"},
    "export.quantization": {"export.publishing", "export.verification"},
    "export.verification": {"export.publishing"},
    "flows.orchestration": {"flows.cli"},
}
"""A subpackage and what no module in it, or in a subpackage below it, may import."""
SUBPACKAGE_ALLOWED = {"serve.http.transport": {"serve.errors"}}
HEAVY = (NOT_ON_A_DEVICE | HTTP_LIBRARIES | {"matplotlib"}) - {"anyio", "python_multipart"}
PREFECT_SUBPACKAGE = "flows.orchestration"


@cache
def modules() -> dict[str, Module]:
    """All modules, which only the worker that runs these tests parses."""
    return read_modules()


def in_subpackage(module: Module, subpackage: str) -> bool:
    return module.name.startswith(f"{subpackage}.")


def starts_with(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_downwards(package: str) -> None:
    broken = {
        module.name: wrong
        for module in modules().values()
        if in_subpackage(module, package)
        and (wrong := {name.partition(".")[0] for name in module.eager | module.deferred} & FORBIDDEN[package])
    }
    assert broken == {}


@pytest.mark.parametrize("subpackage", SUBPACKAGE_FORBIDDEN)
def test_a_subpackage_imports_nothing_that_lies_above_it(subpackage: str) -> None:
    allowed = SUBPACKAGE_ALLOWED.get(subpackage, set())
    broken = {}
    for module in (module for module in modules().values() if in_subpackage(module, subpackage)):
        ours = {
            name
            for name in module.eager | module.deferred
            if not starts_with(name, subpackage) and not any(starts_with(name, other) for other in allowed)
        }
        # `from edgeline.serve import errors` names the package too.
        ours -= {name for name in ours if any(other.startswith(f"{name}.") for other in (*allowed, f"{subpackage}."))}
        if wrong := {name for name in ours for prefix in SUBPACKAGE_FORBIDDEN[subpackage] if starts_with(name, prefix)}:
            broken[module.name] = sorted(wrong)
    assert broken == {}


def test_no_two_modules_import_each_other() -> None:
    assert cycles({name: project_imports(module, modules()) for name, module in modules().items()}) == []


def test_no_import_cycle_is_hidden_in_functions() -> None:
    edges = {
        name: project_imports(module, modules()) | project_imports(module, modules(), deferred=True)
        for name, module in modules().items()
    }
    assert cycles(edges) == []


DEFERRED = {
    # The command line imports what a command needs when it runs: `edgeline predict` answers within a second.
    "serve.cli": "any",
    "serve.conformance.command": "any",
    "flows.cli": "any",
    # A step that is reused is recognized before torch is imported.
    "flows.steps": {"export.publishing.publish", "export.publishing.store"},
    "flows.fit": "any",
    "flows.operations.retrain": {
        *("export.promotion.challenge", "export.promotion.channels", "export.promotion.new_photos"),
        *("pipeline.data.image_record", "pipeline.data.prepare", "pipeline.data.samples"),
    },
    "flows.operations.teach": {
        "flows.steps",
        "pipeline.data.image_record",
        "pipeline.data.samples",
        "export.publishing.comparison",
    },
    # Needs an extra, and only with an option.
    "serve.http.main": {"serve.http.observability.tracing"},
    "export.publishing.publish": {"export.publishing.bundle"},
    # The child process limits its own memory before it loads ONNX Runtime.
    "serve.inference.sandbox": {"serve.classifier", "serve.preprocess"},
    # Telemetry is turned off before Prefect is imported, which takes seconds.
    "flows.orchestration.deployments.deployment": {
        "flows.orchestration.server",
        "flows.orchestration.deployments.automations",
        *(f"flows.orchestration.{name}" for name in ("flow", "monitoring", "store")),
        "pipeline.models.weights",
    },
    "flows.orchestration.flow": {"export.promotion.challenge"},
    "flows.orchestration.server": {"flows.orchestration.flow"},
}
"""Modules, or subpackages, that may import the project's modules within functions, and which ones."""


def test_imports_within_functions_are_those_that_start_up_time_needs() -> None:
    unexpected = {}
    for module in modules().values():
        allowed = next((names for prefix, names in DEFERRED.items() if starts_with(module.name, prefix)), set())
        deferred = project_imports(module, modules(), deferred=True) - project_imports(module, modules())
        if allowed != "any" and (wrong := deferred - set(allowed)):
            unexpected[module.name] = sorted(wrong)
    assert unexpected == {}


def test_a_subpackage_holds_two_to_twelve_files() -> None:
    subpackages = Counter(module.subpackage for module in modules().values())
    assert {subpackage: count for subpackage, count in subpackages.items() if not 2 <= count <= 12} == {}


def test_no_file_is_longer_than_four_hundred_lines() -> None:
    assert {name: module.lines for name, module in modules().items() if module.lines > 400} == {}


def test_prefect_is_imported_in_one_room_only() -> None:
    using = {m.name for m in modules().values() if any(starts_with(name, "prefect") for name in m.eager | m.deferred)}
    assert {name for name in using if not name.startswith(f"{PREFECT_SUBPACKAGE}.")} == set()


GUARD = 'not __name__.startswith("edgeline.")'


def test_a_package_file_holds_a_docstring_and_imports_nothing() -> None:
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("__init__.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
        rest = tree.body[1:]
        if path.parent.parent == ROOT:
            [guard] = rest
            assert isinstance(guard, ast.If), path
            assert ast.unparse(guard.test) == ast.unparse(ast.parse(GUARD).body[0].value), path
        else:
            assert rest == [], path


SHADOWED = {"onnx", "onnxruntime", "prefect", "torch", "numpy", "PIL", "typer", "openvino", "coremltools", "utils", "common"}


def test_no_module_shadows_a_dependency() -> None:
    assert {name for name in modules() if name.rpartition(".")[2] in SHADOWED} == set()


ENTRIES = {
    "the package": ("edgeline", HEAVY | {"numpy", "PIL", "onnxruntime", "typer", "rich"}),
    "the command line": ("edgeline.flows.cli.main", HEAVY),
    "the classifier": ("edgeline.serve.classifier", HEAVY),
    "the steps": ("edgeline.flows.steps", HEAVY - {"pydantic"}),
}


@pytest.mark.parametrize(("module", "heavy"), ENTRIES.values(), ids=ENTRIES)
def test_importing_an_entry_point_loads_nothing_heavy(module: str, heavy: set[str]) -> None:
    program = f"import sys, {module}; print(sorted({{name.partition('.')[0] for name in sys.modules}} & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.long
def test_everything_below_the_flow_imports_without_prefect() -> None:
    elsewhere = [
        name
        for name, module in modules().items()
        if not module.subpackage.startswith(PREFECT_SUBPACKAGE) and not module.subpackage.startswith("flows.cli")
    ]
    names = [f"edgeline.{name}" for name in elsewhere]
    needs_no_other_environment = [
        name for name in names if ".converters.to_" not in name and "inspect_coreml" not in name and ".checks." not in name
    ]
    program = (
        "import importlib, sys; sys.modules['prefect'] = None\n"
        f"for name in {needs_no_other_environment!r}: importlib.import_module(name)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
