"""Digest of the code that produces a result: a module and every module of this project that it imports.

    code_digest("edgeline.pipeline.training.train")

The closure is static: it follows import statements, including those within functions, and string literals that are module
names, by which subprocesses and build functions are referenced. No module is imported. Templates in a `templates/` folder
next to a module belong to it.

Parsing all modules takes half a second, so the imports of a module are cached by its size and modification time.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeline.pipeline.runs.atomic_files import digest_of, file_digest, replace_file, write_json

ROOT = Path(__file__).parents[3]
"""The folder that contains the package `edgeline`, whose links to the four folders are not resolved."""
EXCLUDED = frozenset(
    {
        "edgeline.serve.errors",  # messages
        "edgeline.pipeline.progress",  # bars on the terminal
        "edgeline.pipeline.config",  # settings are in the key by value
        "edgeline.pipeline.config_file",
        "edgeline.pipeline.config_section",
        "edgeline.pipeline.engine_config",
        "edgeline.pipeline.engines.map_shards",  # where work is done
        "edgeline.pipeline.engines.pool",
        "edgeline.pipeline.train_config",
        "edgeline.pipeline.names",
        "edgeline.pipeline.thresholds",
        "edgeline.pipeline.runs.atomic_files",  # how results are stored
        "edgeline.pipeline.runs.code_digest",
        "edgeline.pipeline.runs.content_cache",
        "edgeline.pipeline.runs.receipts",
        "edgeline.pipeline.runs.run",
        "edgeline.pipeline.runs.step",
    }
)
"""Modules that cannot change a result."""
MODULE_NAME = re.compile(r"(edgeline(?:\.\w+)+)(?::\w+)?")


@dataclass(frozen=True, slots=True)
class Source:
    """Digest and imports of a module's source file."""

    size: int
    mtime_ns: int
    sha256: str
    uses: tuple[str, ...]
    """Modules of this project that it imports or names."""


_sources: dict[str, Source] = {}
_loaded: set[Path] = set()


def code_digest(*modules: str, cache: Path | None = None) -> str:
    """Return the digest of modules and of every module of this project that they import, directly or indirectly.

    Args:
        modules: dotted names.
        cache: JSON file that stores parsed imports between processes. A missing or damaged file is written again.

    Returns:
        SHA-256, hexadecimal.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    return digest_of(closure(*modules, cache=cache))


def closure(*modules: str, cache: Path | None = None) -> dict[str, str]:
    """Return the SHA-256 of every source file that `code_digest` covers, by module name or, for a template, by path.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    if cache is not None:
        _load(cache)
    known = dict(_sources)
    digests: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in digests or name in EXCLUDED:
            continue
        source = _read(name)
        digests[name] = source.sha256
        digests.update(_templates(name))
        waiting.extend(used for used in source.uses if _path(used).is_file())
    if cache is not None and known != _sources:
        _save(cache)
    return digests


def forget_sources() -> None:
    """Forget what was parsed in this process, as if it had just started."""
    _sources.clear()
    _loaded.clear()


def _path(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def _read(module: str) -> Source:
    path = _path(module)
    try:
        status = path.stat()
    except OSError as error:
        raise ModuleNotFoundError(f"no module {module}: {path} does not exist", name=module) from error
    cached = _sources.get(module)
    if cached is not None and (cached.size, cached.mtime_ns) == (status.st_size, status.st_mtime_ns):
        return cached
    data = path.read_bytes()
    uses = tuple(sorted(set(_uses(ast.parse(data, path)))))
    source = Source(status.st_size, status.st_mtime_ns, hashlib.sha256(data).hexdigest(), uses)
    _sources[module] = source
    return source


def _uses(tree: ast.AST) -> Iterator[str]:
    """Yield the names of this project's modules in import statements and string literals."""
    for node in _walk(tree):
        if isinstance(node, ast.Import):
            names: Iterable[str] = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]
        else:
            continue
        yield from (match[1] for name in names if (match := MODULE_NAME.fullmatch(name)))


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """As `ast.walk`, without code that only type checkers read."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _walk(other)
        else:
            yield from _walk(child)


def _templates(module: str) -> dict[str, str]:
    folder = _path(module).with_name("templates")
    return {path.relative_to(ROOT).as_posix(): file_digest(path) for path in sorted(folder.glob("*")) if path.is_file()}


def _load(cache: Path) -> None:
    if cache in _loaded:
        return
    _loaded.add(cache)
    try:
        entries = json.loads(cache.read_bytes())
        _sources.update({name: Source(**entry | {"uses": tuple(entry["uses"])}) for name, entry in entries.items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return


def _save(cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    entries = {name: asdict(source) for name, source in sorted(_sources.items())}
    replace_file(cache, lambda path: write_json(path, entries))
