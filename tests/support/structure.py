"""The structure of the code: modules per subpackage, sizes, parameters and import cycles.

    python -m tests.support.structure [ROOT]

prints one JSON line. ROOT is a checkout, by default this one; the four packages may be imported with or without `edgeline.` in
front of their names.
"""

import ast
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("serve", "pipeline", "export", "flows")
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Module:
    """A source file, its imports and the sizes of its functions."""

    name: str
    """Dotted, without `edgeline.` in front."""
    path: Path
    tree: ast.Module
    lines: int
    eager: set[str] = field(default_factory=set)
    """Names that importing it imports, its own project's without `edgeline.` in front."""
    deferred: set[str] = field(default_factory=set)
    """Names that it imports within functions."""

    @property
    def subpackage(self) -> str:
        """Its folder, dotted."""
        return self.name.rpartition(".")[0]


def read_modules(root: Path = ROOT) -> dict[str, Module]:
    """Every module of the four packages by its name, except `__init__.py`."""
    modules = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            if path.name == "__init__.py":
                continue
            text = path.read_text(encoding="utf-8")
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            module = Module(name, path, ast.parse(text), len(text.splitlines()))
            for node, deferred in _imports(module.tree, deferred=False):
                (module.deferred if deferred else module.eager).update(_names(node))
            modules[name] = module
    return modules


def project_imports(module: Module, modules: dict[str, Module], *, deferred: bool = False) -> set[str]:
    """The project's modules that a module imports."""
    return {name for name in (module.deferred if deferred else module.eager) if name in modules}


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of two or more that import each other, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return found


def measure(root: Path) -> dict[str, object]:
    """The figures of a checkout."""
    modules = read_modules(root)
    subpackages: dict[str, int] = {}
    for module in modules.values():
        subpackages[module.subpackage] = subpackages.get(module.subpackage, 0) + 1
    functions = [node for module in modules.values() for node in ast.walk(module.tree) if isinstance(node, FUNCTION)]
    bodies = sorted(_body_lines(function) for function in functions)
    files = sorted(module.lines for module in modules.values())
    parameters = sorted(((_parameters(node), node.name) for node in functions), reverse=True)
    eager = {name: project_imports(module, modules) for name, module in modules.items()}
    every = {name: eager[name] | project_imports(module, modules, deferred=True) for name, module in modules.items()}
    return {
        "subpackages": subpackages,
        "files": {"count": len(files), "median": statistics.median(files), "p90": _p90(files), "largest": files[-1]},
        "over_400_lines": sorted(name for name, module in modules.items() if module.lines > 400),
        "bodies": {"count": len(bodies), "median": statistics.median(bodies), "p90": _p90(bodies), "largest": bodies[-1]},
        "most_parameters": parameters[:8],
        "over_5_parameters": sum(count > 5 for count, _ in parameters),
        "cycles": cycles(eager),
        "cycles_with_deferred_imports": cycles(every),
    }


def _imports(node: ast.AST, *, deferred: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import, and whether it is within a function; without what only type checkers execute."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, deferred
        elif isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _imports(other, deferred=deferred)
        else:
            yield from _imports(child, deferred=deferred or isinstance(child, FUNCTION))


def _names(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.Import):
        names = {alias.name for alias in node.names}
    else:
        names = {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("edgeline.") for name in names}


def _body_lines(function: FUNCTION) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def _parameters(function: FUNCTION) -> int:
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def _p90(values: list[int]) -> int:
    return values[int(0.9 * (len(values) - 1))]


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)))
