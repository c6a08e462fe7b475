"""The catalogue of faults in the documentation: its rows, and how many of them are met.

`python -m tests.support.faults.catalogue` prints the counts by letter, and the rows that are not met.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGES = ("docs/fault-catalogue.md", "docs/server-faults.md")
ROWS = {"D": 32, "T": 20, "E": 24, "A": 34, "H": 48, "P": 20}
"""How many faults each letter has: data, training, export, artifact and device, HTTP server, Prefect."""
MARKS = ("met in part", "not met", "not built")
"""What a row's third column starts with, in bold; without a mark, the row is met."""


@dataclass(frozen=True, slots=True)
class Row:
    """One fault."""

    number: str
    fault: str
    happens: str
    tests: tuple[tuple[str, str], ...]
    """The file and the name of each test; a file may be shortened to its end."""
    untested: bool
    """Whether the last column states that there is no test."""

    @property
    def status(self) -> str:
        """`met`, or one of `MARKS`."""
        return next((mark for mark in MARKS if self.happens.startswith(f"**{mark}**")), "met")


def read_rows(pages: Iterable[str] = PAGES) -> list[Row]:
    """Every row of the tables, in the order of the pages."""
    rows = []
    for page in pages:
        text = (ROOT / page).read_text(encoding="utf-8")
        for number, fault, happens, tests in re.findall(r"(?m)^\| ([A-Z]\d+[a-z]?) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", text):
            named = tuple(re.findall(r"`([\w/]+\.py)::(\w+)`", tests))
            rows.append(Row(number, fault, happens, named, "none" in tests))
    return rows


def summary() -> str:
    """The counts by letter as a Markdown table, then the rows that are not met, with the reason."""
    rows = read_rows()
    counts = Counter((row.number[0], row.status) for row in rows)
    statuses = ("met", *MARKS)
    lines = [f"| | {' | '.join(statuses)} |", f"|---|{'---|' * len(statuses)}"]
    lines += [f"| {letter} | {' | '.join(str(counts[letter, status]) for status in statuses)} |" for letter in ROWS]
    lines += ["", *(f"{row.number} {row.fault}: {row.happens}" for row in rows if row.status == "not met")]
    return "\n".join(lines)


if __name__ == "__main__":
    print(summary())
