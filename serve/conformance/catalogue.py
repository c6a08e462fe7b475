"""The list of checks. A check is a test function: its name is the id, its docstring the sentence, its file the group.

The list is read from the source, so it needs neither pytest nor a server. `docs/conformance.md` has it as a table, and a test
compares the two.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).with_name("checks")
GROUPS = {
    "test_specification": "specification",
    "test_binary": "tritonclient",
    "test_tritonclient": "tritonclient",
    "test_perf_analyzer": "perf_analyzer",
    "test_framing": "robustness",
    "test_robustness": "robustness",
}
"""The group of each file, in the order in which they run."""
REQUIRED = ("specification", "tritonclient", "perf_analyzer")
"""The groups that a server must pass; `robustness` is reported in addition."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check."""

    id: str
    group: str
    sentence: str


def checks() -> list[Check]:
    """Return every check, in the order in which they run."""
    found = []
    for stem, group in GROUPS.items():
        tree = ast.parse((FOLDER / f"{stem}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                sentence = (ast.get_docstring(node) or "").partition("\n")[0]
                found.append(Check(node.name.removeprefix("test_"), group, sentence))
    return found


def table() -> str:
    """Return the checks as a Markdown table."""
    rows = [f"| `{check.id}` | {check.group} | {check.sentence} |" for check in checks()]
    return "\n".join(["| id | group | what |", "|---|---|---|", *rows]) + "\n"
