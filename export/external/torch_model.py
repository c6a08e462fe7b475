"""PyTorch programs from elsewhere: TorchScript archives, and what `torch.export.save` wrote.

Both are code. TorchScript runs while it is loaded and can write files (`torch.from_file`); an exported program's shapes are
expressions that Python evaluates. So nothing is loaded that the user did not call trusted. What is refused even then are
the parts that need no trust to be a bad idea: pickles, which `torch.export.load` would read whole where its safe reading
fails, and compiled machine code.
"""

import io
import logging
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeline.export.external.model import Kind, Port, Precision, Program, last_line, port_of, records
from edgeline.serve.errors import VerificationError

SAVE = "save the program alone with torch.export.save"
FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
REFUSED = {
    "data/aotinductor/": "compiled machine code",
    "data/constants/custom_obj_": "pickled objects",
    "data/constants/opaque_obj_": "pickled objects",
}
"""Parts of an exported program's archive that are never loaded."""


def open_torch(path: Path, data: bytes, kind: Kind, *, like: Port, trusted: bool) -> Program:
    """Load a PyTorch program.

    Args:
        path: what to call it.
        data: the file's bytes.
        kind: what it is.
        like: what the file takes that is held against it: what a program takes that does not say so itself, if it can.
        trusted: whether the user says that its code may run.

    Raises:
        VerificationError: it is not trusted, cannot be loaded, or takes something else than images.
    """
    if not trusted:
        raise VerificationError(
            f"{path} is a {kind} program: loading it runs its code, with your rights; add --trust-program if you made it or "
            "trust who did",
            code="program_not_trusted",
        )
    with _quiet(), torch.no_grad():
        try:
            return _open_script(path, data, like) if kind == "TorchScript" else _open_exported(path, data, like)
        except VerificationError:
            raise
        except pickle.UnpicklingError as error:
            raise VerificationError(f"{path} holds pickled objects, which edgeline never loads; {SAVE}") from error
        except Exception as error:  # hostile or merely old archives: whatever the loader stumbles on
            raise VerificationError(f"{path} cannot be loaded by PyTorch {torch.__version__}: {last_line(error)}") from error


def _open_script(path: Path, data: bytes, like: Port) -> Program:
    module = torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]
    module.eval()
    half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in module.parameters())
    precision: Precision = "int8" if "quantized::" in str(module.inlined_graph) else "float16" if half else "float32"
    usual = replace(like, layout="NCHW", dtype="float16" if half else "float32")
    for port in (like, usual, replace(usual, batch=1)):
        program = Program(name=path.name, kind="TorchScript", precision=precision, port=port, outputs=_runner(module))
        try:
            program.outputs(_zeros(port))
        except Exception as error:  # TorchScript says nothing of its input but by failing
            reason = last_line(error)
        else:
            return program
    raise VerificationError(f"{path} takes neither {like} nor {usual}: {reason}", code="input_unclear")


def _open_exported(path: Path, data: bytes, like: Port) -> Program:
    names = records(path, data)
    for start, what in REFUSED.items():
        if any(name.startswith(start) for name in names):
            raise VerificationError(f"{path} holds {what}, which edgeline never loads; {SAVE}")
    exported = torch.export.load(io.BytesIO(data))
    taken = [node.meta["val"] for node in exported.graph.nodes if node.name in exported.graph_signature.user_inputs]
    if len(taken) != 1 or not isinstance(taken[0], Tensor):
        raise VerificationError(f"{path} is no classifier of images: it takes {len(taken)} inputs, expected one", code="inputs")
    dims = [dim if isinstance(dim, int) else None for dim in taken[0].shape]
    dtype = str(taken[0].dtype).removeprefix("torch.")
    port = port_of(path.name, dims, dtype, None if all(dims[1:]) else (like.height, like.width))
    kinds = {tensor.dtype for tensor in exported.state_dict.values()}
    precision: Precision = "float16" if kinds & {torch.float16, torch.bfloat16} else "float32"
    if any("quantize" in str(node.target) for node in exported.graph.nodes):
        precision = "int8"
    module = exported.module()
    return Program(
        name=path.name,
        kind="torch.export",
        precision=precision,
        port=port,
        outputs=_runner(module),
        layers=lambda images: _layers(module, images),
    )


def _runner(module: Any) -> Any:
    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(_named(module(torch.from_numpy(images)), "output"))

    return run


def _layers(module: torch.fx.GraphModule, images: np.ndarray) -> dict[str, list[np.ndarray]]:
    found: dict[str, list[np.ndarray]] = {}

    class Keeping(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            output = super().run_node(n)
            if isinstance(output, Tensor) and (path := _path(n)):
                found.setdefault(path, []).append(output.float().numpy().copy())  # an activation may work in place
            return output

    with torch.no_grad():
        Keeping(module).run(torch.from_numpy(images))
    return found


def _path(node: torch.fx.Node) -> str:
    """Path of the layer whose output a node gives; a batch norm's is that of the layer before it."""
    if node.op != "call_function" or len(node.args) < 2 or not isinstance(node.args[0], torch.fx.Node):
        return ""
    operator, weight = str(node.target), node.args[1]
    if "batch_norm" in operator:
        return _path(node.args[0])
    if not any(name in operator for name in ("conv", "linear")) or not isinstance(weight, torch.fx.Node):
        return ""
    return str(weight.target).removesuffix(".weight") if weight.op == "get_attr" else ""


def _named(found: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of an answer, however it is wrapped."""
    if isinstance(found, Tensor):
        yield name, (found.float() if found.dtype == torch.bfloat16 else found).cpu().numpy()
    elif isinstance(found, Mapping):
        for key, value in found.items():
            yield from _named(value, str(key))
    elif isinstance(found, Sequence) and not isinstance(found, str):
        for index, value in enumerate(found):
            yield from _named(value, f"{name}_{index}")


def _zeros(port: Port) -> np.ndarray:
    sides = (port.height, port.width)
    shape = (3, *sides) if port.layout == "NCHW" else (*sides, 3)
    return np.zeros((port.batch or 1, *shape), port.dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let no pickle be read whole, and PyTorch neither warn nor log: what fails is told by its error."""
    before, level = os.environ.get(FORCE), logging.root.manager.disable
    os.environ[FORCE] = "1"
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        os.environ.pop(FORCE)
        if before is not None:
            os.environ[FORCE] = before
