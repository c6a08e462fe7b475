"""Load a local file of weights into a network.

    loaded = load_weights_file(module, Path("model_best.pth.tar"))
    print(loaded)    # weights model_best.pth.tar: 320 of 320 tensors loaded, from its state_dict, without the prefix 'module.'

The content decides the format, not the name: safetensors, or a zip or legacy file of `torch.save`. Only tensors and plain
values are unpickled, so a file cannot run code.

Two common wrappings are undone if the tensors match afterwards: a state dict inside other dicts (`{"state_dict": ...}`), and a
prefix of all names (`module.`, from `DataParallel`).
"""

import json
import logging
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeline.serve.errors import WeightsError

AGAIN = "; download or copy it again"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
ZIP = b"PK\x03\x04"
LEGACY = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""The number that files of `torch.save` began with before they were zip archives, as a pickle."""
OTHER_FORMATS = {
    b"\x1f\x8b": "is compressed with gzip; decompress it first",
    b"\x89HDF": "is an HDF5 file, probably of Keras, whose networks are not supported",
}
MAX_DEPTH = 3
"""Of nested dicts that are searched for a state dict."""
BLOCKED = re.compile(
    r"Unsupported global: GLOBAL (\S+) was not|Trying to load unsupported GLOBAL (\S+) whose module \S+ is blocked"
)
"""In the error of torch's restricted unpickler: the class or function that it did not import."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedWeights:
    """What of a file was loaded, and which wrappings were undone."""

    path: str
    matched: int
    """Tensors of the network that were loaded."""
    total: int
    """Tensors of the network, with its own classifier."""
    unused: int
    """Tensors of the state dict that the network does not have, or has in another shape, such as the classifier."""
    container: str
    """Keys of the dicts around the state dict, with dots: `state_dict`; empty if there is none."""
    prefix: str
    """Prefix that was removed from every name; may be empty."""
    others: tuple[str, ...]
    """Other state dicts in the file that fit too; this one is the average of the weights (EMA)."""

    def __str__(self) -> str:
        parts = [f"weights {self.path}: {self.matched} of {self.total} tensors loaded"]
        if self.container:
            parts.append(f"from its {self.container}")
        if self.prefix:
            parts.append(f"without the prefix {self.prefix!r}")
        if self.others:
            parts.append(f"which are averaged (EMA) and so preferred to {' and '.join(self.others)}")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    """A state dict in the file, seen through one prefix of its names."""

    container: str
    prefix: str
    state: dict[str, Tensor]
    """The tensors that the network has in the same shape, under its names."""
    missing: list[str]
    """Names of the network, without the classifier's, that are not in `state`."""
    unused: int

    @property
    def title(self) -> str:
        parts = [self.container or "the file itself", *([f"prefix {self.prefix}"] if self.prefix else [])]
        return " with ".join(parts)


def load_weights_file(module: nn.Module, path: Path) -> LoadedWeights:
    """Load a file of weights into a network in place. The classifier may be for other classes; everything else must match.

    Args:
        module: the network, with its own classifier.
        path: a safetensors file, or one that `torch.save` wrote.

    Raises:
        WeightsError: the file is damaged, is something else, contains objects other than tensors and plain values, does not
            fit, or contains several state dicts that fit.
    """
    candidates = list(_candidates(_read(path), module.state_dict(), _classifier_name(module)))
    if not candidates:
        raise WeightsError(f"weights file {path} does not contain a state dict (tensors by name); save model.state_dict()")
    chosen, others = _choose(path, [candidate for candidate in candidates if not candidate.missing], candidates)
    module.load_state_dict(chosen.state, strict=False)
    loaded = LoadedWeights(
        path=str(path),
        matched=len(chosen.state),
        total=len(module.state_dict()),
        unused=chosen.unused,
        container=chosen.container,
        prefix=chosen.prefix,
        others=tuple(other.title for other in others),
    )
    log.info("%s", loaded)
    return loaded


