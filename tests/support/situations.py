"""Run the tests of every situation in the documentation: `python -m tests.support.situations [--long]`.

Prints each row of docs/situations.md with the numbers of its cases that passed, failed or were skipped. The cases of
`make long`, which take about 20 minutes, are run with `--long`.
"""

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from tests.support.faults.catalogue import ROOT, Row, read_rows

PAGE = "docs/situations.md"


def main() -> int:
    """Run the tests in one session, and print a line for each row."""
    rows = read_rows((PAGE,))
    tests = sorted({f"{find(file)}::{name}" for row in rows for file, name in row.tests})
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        chosen = "not nightly" if "--long" in sys.argv[1:] else "not nightly and not long"
        command = [sys.executable, "-m", "pytest", "-q", "-m", chosen, f"--junitxml={report}", *tests]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        results = read_results(report)
    for row in rows:
        print(f"{row.number:4} {result_of(row, results):28} {row.fault}: {row.happens}")
    return code


def find(file: str) -> str:
    """The path of a test file that is shortened to its end."""
    [path] = (ROOT / "tests").rglob(file)
    return str(path.relative_to(ROOT))


def read_results(report: Path) -> dict[str, Counter[str]]:
    """Number of cases by result, by the name of the test."""
    results: dict[str, Counter[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = re.sub(r"\[.*", "", str(case.get("name")), flags=re.S)
        kinds = {child.tag for child in case}
        result = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        results.setdefault(name, Counter())[result] += 1
    return results


def result_of(row: Row, results: dict[str, Counter[str]]) -> str:
    """The result of a row's tests together."""
    total: Counter[str] = Counter()
    for _, name in row.tests:
        total += results.get(name, Counter({"test not run": 1}))
    return ", ".join(f"{count} {kind}" for kind, count in total.items())


if __name__ == "__main__":
    sys.exit(main())
