"""`edgeline run`, again with nothing changed, and again after one photo was added: seconds, and the repeated steps."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Clock, photos, report
from PIL import Image

DIGESTS = """
import sys, time
from pathlib import Path
from edgeline.flows.steps import STEPS
from edgeline.pipeline.runs.code_digest import code_digest

start = time.perf_counter()
for module in ("edgeline.pipeline.data.prepare", *(step.build.partition(":")[0] for step in STEPS)):
    code_digest(module, cache=Path(sys.argv[1]))
print(time.perf_counter() - start)
"""
EDGELINE = str(Path(sys.executable).with_name("edgeline"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", default=photos("hymenoptera"), help="a folder with one folder per class, or with train/ and val/ of these"
    )
    parser.add_argument("--no-prefect", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary, "photos")
        source = arguments.data
        if source == "digits":
            from edgeline.pipeline.sources.digits import write_digits

            source = str(write_digits(Path(temporary, "digits")))
        shutil.copytree(source, data)
        command = [EDGELINE, "run", "--data", str(data), "--artifacts", f"{temporary}/artifacts", "--json"]
        command += ["--no-prefect"] if arguments.no_prefect else []
        first = timed("first run", command)
        second = timed("nothing changed", command)
        photo = next(path for path in sorted(data.rglob("*.*")) if path.suffix.lower() in (".jpg", ".png"))
        added = Image.open(photo).convert("RGB").rotate(7)
        added.save(photo.with_name("added.png"))
        third = timed("one photo added", command)
        keys = {"parsing": code_digests(Path(temporary, "code.json")), "cached": code_digests(Path(temporary, "code.json"))}
        print(
            f"digests of all steps' code: {keys['parsing']:.0f} ms when every module is parsed, {keys['cached']:.0f} ms cached"
        )
    runs = {"first": first, "second": second, "third": third}
    report("second_run", data=Path(arguments.data).name, prefect=not arguments.no_prefect, code_digests_ms=keys, **runs)


def code_digests(cache: Path) -> float:
    """Return milliseconds that a fresh process needs for the code digest of every step."""
    done = subprocess.run([sys.executable, "-c", DIGESTS, str(cache)], check=True, capture_output=True, text=True)
    return 1000 * float(done.stdout)


def timed(title: str, command: list[str]) -> dict[str, object]:
    """Run the pipeline; return how long it took and which steps were reused."""
    with Clock() as clock:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    steps = {
        step["name"]: "reused" if step["reused"] else round(step["seconds"], 1) for step in json.loads(done.stdout)["steps"]
    }
    print(f"{title:16} {clock.seconds:6.1f} s  {steps}", flush=True)
    return {"seconds": clock.seconds, "steps": steps}


if __name__ == "__main__":
    main()
