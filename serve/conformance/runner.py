"""Run the checks with pytest in this process, without the caller's pytest configuration or plugins.

The result depends on the server alone.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from edgeline.serve.conformance.catalogue import FOLDER, GROUPS, Check, checks
from edgeline.serve.conformance.target import Target
from edgeline.serve.errors import InputError

PYTEST_VARIABLES = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD")
MAX_DETAIL_CHARS = 400


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one check."""

    check: Check
    outcome: str
    """`passed`, `failed` or `skipped`."""
    detail: str
    """What a failed check saw and expected, or why a check was skipped."""


def run(target: Target, expression: str | None = None) -> list[Result]:
    """Run the checks.

    Args:
        target: the server.
        expression: selects checks, as pytest's -k; by default all.

    Raises:
        InputError: the expression is invalid.
    """
    plugin = _Plugin(target)
    arguments = [
        *("-c", os.devnull, f"--rootdir={FOLDER}", "--import-mode=importlib", "--assert=plain", "--capture=no"),
        *("-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:unraisableexception", "-p", "no:threadexception"),
        *(("-k", expression) if expression else ()),
        *(str(FOLDER / f"{stem}.py") for stem in GROUPS),
    ]
    saved = {name: os.environ.pop(name) for name in PYTEST_VARIABLES if name in os.environ}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # what pytest and gevent print there is in the report
            status = pytest.main(arguments, plugins=[plugin])
    finally:
        del os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"]
        os.environ.update(saved)
    if status == pytest.ExitCode.USAGE_ERROR:
        raise InputError(f"-k {expression!r} is not a valid expression; combine ids with and, or, not", code="no_check")
    known = {check.id: check for check in checks()}
    return [Result(known[id], *found) for id, found in plugin.found.items()]


class _Plugin:
    """Passes the server to the checks, and collects their results."""

    def __init__(self, target: Target) -> None:
        self.found: dict[str, tuple[str, str]] = {}
        self._target = target

    @pytest.fixture(scope="session")
    def target(self) -> Target:
        """The server under test."""
        return self._target

    @pytest.fixture
    def still_alive(self) -> Iterator[None]:
        """After the check, the server must still answer a valid request."""
        yield
        self._target.infer_any().ok()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the outcome of a check, and of its setup and teardown if they failed."""
        id = report.location[2].removeprefix("test_")
        if report.when == "call" or report.outcome != "passed":
            self.found[id] = report.outcome, _detail(report)


def _detail(report: pytest.TestReport) -> str:
    """The message of the exception, on one line."""
    if report.outcome == "passed":
        return ""
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    message = crash.message if crash else str(report.longrepr)
    return " ".join(message.split()).removeprefix("edgeline.serve.conformance.reply.Deviation: ")[:MAX_DETAIL_CHARS]
