"""From image files to features, compared with the bare forward pass over tensors that are already in memory.

Two bare passes are measured, alternating with ours: the network as loaded, and with its batch norms folded, which is the one
that edgeline runs. Median of all rounds.

    python benchmarks/feature_extraction.py --formats

prints for each backbone that edgeline lists how long the pass takes in the two memory formats, alternately. edgeline runs all
of them channels-last: to choose by timing on each machine would change the last bits from run to run.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from common import Clock, photos, report, without_spinning
from training_loop import settle

from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import read_prepared, stream_pixels
from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.models.catalog import BACKBONES
from edgeline.pipeline.models.devices import CPU_BATCH, choose_device
from edgeline.pipeline.models.fold_batch_norm import fold_batch_norm
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.training.features import FeatureExtractor


def compare_formats(models: list[str], rounds: int) -> None:
    """Print the time of an image in both memory formats, and their ratio, for networks with random weights."""
    rows = {}
    print(f"{'':20}channels-last    contiguous  ratio")
    for model in models:
        network, spec = build(model, "none", classes=2)
        settle(network, spec.height)
        folded = fold_batch_norm(network.eval(), spec)
        images_NCHW = torch.randint(0, 256, (CPU_BATCH, 3, spec.height, spec.width)).float()
        seconds = {torch.channels_last: [], torch.contiguous_format: []}
        for number in range(rounds + 1):
            for layout, measured in seconds.items():
                folded.to(memory_format=layout)
                images = images_NCHW.contiguous(memory_format=layout)
                with Clock() as clock, torch.inference_mode():
                    folded.features(images)
                if number:  # the first pass allocates memory
                    measured.append(clock.seconds / CPU_BATCH)
        last, contiguous = (1000 * statistics.median(measured) for measured in seconds.values())
        rows[model] = {"channels_last_ms": last, "contiguous_ms": contiguous}
        print(f"{model:20}{last:10.1f} ms {contiguous:10.1f} ms {contiguous / last:6.2f}", flush=True)
    report("memory_formats", rounds=rounds, models=rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=photos("hymenoptera"))
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--formats", nargs="*", metavar="MODEL", help="compare memory formats; by default of all backbones")
    arguments = parser.parse_args()
    if arguments.formats is not None:
        compare_formats(arguments.formats or [backbone.name for backbone in BACKBONES], arguments.rounds)
        return
    device = choose_device("cpu")
    network, spec = build(arguments.model, "imagenet", classes=2)
    folded = fold_batch_norm(network, spec)
    with tempfile.TemporaryDirectory() as temporary:
        run, _ = prepare(load_config(data=arguments.data, artifacts=temporary))
        samples = list(read_prepared(run.step("prepare")).samples)[: arguments.images]
        batches = [torch.from_numpy(batch_NHW3) for batch_NHW3 in stream_pixels(samples, spec, CPU_BATCH)]

        def bare(which) -> float:
            with Clock() as clock, torch.inference_mode():
                for batch_NHW3 in batches:
                    which.features(batch_NHW3.permute(0, 3, 1, 2).float())
            return len(samples) / clock.seconds

        def from_files(number: int) -> float:
            cache = ContentCache(Path(temporary, f"{number}.sqlite"))
            with Clock() as clock:
                FeatureExtractor(network, spec, cache, device).compute(samples, Path(temporary, "f.npy"))
            return len(samples) / clock.seconds

        bare(network), bare(folded)
        rounds = [(from_files(n), bare(network), bare(folded)) for n in range(arguments.rounds)]
    ours, plain, folds = (statistics.median(column) for column in zip(*rounds, strict=True))
    to_plain = statistics.median(r[0] / r[1] for r in rounds)
    to_folded = statistics.median(r[0] / r[2] for r in rounds)
    print(f"files to features           {ours:6.1f} images/s")
    print(f"bare forward pass           {plain:6.1f} images/s  ratio {to_plain:.2f}")
    print(f"bare pass, norms folded     {folds:6.1f} images/s  ratio {to_folded:.2f}")
    report(
        "feature_extraction",
        data=Path(arguments.data).name,
        model=arguments.model,
        images=len(samples),
        rounds=arguments.rounds,
        images_per_s=ours,
        bare_images_per_s=plain,
        bare_folded_images_per_s=folds,
        ratio=to_plain,
        ratio_to_folded=to_folded,
    )


if __name__ == "__main__":
    without_spinning()
    main()
