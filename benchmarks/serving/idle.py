"""Memory and CPU of idle servers, and their start-up time.

Start-up time is from starting the process to the first ready response, with files in the page cache; median of `--rounds`
starts, servers in turn. Then memory after one request, and CPU use over `--seconds` without connections. With float32 and int8,
the same file in every server.
"""

import statistics
import time

from harness import arguments_of, artifact, ask, cpu_s, memory_mb, photo, report, setting, start, versions, workspace

FILES = {"fp32": (None, "model.onnx"), "int8": ("onnx-int8", "model.int8.onnx")}


def main() -> None:
    parser = arguments_of(__doc__, seconds=20.0, servers=["edgeline", "fastapi", "litserve", "bentoml", "mlserver"])
    parser.add_argument("--files", nargs="*", default=list(FILES), choices=list(FILES))
    arguments = parser.parse_args()
    rows = {}
    with workspace(arguments.environment) as folder:
        model, image = artifact(arguments.artifact), photo(arguments.photo, folder)
        for file in arguments.files:
            variant, path = FILES[file]
            ready: dict[str, list[float]] = {name: [] for name in arguments.servers}
            for number in range(-1, arguments.rounds):
                for name in arguments.servers:
                    full = name if name.startswith("edgeline") else f"{name}:MODEL_FILE={path}"
                    server = start(setting(full, model, folder, variant=variant))
                    if number >= 0:
                        ready[name].append(server.ready_s)
                    if number == arguments.rounds - 1:
                        ask(server.url, image.read_bytes())
                        time.sleep(3)
                        before, begun = cpu_s(server.tree()), time.perf_counter()
                        time.sleep(arguments.seconds)
                        share = (cpu_s(server.tree()) - before) / (time.perf_counter() - begun)
                        tree = server.tree()
                        rows[f"{name} {file}"] = {
                            "ready_s": round(statistics.median(ready[name]), 3),
                            "idle_cpu_percent": round(share * 100, 3),
                            **{f"{key}_mb": round(value, 1) for key, value in memory_mb(tree).items()},
                            "processes": len(tree),
                        }
                        print(f"  {name:20} {file}: {rows[f'{name} {file}']}", flush=True)
                    server.stop()
        peers = versions(arguments.servers, folder)
    report("idle", rounds=arguments.rounds, seconds=arguments.seconds, peers=peers, rows=rows)


if __name__ == "__main__":
    main()
