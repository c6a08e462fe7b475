"""From image files to features, compared with the bare forward pass over tensors that are already in memory.

Two bare passes are measured, alternating with ours: the network as loaded, and with its batch norms folded, which is the one
that edgeline runs. Median of all rounds.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from common import Clock, photos, report

from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import read_prepared, stream_pixels
from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.models.devices import CPU_BATCH, choose_device
from edgeline.pipeline.models.fold_batch_norm import fold_batch_norm
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.training.features import FeatureExtractor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=photos("hymenoptera"))
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
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
    main()
