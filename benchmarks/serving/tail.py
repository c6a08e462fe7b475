"""Median and 99th percentile of the latency at 80 % of each server's peak, with requests at a constant rate.

A server's peak is measured first, in the same round, with 16 connections in a closed loop. Then requests are due at 80 % of it,
and latency counts from when a request was due, so a server that falls behind cannot hide it. `--rate` sends the same rate to
all servers instead.
"""

import os
import statistics

from harness import all_started, arguments_of, artifact, generate, photo, report, setting, turn, versions, workspace


def main() -> None:
    parser = arguments_of(__doc__, seconds=10.0, servers=["edgeline", "fastapi", "litserve", "bentoml", "mlserver"])
    parser.add_argument("--share", type=float, default=0.8, help="share of the peak")
    parser.add_argument("--rate", type=float, default=0.0, help="requests per second for every server, instead of a share")
    arguments = parser.parse_args()
    rows: dict[str, dict[str, list[float]]] = {}
    with workspace(arguments.environment) as folder:
        model, image = artifact(arguments.artifact), photo(arguments.photo, folder)
        settings = [setting(name, model, folder) for name in arguments.servers]
        with all_started(settings, image) as running:
            for number in range(arguments.rounds):
                for name in [each.name for each in settings]:
                    with turn(running[name]):
                        url = running[name].url
                        peak = arguments.rate / arguments.share or generate(url, image, connections=16, seconds=3)["rate"]
                        rate = peak * arguments.share
                        got = generate(url, image, rate=rate, connections=128, seconds=arguments.seconds)
                    row = {"peak": peak, "rate": rate, "answered": got["rate"], "errors": got["errors"] + got["unsent"]}
                    row |= {key: got[key] for key in ("p50_ms", "p90_ms", "p99_ms", "max_ms")}
                    for key, value in row.items():
                        rows.setdefault(name, {}).setdefault(key, []).append(value)
                latencies = ", ".join(f"{name} {row['p50_ms'][-1]:.0f} / {row['p99_ms'][-1]:.0f}" for name, row in rows.items())
                print(f"  round {number + 1} (load {os.getloadavg()[0]:.1f}), p50 / p99 ms: {latencies}", flush=True)
        peers = versions(arguments.servers, folder)
    medians = {name: {key: round(statistics.median(values), 2) for key, values in row.items()} for name, row in rows.items()}
    for name, row in medians.items():
        print(f"  {name:20} " + "  ".join(f"{key} {value:.1f}" for key, value in row.items()))
    report("tail", rounds=arguments.rounds, seconds=arguments.seconds, share=arguments.share, peers=peers, medians=medians)


if __name__ == "__main__":
    main()
