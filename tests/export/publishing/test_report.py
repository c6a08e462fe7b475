"""Report and card: any label or file name is shown as text, and the pages load nothing from outside."""

import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgeline.export.publishing.report import write_card, write_report
from edgeline.export.verification.findings import find_in_verification
from edgeline.export.verification.report import FailedVariant, VerificationReport
from edgeline.pipeline.config import PublishConfig
from edgeline.pipeline.evaluation.insight import PICTURES, Insight, read_insight, write_insight
from edgeline.pipeline.evaluation.report import Evaluation, Mistake, read_evaluation
from edgeline.pipeline.training.search.report import Sweep, TrainedSetting
from tests.support.findings import run_with_findings

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 1111111 }} & {% raw %}",
)


class Page(HTMLParser):
    """A page as a browser would parse it: its elements, their links, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())


@pytest.fixture(name="hostile", scope="module")
def with_hostile_names(finished: Any) -> Evaluation:
    evaluation = read_evaluation(finished.run.step("evaluate"))
    classes = [report.model_copy(update={"label": label}) for report, label in zip(evaluation.classes, HOSTILE, strict=True)]
    mistakes = [Mistake(image=f"photos/{name}.jpg", label=name, predicted=HOSTILE[0], probability=0.5) for name in HOSTILE]
    return evaluation.model_copy(update={"labels": list(HOSTILE), "classes": classes, "mistakes": mistakes})


@pytest.fixture(name="pages", scope="module")
def written(finished: Any, hostile: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The report and the card of a run whose labels and files have hostile names."""
    folder = tmp_path_factory.mktemp("pages")
    verification = VerificationReport.read(finished.artifact / "verification.json")
    provenance = json.loads((finished.artifact / "manifest.json").read_text())["provenance"]
    provenance |= {"trained_on": HOSTILE[0]}
    write_report(folder / "report.html", finished.run, hostile, verification, provenance)
    write_card(folder / "card.md", finished.run, hostile, verification, provenance)
    return {name: (folder / name).read_text(encoding="utf-8") for name in ("report.html", "card.md")}


def test_a_hostile_name_is_escaped(pages: dict[str, str]) -> None:
    page = Page(pages["report.html"])
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for name in HOSTILE:
        assert page.text.count(name) >= 2, "among the classes and among the mistakes"
    assert not any("7777777" in text for text in page.text)
    for raw in ("<script", "<img src=x"):
        assert raw not in pages["report.html"]
        assert raw not in pages["card.md"]


def test_a_report_loads_nothing_from_outside(pages: dict[str, str], finished: Any) -> None:
    for source in (pages["report.html"], (finished.artifact / "report.html").read_text(encoding="utf-8")):
        page = Page(source)
        referred = [value for name, value in page.attributes if name in ("src", "href", "srcset", "data", "action")]
        assert len(referred) >= 5
        assert all(value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for value in referred)
        assert not {"link", "script", "iframe", "object", "base", "form", "embed"} & set(page.tags)
        assert "http-equiv" not in dict(page.attributes)
        for outside in ("url(", "@import", "http:", "https:"):
            assert outside not in source


def test_the_published_report_has_the_figures_of_the_run(finished: Any) -> None:
    text = " ".join(Page((finished.artifact / "report.html").read_text(encoding="utf-8")).text)
    evaluation = read_evaluation(finished.run.step("evaluate"))
    verification = json.loads((finished.artifact / "verification.json").read_text())
    assert f"{100 * evaluation.top1.value:.2f} %" in text
    assert f"{evaluation.top1.correct} of {evaluation.top1.total} held-out images" in text
    for label in ("bark", "leaf", "sky"):
        assert label in text
    for comparison in verification["comparisons"]:
        assert f"{comparison['max_difference']:.2g}" in text
        assert f"{comparison['max_logit_difference']:.2g}" in text
    for entry in (verification["reference"], *verification["variants"]):
        for time in entry["latency"].values():
            assert f"{time['p50_ms']:.1f} / {time['p95_ms']:.1f}" in text
        assert entry["measured_on"]["command"] in text or entry is not verification["reference"]
    assert verification["measured_on"]["machine"]["cpu"] in text
    assert "exact-precision setting o" in text
    for command in ("edgeline train RUN", "edgeline evaluate RUN", "edgeline variants RUN", "edgeline verify RUN"):
        assert command in text


