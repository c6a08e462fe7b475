"""Make the pictures of README.md and docs/: a terminal, the two web pages, and the diagram of the README as a drawing.

    python docs/images/make_images.py [--folder FOLDER] [--mermaid mermaid.min.js] [--only label]

Runs the demo in FOLDER (a temporary one by default; two minutes), draws its output as SVG, serves the artifact and takes a
screenshot of its page and of the labeling page in Chromium. Mermaid's script (`npm install mermaid`, `dist/mermaid.min.js`) is
needed for the diagram alone, which stays as it is without it. Writes next to itself.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COLUMNS = 104
BIN = Path(sys.executable).parent
PHOTOS = 2
TO_LABEL, DECIDED = 40, 11


def draw_terminal(folder: Path) -> None:
    """Run the demo and draw what it prints."""
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    command = [BIN / "edgeline", "run", "--data", "digits", "--demo", "--no-prefect"]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    console.print("[bold green]$[/] make demo")
    console.print(Text.from_ansi(done.stdout.rstrip()))
    # Without the fonts that rich would have a browser download.
    template = re.sub(r"\s*@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = console.export_svg(title="edgeline", code_format=template, unique_id="demo")
    (HERE / "demo.svg").write_text(svg, encoding="utf-8")


def shoot_page(browser: Browser, folder: Path) -> None:
    """Serve the artifact, have it classify some digits, and take a picture."""
    digits = sorted((folder / "artifacts" / "data").rglob("*.png"))
    chosen = [digits[len(digits) * (2 * index + 1) // (2 * PHOTOS)] for index in range(PHOTOS)]
    command = [BIN / "edgeline", "serve", "artifacts/store/digits", "--port", "0", "--runners", "2"]
    with subprocess.Popen([*command, "--cache", folder / "cache"], cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://\S+", server.stdout.readline())
            assert found
            page = browser.new_page(viewport={"width": 960, "height": 860}, device_scale_factor=1.5)
            page.goto(found[0])
            page.get_by_text("ready").first.wait_for()
            page.locator("#files").set_input_files(chosen)
            page.locator('.result[data-state="done"]').nth(PHOTOS - 1).wait_for()
            page.screenshot(path=HERE / "page.png")
        finally:
            server.terminate()
    _shrink(HERE / "page.png")


def shoot_label_page(browser: Browser, folder: Path) -> None:
    """Open some digits for labeling, and take a picture of the first after a few decisions."""
    unsorted = folder / "unsorted"
    shutil.rmtree(unsorted, ignore_errors=True)
    unsorted.mkdir()
    for path in sorted((folder / "artifacts" / "data").rglob("*.png"))[:: 1797 // TO_LABEL]:
        shutil.copy(path, unsorted / f"{path.parent.name}-{path.name}")
    command = [BIN / "edgeline", "label", "unsorted", "--artifact", "artifacts/store/digits"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as labeling:
        try:
            assert labeling.stdout is not None
            found = re.search(r"http://\S+", labeling.stdout.readline())
            assert found
            page = browser.new_page(viewport={"width": 960, "height": 640}, device_scale_factor=1.5)
            page.goto(found[0])
            for _ in range(DECIDED):
                page.wait_for_function("() => document.body.dataset.photo")
                shown = page.evaluate("document.body.dataset.photo")
                page.keyboard.press("Enter")
                page.wait_for_function("shown => document.body.dataset.photo !== shown", arg=shown)
            page.screenshot(path=HERE / "label.png")
        finally:
            labeling.terminate()
    _shrink(HERE / "label.png")


def draw_diagram(browser: Browser, script: Path) -> None:
    """Draw the README's Mermaid block with plain text labels, which an SVG needs to be shown as an image."""
    found = re.search(r"```mermaid\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    page = browser.new_page()
    page.add_script_tag(path=script)
    svg = page.evaluate(
        """async (source) => {
            mermaid.initialize({startOnLoad: false, theme: "neutral", htmlLabels: false, fontFamily: "sans-serif",
                                flowchart: {htmlLabels: false, useMaxWidth: false}});
            return (await mermaid.render("architecture", source)).svg;
        }""",
        found[1],
    )
    # Its own background, so that it can be read on a dark page as well.
    svg = re.sub(r"(<svg [^>]*?style=\")", r"\1background: white; border-radius: 4px; ", svg, count=1)
    (HERE / "architecture.svg").write_text(svg + "\n", encoding="utf-8")


def _shrink(path: Path) -> None:
    """Reduce a screenshot to 256 colors: flat areas and text lose nothing that can be seen."""
    from PIL import Image

    with Image.open(path) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Make every picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--mermaid", type=Path)
    parser.add_argument("--only", choices=["label"], help="this picture alone, of a FOLDER with a finished demo")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = options.folder or Path(temporary)
        if options.only is None:
            draw_terminal(folder)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        if options.only is None:
            shoot_page(browser, folder)
        shoot_label_page(browser, folder)
        if options.mermaid:
            draw_diagram(browser, options.mermaid)
        browser.close()
    for path in sorted(HERE.glob("*.*g")):
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
