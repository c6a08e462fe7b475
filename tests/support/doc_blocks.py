"""Read the fenced blocks of a documentation page, and execute them in order.

Conventions of a page:

- `bash` and `python` blocks are executed, each page's in one folder, in order; each must end with exit code 0.
- A `text` or `json` block directly after one is its output. It is compared with what was printed, numbers and digests
  replaced. A line that is just `...` stands for any number of lines.
- `<!-- not executed: REASON -->` directly before a block gives the reason why it is not.
- A block that begins with `edgeline serve` keeps running while the rest of the page is executed, on a free port that takes the
  place of 8000.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(
    r"(?P<comment> *<!--[^\n]*-->\n)?^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
MARKER = re.compile(r"<!-- not executed: (.+) -->")
EXECUTED = ("bash", "python")
ADDRESS = "127.0.0.1:8000"
TIMEOUT_S = 240


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    code: str
    line: int
    """Its position in the page, from 1."""
    reason: str | None
    """Why it is not executed."""
    output: str | None = None
    """What the page shows as its output."""


def read_blocks(text: str) -> list[Block]:
    """Every fenced block of a page; outputs belong to the block before them."""
    blocks: list[Block] = []
    end = 0
    for match in FENCE.finditer(text):
        language, code = match["language"].strip(), textwrap.dedent(match["code"])
        reason = MARKER.search(match["comment"] or "")
        between = text[end : match.start()]
        end = match.end()
        is_output = language in ("text", "json") and blocks and not between.strip() and not match["comment"]
        if is_output and blocks[-1].language in EXECUTED:
            last = blocks.pop()
            blocks.append(Block(last.language, last.code, last.line, last.reason, code))
            continue
        line = text.count("\n", 0, match.start("language")) + 1
        blocks.append(Block(language, code, line, reason[1] if reason else None))
    return blocks


def normalized(text: str) -> list[str]:
    """Lines with times, digests, numbers and runs of spaces replaced, so that only the words and the shape are left."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.sub(r"\d{4}-\d\d-\d\d[T ][\d:.]+(\+00:00|Z)?", "<time>", text)
    text = re.sub(r"(?<![.\w])[0-9a-f]{12,64}\b", "<digest>", text)
    text = re.sub(r"(?<![A-Za-z\d])-?\d+(,\d{3})*(\.\d+)?(e-?\d+)?", "<n>", text)
    return [re.sub(r"[\s─━]+", " ", line).strip() for line in text.splitlines() if line.strip()]


def matches(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed, up to numbers, digests and lines left out with `...`."""
    pattern = "".join(
        r"(?:[^\n]*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", r"[^\n]*?") + "\n"
        for line in normalized(shown)
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in normalized(printed))) is not None


class PageRun:
    """Executes the blocks of one page in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server: subprocess.Popen[str] | None = None
        self._address = ADDRESS
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "XDG_CACHE_HOME": str(folder / ".cache"),
            "NO_COLOR": "1",
            "COLUMNS": "110",
        }

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Stop the page's server at the end, as an operator would."""
        try:
            yield
        finally:
            if self._server is not None:
                self._server.send_signal(signal.SIGTERM)
                self._server.communicate(timeout=TIMEOUT_S)
                code = self._server.returncode
                assert code == 0, f"the server ended with {code}"

    def execute(self, block: Block) -> str:
        """Run a block and return what it printed.

        Raises:
            AssertionError: it failed; the message has its output.
        """
        code = block.code.replace(ADDRESS, self._address).replace("localhost:8000", self._address)
        if block.language == "bash" and code.startswith("edgeline serve"):
            self.serve(code)
            return ""
        if block.language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", code]
        else:
            command = [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", code]
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == 0, f"line {block.line}: exit code {done.returncode}\n{code}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def serve(self, code: str) -> None:
        """Start a server as the block's line does, but on a free port and without measuring the machine first."""
        assert self._server is None, "a page starts one server"
        quick = f"exec edgeline serve --port 0 --runners 2 --threads 1 --batch 1 --cache {self.folder / '.cache'}"
        line = code.replace("edgeline serve", quick, 1)
        self._server = subprocess.Popen(
            ["bash", "-c", line], cwd=self.folder, env=self._environment, stdout=subprocess.PIPE, text=True
        )
        assert self._server.stdout is not None
        first = self._server.stdout.readline()
        found = re.search(r"http://(\S+:\d+)", first)
        assert found, f"no address in {first!r}"
        self._address = found[1]
        deadline = time.monotonic() + TIMEOUT_S
        while not self._is_ready():
            assert time.monotonic() < deadline, "the server is not ready"
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self._address}/readyz", timeout=5):
                return True
        except OSError:
            return False