def _choose(path: Path, fitting: list[_Candidate], all_found: list[_Candidate]) -> tuple[_Candidate, list[_Candidate]]:
    """The state dict to load, and the others that fit too. Of several, only an averaged one (EMA) is preferred, as in timm."""
    if not fitting:
        closest = max(all_found, key=lambda candidate: len(candidate.state))
        missing, first = len(closest.missing), closest.missing[0]
        raise WeightsError(
            f"weights file {path} does not fit the network: {missing} of {missing + len(closest.state)} tensors are missing or "
            f"have another shape, the first is {first} (closest match: {closest.title}); set model to the one that they are of"
        )
    averaged = [candidate for candidate in fitting if re.search(r"(^|[._])ema([._]|$)", candidate.container)]
    if len(fitting) == 1 or len(averaged) == 1:
        [chosen] = averaged if len(averaged) == 1 else fitting
        return chosen, [candidate for candidate in fitting if candidate is not chosen]
    titles = ", ".join(candidate.title for candidate in fitting)
    raise WeightsError(
        f"weights file {path} contains {len(fitting)} state dicts that fit: {titles}; save the one to use in a file of its own "
        "with torch.save"
    )


def _candidates(value: Any, own: Mapping[str, Tensor], classifier: str) -> Iterator[_Candidate]:
    """All state dicts in a loaded file, each with every prefix that leads to names of the network."""
    required = [name for name in own if name.rpartition(".")[0] != classifier and not name.endswith("num_batches_tracked")]
    for container, tensors in _state_dicts(value):
        for prefix in _prefixes(tensors, required):
            found = {name: tensors[prefix + name] for name in own if prefix + name in tensors}
            state = {name: tensor for name, tensor in found.items() if tensor.shape == own[name].shape}
            yield _Candidate(
                container=container,
                prefix=prefix,
                state=state,
                missing=[name for name in required if name not in state],
                unused=len(tensors) - len(state),
            )


