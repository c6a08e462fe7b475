"""What is checked: a check is a test function, its name the id, its docstring the sentence, its file the group.

Read from the source, so that the list needs neither pytest nor a server. `docs/conformance.md` holds it as a table, and a test
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
"""Of each file, in the order that they run."""
REQUIRED = ("specification", "tritonclient", "perf_analyzer")
"""The groups that a server must pass; `robustness` is told beside them."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is checked."""

    id: str
    group: str
    sentence: str


def checks() -> list[Check]:
    """Every check, in the order that they run."""
    found = []
    for stem, group in GROUPS.items():
        tree = ast.parse((FOLDER / f"{stem}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                sentence = (ast.get_docstring(node) or "").partition("\n")[0]
                found.append(Check(node.name.removeprefix("test_"), group, sentence))
    return found


def table() -> str:
    """The checks as a Markdown table."""
    rows = [f"| `{check.id}` | {check.group} | {check.sentence} |" for check in checks()]
    return "\n".join(["| id | group | what |", "|---|---|---|", *rows]) + "\n"
