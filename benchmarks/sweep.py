"""The sweep of the head on flowers17, beside one epoch of a hand-written loop and scikit-learn's search, in one process.

On the same cached features: the scan of 50 settings in 5 folds, the whole sweep with the heads that it trains as usual, and
scikit-learn's logistic regression with 50 penalties in the same 5 folds. On the files: one epoch as tutorials write it, a
frozen network over the training images with plain transforms and a batch size of 32.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import SHARED, Clock, photos, report
from head_training import Photos
from torch import nn
from torch.utils.data import DataLoader

from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import Prepared, read_prepared
from edgeline.pipeline.models.backbones import Network, build
from edgeline.pipeline.models.devices import choose_device, one_thread
from edgeline.pipeline.training.context import TrainingContext
from edgeline.pipeline.training.heads import HeadData
from edgeline.pipeline.training.search.report import describe_sweep, read_sweep
from edgeline.pipeline.training.search.sweep import scan, sweep_head
from edgeline.pipeline.training.strategies.head import feature_tables, held_out_folds, number_of_views


def one_epoch_by_hand(network: Network, prepared: Prepared) -> float:
    """Train for an epoch as tutorials do. Returns seconds."""
    loader = DataLoader(Photos(prepared.of("train"), [0.5] * 3, [0.5] * 3), 32, shuffle=True, num_workers=2)
    backbone = network.backbone.to(memory_format=torch.contiguous_format).requires_grad_(False).eval()
    layer = nn.Linear(network.classifier.in_features, len(prepared.labels))
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    with Clock() as clock:
        for images, targets in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(backbone(images)), targets).backward()
            optimizer.step()
    return clock.seconds


def logistic(data: HeadData) -> tuple[float, float]:
    """Search 50 penalties of logistic regression. Returns seconds and the best accuracy over the folds."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import PredefinedSplit
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    features_ND = StandardScaler().fit_transform(data.tables[0])
    model = LogisticRegressionCV(
        Cs=np.logspace(-5, 1, 50),
        cv=PredefinedSplit(data.folds_M),
        max_iter=300,
        use_legacy_attributes=False,
        l1_ratios=(0.0,),
        scoring="accuracy",
    )
    with threadpool_limits(1), Clock() as clock:
        model.fit(features_ND, data.targets_M)
    return clock.seconds, float(np.squeeze(model.scores_).mean(0).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=photos("flowers17"))
    parser.add_argument("--model", default="efficientnet_lite0")
    arguments = parser.parse_args()
    if (SHARED / "weights" / "torch").is_dir():
        os.environ.setdefault("TORCH_HOME", str(SHARED / "weights" / "torch"))
    with tempfile.TemporaryDirectory() as temporary:
        config = load_config(None, ["train.strategy=head"], data=arguments.data, model=arguments.model, artifacts=temporary)
        run, _ = prepare(config)
        prepared = read_prepared(run.step("prepare"))
        network, spec = build(config.model, config.weights, classes=len(prepared.labels))
        context = TrainingContext(
            network=network,
            spec=spec,
            prepared=prepared,
            config=config.train,
            seed=0,
            folder=Path(temporary),
            cache=config.cache,
            device=choose_device("cpu"),
        )
        samples = prepared.of("train") + prepared.of("val")
        views = number_of_views(config.train, len(samples), len(prepared.labels))
        with Clock() as features:
            tables = feature_tables(context, samples, views)
        targets_M = np.array([sample.index for sample in samples])
        data = HeadData(tables=tables, targets_M=targets_M, folds_M=held_out_folds(samples, config.train))
        print(f"{len(samples)} images, {len(prepared.labels)} classes; features {features.seconds:.1f} s", flush=True)
        with one_thread(), Clock() as scanning:
            settings = list(scan(context, data))
        best = max(setting.accuracy for setting in settings)
        print(f"scan of {len(settings)} settings, 5 folds   {scanning.seconds:6.1f} s  best {best:.4f}", flush=True)
        with one_thread(), Clock() as sweeping:
            sweep_head(context, data, samples)
        sweep = read_sweep(Path(temporary))
        assert sweep is not None
        print(
            f"with {len(sweep.trained)} settings trained          {sweeping.seconds:6.1f} s  {describe_sweep(sweep)}",
            flush=True,
        )
        logistic_s, logistic_best = logistic(data)
        print(f"logistic regression, 50 x 5 folds {logistic_s:6.1f} s  best {logistic_best:.4f}", flush=True)
        epoch_s = one_epoch_by_hand(network, prepared)
        print(f"one epoch of the loop by hand     {epoch_s:6.1f} s, {len(prepared.of('train'))} images")
    report(
        "sweep",
        data=Path(arguments.data).name,
        images=len(samples),
        settings=len(settings),
        features_s=features.seconds,
        scan_s=scanning.seconds,
        sweep_s=sweeping.seconds,
        logistic_s=logistic_s,
        epoch_by_hand_s=epoch_s,
        scan_accuracy=best,
        logistic_accuracy=logistic_best,
        chosen=sweep.chosen,
        configured_accuracy=sweep.trained[0].accuracy,
        best_trained_accuracy=max(setting.accuracy for setting in sweep.trained),
    )


if __name__ == "__main__":
    main()