def test_the_report_of_a_sweep_has_its_table(finished: Any, hostile: Evaluation, tmp_path: Path) -> None:
    verification = VerificationReport.read(finished.artifact / "verification.json")
    provenance = json.loads((finished.artifact / "manifest.json").read_text())["provenance"]
    run = run_with_findings(finished.run, tmp_path / "run", [])
    write_report(tmp_path / "report.html", run, hostile, verification, provenance)
    assert "Sweep of the head" not in (tmp_path / "report.html").read_text()
    (run.folder / "train").unlink()
    (run.folder / "train").mkdir()
    given = {"learning_rate": 5e-4, "weight_decay": 0.01, "label_smoothing": 0, "epoch": 40, "loss": 0.3, "macro_recall": 0.9}
    trained = [
        TrainedSetting(**given, dropout=0.5, views=4, accuracy=0.9, difference=0, error=0),
        TrainedSetting(**given, dropout=0.8, views=2, accuracy=0.95, difference=0.05, error=0.009),
    ]
    sweep = Sweep(images=1300, folds=5, scanned=[], trained=trained, chosen=1, deviations=1.6)
    (run.folder / "train" / "sweep.json").write_text(sweep.model_dump_json())
    write_report(tmp_path / "report.html", run, hostile, verification, provenance)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "Sweep of the head" in text
    assert "dropout 0.8, views 2 (chosen)" in text
    assert "+5.0 ± 0.9" in text
    assert any("1,300 held-out" in part for part in text)


def test_the_published_card_has_the_figures_and_the_limits(finished: Any) -> None:
    text = (finished.artifact / "card.md").read_text(encoding="utf-8")
    evaluation = read_evaluation(finished.run.step("evaluate"))
    assert text.startswith("# photos\n")
    assert f"{evaluation.top1.value:.1%}" in text
    assert f"{evaluation.macro.f1:.3f}" in text
    assert "15 held-out images and stress images" in text
    assert "has 3 classes and assigns every photo to one of them" in text
    assert "edgeline check ARTIFACT --variant onnx-fp32 --time" in text


def test_every_variant_has_its_row_and_what_is_not_shipped_its_reason(
    finished: Any, hostile: Evaluation, tmp_path: Path
) -> None:
    verification = VerificationReport.read(finished.artifact / "verification.json")
    provenance = json.loads((finished.artifact / "manifest.json").read_text())["provenance"]
    why = "accuracy drops by <b>2.00</b> points"
    failed = FailedVariant.model_validate(dict(verification.variants[1]) | {"passed": False, "problems": [why]})
    variants = (verification.variants[0], failed, *verification.variants[2:])
    verification = verification.model_copy(update={"variants": variants})
    run = run_with_findings(finished.run, tmp_path / "run", find_in_verification(verification))
    write_report(tmp_path / "report.html", run, hostile, verification, provenance)
    write_card(tmp_path / "card.md", run, hostile, verification, provenance)
    text = Page((tmp_path / "report.html").read_text()).text
    assert {"onnx-int8", "ort-fp32", "ort-int8"} <= set(text)
    assert f"onnx-fp16 is not shipped: {why}. (verify)" in text
    card = (tmp_path / "card.md").read_text()
    assert "\n- onnx-fp16 is not shipped: accuracy drops by \\<b\\>2.00\\</b\\> points. (verify)\n" in card
    assert [line.split(" | ")[0] for line in card.splitlines() if line.startswith(("| onnx", "| ort"))] == [
        *("| onnx-fp32", "| onnx-int8", "| ort-fp32", "| ort-int8"),
    ]


