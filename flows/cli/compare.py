"""`edgeline diff`: compare two runs or published versions on the same test images.

Nothing heavy is imported here; the command imports what it needs when it runs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeline.flows.cli.options import Json

if TYPE_CHECKING:
    from edgeline.pipeline.evaluation.comparison import Comparison, Difference

MAX_CHANGES = 20
"""Images with other answers that are listed; `--json` has all."""
SIGNIFICANT = 0.05

First = Annotated[Path, typer.Argument(metavar="A", help="A run's folder, or a published version's, or a name's in the store.")]
Second = Annotated[Path, typer.Argument(metavar="B", help="The one to compare with A: what it gains is positive.")]


def diff(
    first: First,
    second: Second,
    artifacts: Annotated[
        Path, typer.Option(help="Folder of the runs, for a published version that lies outside its store.")
    ] = Path("artifacts"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare two models on the same images: what B gains over A, and whether chance explains it.

    Only images that both have in their test split are compared, and none that either has learned from. The p-value is that of
    McNemar's exact test, the 95 % intervals are those of a paired bootstrap over groups of images: overall, and by class.

        edgeline diff artifacts/runs/photos-0123456789ab artifacts/runs/photos-ba9876543210

        edgeline diff artifacts/store/photos/1 artifacts/store/photos/2
    """
    from edgeline.pipeline.evaluation.answers import find_evaluated_run, read_answers
    from edgeline.pipeline.evaluation.comparison import compare

    answers = []
    for path in (first, second):
        name, run = find_evaluated_run(path, artifacts)
        answers.append(read_answers(run, name))
    comparison = compare(*answers, seed=seed)
    if as_json:
        print(comparison.model_dump_json())
        return
    _show(comparison)


def _show(comparison: "Comparison") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"A is [bold]{escape(comparison.first)}[/], B is [bold]{escape(comparison.second)}[/]", soft_wrap=True)
    console.print(_left_out(comparison), soft_wrap=True)
    table = Table("", "images", "A", "B", "B - A", "95 % interval", "lost", "gained", "p", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for label, difference in (("all", comparison.overall), *((each.label, each) for each in comparison.classes)):
        table.add_row(escape(label), *_cells(difference))
    console.print(table)
    console.print(_verdict(comparison.overall), soft_wrap=True)
    for change in comparison.changes[:MAX_CHANGES]:
        right = "gained" if change.second == change.label else "lost" if change.first == change.label else "other"
        answers = f"{change.first} -> {change.second}, truly {change.label}"
        console.print(f"  {right:6} {escape(change.image)}: {escape(answers)}", soft_wrap=True)
    if len(comparison.changes) > MAX_CHANGES:
        console.print(f"  and {len(comparison.changes) - MAX_CHANGES:,} more images with another answer (--json lists all)")


def _left_out(comparison: "Comparison") -> str:
    reasons = {
        "in the test split of only one": comparison.only_one_tests,
        "learned from by one of them": comparison.learned,
        "labeled differently": comparison.relabeled,
    }
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
    return f"{comparison.overall.images:,} images that both test{f'; left out: {left_out}' if left_out else ''}"


def _cells(difference: "Difference") -> list[str]:
    return [
        f"{difference.images:,}",
        f"{difference.first:.1%}",
        f"{difference.second:.1%}",
        f"{100 * difference.difference:+.1f}",
        f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}",
        str(difference.lost),
        str(difference.gained),
        f"{difference.p_value:.2g}",
    ]


def _verdict(overall: "Difference") -> str:
    points = f"{100 * overall.difference:+.1f} points"
    if overall.p_value < SIGNIFICANT:
        return f"B is {'better' if overall.difference > 0 else 'worse'}: {points}, more than chance explains."
    if not overall.lost + overall.gained:
        return "Both are right and wrong on the same images."
    return (
        f"{points} can be chance: B is right on {overall.gained} images where A is wrong, and wrong on {overall.lost} where A "
        "is right."
    )