def _state_dicts(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if not isinstance(value, Mapping) or len(keys) > MAX_DEPTH:
        return
    named = {key: inner for key, inner in value.items() if isinstance(key, str)}
    if tensors := {key: inner for key, inner in named.items() if isinstance(inner, Tensor)}:
        yield ".".join(keys), tensors
    for key, inner in named.items():
        yield from _state_dicts(inner, (*keys, key))


def _prefixes(names: Mapping[str, Tensor], required: Sequence[str]) -> list[str]:
    """What stands before the network's own names in a state dict; the empty prefix if none of them occurs."""
    found = {
        name.removesuffix(reference)
        for reference in required[:3]
        for name in names
        if name == reference or name.endswith(f".{reference}")
    }
    return sorted(found) or [""]


def _classifier_name(module: nn.Module) -> str:
    linears = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    return linears[-1] if linears else "classifier"


def _read(path: Path) -> Any:
    """Read a file as tensors and plain values."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise WeightsError(f"weights file {path}: {error.strerror}") from error
    if problem := _problem(start, path):
        raise WeightsError(f"weights file {path} {problem}")
    try:
        if _is_safetensors(start):
            return load_file(path)
        with path.open("rb") as file:  # of a path, torch would believe the extension
            return torch.load(file, weights_only=True, map_location="cpu")
    except MemoryError:
        raise
    except SafetensorError as error:
        raise WeightsError(f"weights file {path} is a damaged safetensors file ({error}){AGAIN}") from error
    except Exception as error:  # unpickling fails in many ways
        raise WeightsError(f"weights file {path} {_why_not_loaded(path, start, error)}") from error


def _problem(start: bytes, path: Path) -> str:
    """What is wrong with a file, by its first bytes and its size; empty if it may contain weights."""
    size = path.stat().st_size
    if not start:
        return f"is empty{AGAIN}"
    if start.startswith(LFS_POINTER):
        return "is a pointer of Git LFS, not the file that it stands for: run git lfs pull"
    if start.lstrip().startswith(b"<"):
        return f"is a web page or XML, probably an error page in place of the download{AGAIN}"
    if other := next((text for magic, text in OTHER_FORMATS.items() if start.startswith(magic)), ""):
        return other
    if start.startswith(ZIP):
        return _problem_of_zip(path)
    if _is_safetensors(start) and (expected := _safetensors_size(path)) > size:
        return f"is incomplete: {size:,} of {expected:,} bytes{AGAIN}"
    if _is_safetensors(start) or LEGACY in start[:40]:
        return ""
    what = "a Python pickle" if start.startswith(b"\x80") else f"it begins with {start[:24]!r}"
    return (
        f"is neither a safetensors file nor one of torch.save ({what}); download it again, or save model.state_dict() with "
        "torch.save"
    )


def _problem_of_zip(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return f"is incomplete: the end of its zip archive is missing after {path.stat().st_size:,} bytes{AGAIN}"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return f"is a zip archive without weights of PyTorch (it has {', '.join(names[:3]) or 'no files'}); extract it first"
    if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
        return (
            "is a TorchScript program, expected its tensors; if you trust its author, save them: "
            f"model = torch.jit.load({path.name!r}); torch.save(model.state_dict(), 'weights.pth')"
        )
    return ""


def _is_safetensors(start: bytes) -> bool:
    """Whether a file begins with the length of a JSON header, eight bytes, and its opening brace."""
    return start[5:9] == b"\0\0\0{"


def _safetensors_size(path: Path) -> int:
    """The size of a safetensors file by its header, in bytes; 0 if the header is invalid."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return 8 + length
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return 8 + length + max(ends, default=0)
        except (ValueError, KeyError, TypeError, IndexError):
            return 0


def _why_not_loaded(path: Path, start: bytes, error: Exception) -> str:
    """Why torch did not load a file, and what to do."""
    # torch puts its advice to turn off the protection before the cause, which it keeps as the context.
    context = error.__context__ if isinstance(error, UnpicklingError) else None
    cause = " ".join(str(context or error).split()) or type(error).__name__
    blocked = BLOCKED.match(cause)
    if blocked is None:
        cut = isinstance(error, (EOFError, struct.error)) or "unexpected EOF" in cause
        what = "is incomplete" if cut else "cannot be read as tensors only"
        return f"{what} ({cause[:160]}){AGAIN}, or save model.state_dict() again"
    if blocked[2]:
        return f"contains {blocked[2]}, which only a file that is made to run code contains: do not use it"
    name, load = blocked[1], f"torch.load({path.name!r}, weights_only=False)"
    if name == _root_class(path, start):
        return (
            f"is a whole pickled model of class {name}, expected its tensors: unpickling it runs code from the file; if you "
            f"trust its author, save the tensors: model = {load}; torch.save(model.state_dict(), 'weights.pth')"
        )
    return (
        f"contains {name} besides tensors, which is not unpickled because that can run code from the file; if you trust its "
        f"author, save the tensors alone: checkpoint = {load}; torch.save(checkpoint['state_dict'], 'weights.pth'), with the "
        "key that it has in this file, or checkpoint['model'].state_dict() for a whole model"
    )


def _root_class(path: Path, start: bytes) -> str:
    """The class of the object that a pickle consists of; empty for a dict or list. Nothing is unpickled."""
    if start.startswith(ZIP):
        with zipfile.ZipFile(path) as archive:
            member = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
            with archive.open(member) as file:
                return _first_class(file)
    with path.open("rb") as file:
        for _ in range(3):  # the magic number, the version and the byte order precede the object
            list(pickletools.genops(file))
        return _first_class(file)


def _first_class(file: IO[bytes]) -> str:
    strings: list[str] = []
    for operation, argument, _ in pickletools.genops(file):
        match operation.name:
            case "PROTO" | "FRAME" | "MEMOIZE" | "BINPUT" | "MARK":
                continue
            case "GLOBAL":
                return str(argument).replace(" ", ".")
            case "STACK_GLOBAL":
                return ".".join(strings)
            case _ if isinstance(argument, str) and len(strings) < 2:
                strings.append(argument)
            case _:
                return ""
    return ""