@pytest.fixture(name="with_insight")
def a_run_with_label_errors_and_slices(finished: Any, tmp_path: Path) -> Any:
    """The run, with a label error, a slice and a mistake that have hostile names."""
    run = run_with_findings(finished.run, tmp_path / "run", [])
    (run.folder / "evaluate").unlink()
    shutil.copytree(finished.run.step("evaluate"), run.step("evaluate"))
    Image.new("RGB", (160, 160), "green").save(run.step("evaluate") / PICTURES / "one.jpg")
    given = {"image": HOSTILE[0], "label": HOSTILE[1], "picture": f"{PICTURES}/one.jpg"}
    insight = read_insight(run.step("evaluate"))
    assert insight is not None
    errors = [{**given, "split": "train", "suggested": HOSTILE[2], "label_probability": 0.01, "suggested_probability": 0.97}]
    mistakes = [{**given, "predicted": HOSTILE[2], "probability": 0.9, "cam": None, "gradient": f"{PICTURES}/one.jpg"}]
    share = {"value": 0.5, "low": 0.1, "high": 0.9, "correct": 1, "total": 2}
    slices = [{"column": HOSTILE[0], "value": HOSTILE[1] * 20, "share": share, "p_value": 0.5}]
    changed = insight.model_dump() | {"label_errors": errors, "mistakes": mistakes, "slices": slices, "labels_checked": 33}
    write_insight(run.step("evaluate"), Insight.model_validate(changed))
    return run


def write(run: Any, finished: Any, hostile: Evaluation, path: Path) -> str:
    verification = VerificationReport.read(finished.artifact / "verification.json")
    provenance = json.loads((finished.artifact / "manifest.json").read_text())["provenance"]
    write_report(path, run, hostile, verification, provenance)
    return path.read_text(encoding="utf-8")


def test_label_errors_mistakes_and_slices_are_shown_with_pictures(
    with_insight: Any, finished: Any, hostile: Evaluation, tmp_path: Path
) -> None:
    source = write(with_insight, finished, hostile, tmp_path / "report.html")
    page = Page(source)
    text = " ".join(page.text)
    assert source.count("data:image/jpeg;base64,") == 3
    assert "1 of 33 training and validation images are probably labeled wrongly" in text
    for raw in ("<script", "<img src=x"):
        assert raw not in source
    for heading in ("Accuracy by column", "Would more images help?", "Labels to check", "Most confident mistakes", "Training"):
        assert heading in page.text
    unpictured = with_insight.config.model_copy(update={"publish": PublishConfig(pictures=False)})
    source = write(replace(with_insight, config=unpictured), finished, hostile, tmp_path / "without.html")
    assert "data:image/jpeg" not in source
    assert "1 of 33 training" in " ".join(Page(source).text)


def test_a_class_shows_what_it_was_confused_with(finished: Any, hostile: Evaluation, tmp_path: Path) -> None:
    confused = hostile.model_copy(update={"confusion": [[3, 2, 1], [0, 6, 0], [0, 0, 6]]})
    text = Page(write(finished.run, finished, confused, tmp_path / "report.html")).text
    assert f"{HOSTILE[1]} (2), {HOSTILE[2]} (1)" in text


@pytest.mark.long
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a program called chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1100])
def test_nothing_is_wider_than_the_screen(
    width: int, scheme: str, with_insight: Any, finished: Any, hostile: Evaluation, tmp_path: Path
) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    write(with_insight, finished, hostile, tmp_path / "report.html")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 700}, color_scheme=scheme)
        page.goto(f"file://{tmp_path}/report.html")
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth)")
        ink, paper = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "colorScheme"))
        assert (ink == "rgb(255, 255, 255)") == (scheme == "dark"), paper
        browser.close()
