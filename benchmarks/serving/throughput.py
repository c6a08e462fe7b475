"""Requests per second at 1, 16 and 64 connections, compared with LitServe, BentoML, MLServer and a hand-written FastAPI app.

There are three `--questions`: `lite0` and `mobile` compare float32 EfficientNet-Lite0 and MobileNetV3-small (a small fast
model, with random weights, which do not affect speed) in every server and in the same loop without a server; `shipped` compares
edgeline with its int8 variant to the others with float32. In addition: the median time at one connection compared with the loop
with one thread, CPU seconds per request of the server's processes, and their memory under load.

A server's name may have settings, such as `litserve:RUNNERS=1:THREADS=2`, `litserve:BATCH=4`, `bentoml:WORKERS=2`.
"""

import os
import statistics
from pathlib import Path
from typing import Any

from harness import (
    all_started,
    arguments_of,
    artifact,
    bare,
    cpu_s,
    load,
    median_ratio,
    memory_mb,
    photo,
    report,
    setting,
    turn,
    versions,
    workspace,
)

QUESTIONS = {"lite0": "efficientnet_lite0", "mobile": "mobilenet_v3_small", "shipped": "efficientnet_lite0"}


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--mobile", type=Path, help="an artifact of MobileNetV3-small, as --artifact")
    parser.add_argument("--questions", nargs="*", default=list(QUESTIONS), choices=list(QUESTIONS))
    parser.add_argument("--connections", nargs="*", type=int, default=[1, 16, 64])
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    with workspace(arguments.environment) as folder:
        image = photo(arguments.photo, folder)
        for question in arguments.questions:
            given = arguments.mobile if question == "mobile" else arguments.artifact
            weights = "none" if question == "mobile" else "imagenet"
            model = artifact(given, QUESTIONS[question], weights)
            print(f"{question}: {QUESTIONS[question]}, a JPEG of {image.stat().st_size:,} bytes", flush=True)
            found[question] = compare(question, model, image, arguments, folder)
        peer_versions = versions(arguments.servers, folder)
    report("throughput", rounds=arguments.rounds, seconds=arguments.seconds, peers=peer_versions, **found)


def compare(question: str, model: Path, image: Path, arguments: Any, folder: Path) -> dict[str, Any]:
    """Measure all servers in turn, round by round."""
    variant = "onnx-int8" if question == "shipped" else None
    settings = [setting(name, model, folder, variant=variant) for name in arguments.servers]
    names = ["bare", *(each.name for each in settings)]
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    memory: dict[str, dict[str, float]] = {}

    def record(name: str, what: str, value: float) -> None:
        rows[name].setdefault(what, []).append(value)

    def measure(name: str, connections: int) -> None:
        if name == "bare":
            threads = 1 if connections == 1 else 2
            got = bare(model, image, seconds=arguments.seconds, threads=threads)
            record(name, f"rate_{connections}", got["rate"])
            record(name, f"p50_ms_{connections}", got["p50_ms"])
            return
        server = running[name]
        with turn(server):
            before = cpu_s(server.tree())
            got = load(server.url, image, connections=connections, seconds=arguments.seconds)
            spent = cpu_s(server.tree()) - before
            memory[name] = memory_mb(server.tree())
        if got["errors"]:
            print(f"    {name} at {connections}: {got['errors']} errors", flush=True)
        for what in ("rate", "p50_ms", "p99_ms"):
            record(name, f"{what}_{connections}", got[what])
        record(name, f"cpu_ms_{connections}", spent / max(1, got.get("requests", got["rate"] * arguments.seconds)) * 1e3)

    with all_started(settings, image) as running:
        bare(model, image, seconds=1.0)
        for number in range(arguments.rounds):
            for connections in arguments.connections:
                # The order rotates, so that no server always runs after the same one.
                names = names[1:] + names[:1]
                for name in names:
                    measure(name, connections)
            rates = ", ".join(
                f"{name} " + " ".join(f"{rows[name][f'rate_{count}'][-1]:.0f}" for count in arguments.connections)
                for name in sorted(names)
            )
            print(f"  round {number + 1} (load {os.getloadavg()[0]:.1f}): {rates}", flush=True)
    return summary(rows, memory, list(rows), arguments.connections)


def summary(rows: Any, memory: Any, names: list[str], connections: list[int]) -> dict[str, Any]:
    """Return medians, and median ratios of edgeline to the others."""
    medians = {name: {what: round(statistics.median(values), 3) for what, values in row.items()} for name, row in rows.items()}
    ratios: dict[str, Any] = {}
    for mine in [name for name in names if name.startswith("edgeline")]:
        ratios[mine] = {
            other: {
                str(count): round(median_ratio(rows[mine][f"rate_{count}"], rows[other][f"rate_{count}"]), 3)
                for count in connections
            }
            for other in names
            if other != mine
        }
        if 1 in connections:
            over = [a - b for a, b in zip(rows[mine]["p50_ms_1"], rows["bare"]["p50_ms_1"], strict=True)]
            medians[mine]["overhead_ms"] = round(statistics.median(over), 3)
    for name in names:
        figures = "  ".join(f"{count}: {medians[name][f'rate_{count}']:8.1f}" for count in connections)
        cost_keys = [key for key in medians[name] if key.startswith(("cpu", "over", "p50_ms_1"))]
        costs = "  ".join(f"{key} {medians[name][key]:.2f}" for key in cost_keys)
        memory_text = f"  rss {memory[name]['rss']:.0f} pss {memory[name]['pss']:.0f} MB" if name in memory else ""
        print(f"  {name:24} {figures}  {costs}{memory_text}", flush=True)
    for mine, against in ratios.items():
        print(f"  {mine} is " + ", ".join(f"{ratio} x {name}" for name, ratio in against.items()), flush=True)
    return {"medians": medians, "ratios": ratios, "memory_mb": memory}


if __name__ == "__main__":
    main()
