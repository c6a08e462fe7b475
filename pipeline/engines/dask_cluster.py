"""The engine of a Dask cluster: `dask scheduler` on one machine, `dask worker` on each that works.

When a worker is lost, Dask gives its shards to another one, without a notice.

A scheduler and its workers exchange pickled objects: anyone who can reach them can run code there and here. Keep them
in a trusted network, or use Dask's own TLS (addresses that start with `tls://`).
"""

import asyncio
import logging
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeline.pipeline.engine_config import EngineConfig
from edgeline.pipeline.engines.pool import Needs, Pool
from edgeline.pipeline.engines.worker_identity import Checked, difference, identity, module_of, size_of
from edgeline.serve.errors import EdgelineError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from distributed import Client

ANSWER_S = 5
"""Within which the scheduler has to answer, and to know a worker."""
REPLACEMENT_S = 60
"""Within which a new worker has to come when all are lost."""


@contextmanager
def dask_pool(engine: EngineConfig, work: Callable[[Any], Any], needs: Needs) -> Iterator[Pool]:
    """Connect to a cluster, and compare its workers with this process.

    Raises:
        EdgelineError: the address does not answer, there is no worker, or one differs from this process; later, that the
            cluster was lost, or that a shard ended worker after worker.
    """
    from distributed.scheduler import KilledWorker

    address = engine.address
    client = _connect(address)
    try:
        _wait_for_workers(client, address, ANSWER_S)
        packages = (*needs.packages, "distributed")
        expected = identity(module_of(work), packages)
        _compare(client, expected, Needs(paths=needs.paths, packages=packages), module_of(work))
        executor = client.get_executor(pure=False)
        try:
            yield Pool(
                executor=_Checking(executor, packages, dict(expected)),  # type: ignore[arg-type]
                workers=sum(client.nthreads().values()),
                check=lambda: _wait_for_workers(client, address, REPLACEMENT_S),
            )
        finally:
            executor.shutdown(wait=False)
    except KilledWorker as error:
        raise EdgelineError(
            f"a shard ended the process of {error.allowed_failures + 1} workers of {address} one after another, the last "
            f"one at {error.last_worker.address}; see their logs: most often a worker has too little memory",
            code="worker_killed",
        ) from error
    except (CancelledError, asyncio.CancelledError) as error:
        raise EdgelineError(
            f"the scheduler at {address} was lost; what is finished is kept: start it again, and repeat the command",
            code="engine_lost",
        ) from error
    finally:
        client.close()


@dataclass(frozen=True)
class _Checking:
    """Submits work together with the check of where it runs."""

    executor: Any
    packages: tuple[str, ...]
    expected: dict[str, str]

    def submit(self, work: Callable[[Any], Any], shard: Any) -> "Future[Any]":
        future: Future[Any] = self.executor.submit(Checked(work, self.packages, self.expected), shard)
        return future


def _connect(address: str) -> "Client":
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # its errors are raised here too
    try:
        # First alone: a client waits for ever for a server that is no scheduler. In a thread: a notebook has a loop already.
        with ThreadPoolExecutor(1) as pool:
            kind = pool.submit(lambda: asyncio.run(asyncio.wait_for(_identify(address), ANSWER_S))).result()
        if kind != "Scheduler":
            raise ValueError(f"it is a {kind.lower()}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions that differ; they are compared below
            return Client(address, timeout=ANSWER_S, set_as_default=False, name="edgeline")
    except (OSError, ValueError, TimeoutError) as error:
        raise EdgelineError(
            f"no Dask scheduler answers at {address} ({' '.join(str(error).split())[:200] or f'none in {ANSWER_S} s'}); start "
            "one with `dask scheduler --port 8786`, and on each machine `dask worker tcp://HOST:8786 --nthreads 1 --nworkers "
            "auto`",
            code="engine_unreachable",
        ) from error


async def _identify(address: str) -> str:
    """The kind of the Dask process at an address."""
    from distributed import Security, rpc

    arguments = Security().get_connection_args("client")
    async with rpc(address, connection_args=arguments, timeout=ANSWER_S) as process:
        return str((await process.identity())["type"])


def _wait_for_workers(client: "Client", address: str, seconds: float) -> None:
    try:
        client.wait_for_workers(1, timeout=seconds)
    except TimeoutError as error:
        raise EdgelineError(
            f"the Dask scheduler at {address} has no worker; on each machine start `dask worker {address} --nthreads 1 "
            "--nworkers auto`",
            code="engine_without_workers",
        ) from error


def _compare(client: "Client", expected: Any, needs: Needs, module: str) -> None:
    """Compare every worker with this process.

    Raises:
        EdgelineError: one has other versions or code, or does not see the same files.
    """

    def describe(module: str, packages: tuple[str, ...], paths: tuple[str, ...]) -> Any:
        # Pickled by value, because it is nested: a worker may lack this module.
        from importlib.metadata import PackageNotFoundError, version

        try:
            from edgeline.pipeline.engines import worker_identity
        except ImportError:
            try:
                return {"edgeline": version("edgeline")}, {}
            except PackageNotFoundError:
                return {"edgeline": "none"}, {}
        try:
            found = worker_identity.identity(module, packages)
        except ImportError:
            return {"edgeline": worker_identity.installed("edgeline"), "code": "other"}, {}
        return dict(found), {path: worker_identity.size_of(path) for path in paths}

    sizes = {path: size for path in needs.paths if isinstance(size := size_of(path), int)}
    described = client.run(describe, module, needs.packages, tuple(sizes))
    for worker, (found, seen) in sorted(described.items()):
        if message := difference(worker, found, expected):
            raise EdgelineError(message, code="worker_differs")
        for path, size in sizes.items():
            if seen.get(path) == size:
                continue
            what = f"cannot read {path}: {seen[path]}" if isinstance(seen[path], str) else f"has another file at {path}"
            raise EdgelineError(f"worker {worker} {what}; mount the same folder there, at the same path", code="worker_files")
