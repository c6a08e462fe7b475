"""Which tests run in the same worker, and which begin first."""

from xdist.scheduler import LoadFileScheduling

TOGETHER = (
    # A Prefect server.
    ("tests/flows/orchestration/",),
    # The run that the tests of export share, and PyTorch's exporter, which takes five seconds to import.
    ("tests/export/verification/test_planted_faults.py", "tests/export/graph/", "tests/export/quantization/"),
)
"""Beginnings of the names of tests that share what a worker starts or loads."""
FIRST = (
    *TOGETHER[1],
    *TOGETHER[0],
    "tests/pipeline/training/",
    "tests/serve/http/transport/test_server.py",
    "tests/serve/inference/test_repository.py",
    "tests/serve/http/test_main.py",
    "tests/docs/test_blocks.py",
    "tests/pipeline/data/test_prepare.py",
    "tests/serve/conformance/test_checks.py",
)
"""What takes longest, so that no worker begins with it when the others are done."""
LAST = ("tests/export/",)
"""What waits for the shared run while another worker makes it."""


class ByFile(LoadFileScheduling):
    """Sends the tests of a file to one worker, or those that are kept together."""

    def _split_scope(self, nodeid: str) -> str:
        group = next((beginnings for beginnings in TOGETHER if nodeid.startswith(beginnings)), None)
        return group[0] if group else str(super()._split_scope(nodeid))


def rank(nodeid: str) -> int:
    """The position of a test's file; tests of equal rank stay in their order."""
    if nodeid.startswith(FIRST):
        return next(position for position, beginning in enumerate(FIRST) if nodeid.startswith(beginning))
    return len(FIRST) + nodeid.startswith(LAST)
