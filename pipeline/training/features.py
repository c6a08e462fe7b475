"""A frozen backbone's features of every image, computed once and kept by content.

An image's features depend on its bytes, the preprocessing, the backbone and the code of both, and on nothing else; under
those they are kept in a `ContentCache`, over runs and over kills. Memory is bounded by a few batches however many images
there are: the table the head is trained on is a memory-mapped file.

Shapes: N images, D features, H x W the model's input.
"""

import copy
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgeline.pipeline.data.samples import Sample, stream_pixels
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.devices import autocast, memory_errors, to_device
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.code_digest import code_digest
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.runs.step import step_key
from edgeline.serve.errors import TrainingError
from edgeline.serve.preprocess import PreprocessSpec

CPU_BATCH = 8
"""Fastest on CPUs: the layers' outputs of more images do not stay in the processor's cache."""
GPU_BATCH = 256
PACKAGES = ("torch", "torchvision", "timm", "pillow", "numpy")
FOLDING_ERROR = 1e-3
"""Largest difference that folding may make, as a share of the largest feature; rounding makes a hundredth of it."""

Augment = Callable[[Tensor, Sequence[Sample]], Tensor]
"""uint8 (N, H, W, 3) and whose they are, to the same shape."""


def compute_features(
    network: Network,
    samples: Sequence[Sample],
    spec: PreprocessSpec,
    *,
    out: Path,
    cache: ContentCache,
    device: torch.device,
    view: str = "plain",
    augment: Augment | None = None,
) -> np.ndarray:
    """Write the features of samples to a .npy file, computing only those that the cache lacks.

    Args:
        network: its backbone is used.
        samples: in the order of the table's rows.
        spec: their preprocessing.
        out: the .npy file to write.
        cache: where features of earlier runs are found, and new ones put batch by batch.
        device: where to compute.
        view: names the augmentation, with its seed, in the cache's key.
        augment: applied to the pixels before the backbone.

    Returns:
        float32, shape (N, D), memory-mapped from `out`.

    Raises:
        DataError: a file is gone or changed.
        TrainingError: out of memory.
    """
    asked = {"backbone": backbone_digest(network), "spec": spec.digest(), "device": device.type, "view": view}
    prefix = step_key(asked, code_digest(__name__, "edgeline.pipeline.training.augment"), PACKAGES)
    keys = {sample.sha256: f"{prefix}:{sample.sha256}" for sample in samples}
    known = {key for key, _ in cache.get(keys.values())}
    missing = list({s.sha256: s for s in samples if keys[s.sha256] not in known}.values())
    if missing:
        _compute(network, missing, spec, keys, cache, device, augment)
    table_ND = np.lib.format.open_memmap(out, "w+", np.float32, (len(samples), network.classifier.in_features))
    rows = cache.get(keys[sample.sha256] for sample in samples)
    for row_D, (_, value) in zip(table_ND, rows, strict=True):
        row_D[:] = np.frombuffer(value, np.float32)
    table_ND.flush()
    return np.asarray(np.load(out, mmap_mode="r"))


def backbone_digest(network: Network) -> str:
    """SHA-256 of a backbone's structure, weights and normalization."""
    digest = hashlib.sha256(repr(network.backbone).encode())
    state = {**network.backbone.state_dict(), "mean": network.mean, "std": network.std}
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _compute(
    network: Network,
    samples: Sequence[Sample],
    spec: PreprocessSpec,
    keys: dict[str, str],
    cache: ContentCache,
    device: torch.device,
    augment: Augment | None,
) -> None:
    on_gpu = device.type == "cuda"
    batch_size = GPU_BATCH if on_gpu else CPU_BATCH
    folded = fold_batch_norm(network, spec).to(device)
    pixels = track(stream_pixels(samples, spec, batch_size), "computing features", len(samples), step=batch_size)
    position = 0
    remedy = "take a smaller model" + (", or train.device=cpu" if on_gpu else "")
    with torch.inference_mode(), autocast(device), memory_errors(batch_size, remedy):
        for batch_NHW3 in pixels:
            part = samples[position : position + len(batch_NHW3)]
            position += len(part)
            images_NHW3 = to_device(torch.from_numpy(batch_NHW3), device)
            if augment is not None:
                images_NHW3 = augment(images_NHW3, part)
            images_NCHW = images_NHW3.permute(0, 3, 1, 2).float()
            features_ND = folded.features(images_NCHW).float().cpu().numpy()
            if on_gpu and not np.isfinite(features_ND).all():
                with torch.autocast("cuda", enabled=False):  # half precision overflowed
                    features_ND = folded.features(images_NCHW).float().cpu().numpy()
            _check_finite(features_ND, part)
            cache.put((keys[s.sha256], row_D.tobytes()) for s, row_D in zip(part, features_ND, strict=True))


def _check_finite(features_ND: np.ndarray, samples: Sequence[Sample]) -> None:
    """Refuse features that would stay in the cache and spoil every later training."""
    for sample, row_D in zip(samples, features_ND, strict=True):
        if not np.isfinite(row_D).all():
            raise TrainingError(
                f"the backbone gives features that are not finite for {sample.path}; are its weights whole?",
                code="features_not_finite",
            )


def fold_batch_norm(network: Network, spec: PreprocessSpec) -> Network:
    """Return a copy of a network, for inference, whose batch norms are folded into the convolutions before them.

    Which convolution feeds which norm is seen from one forward pass, not from names or tracing: a norm is folded where its
    input is the very tensor a convolution gave. What that cannot see (a tensor with a second reader, or changed in place;
    a convolution that rescales its own weights) shows in the features: the copy is unfolded where they are not the same.
    """
    plain = copy.deepcopy(network).eval()
    folded = copy.deepcopy(plain)
    noise = torch.rand(1, 3, spec.height, spec.width, generator=torch.Generator().manual_seed(0)) * 255
    pairs, expected_ND = _conv_norm_pairs(folded, noise)
    for conv, norm in pairs:
        fused = fuse_conv_bn_eval(conv, norm)
        conv.weight, conv.bias = fused.weight, fused.bias
        # timm's norms carry the activation after them: keep that, and make the affine part nothing.
        activation = getattr(norm, "act", None)
        _replace(folded.backbone, norm, activation if isinstance(activation, nn.Module) else nn.Identity())
    with torch.inference_mode():
        difference = (folded.features(noise) - expected_ND).abs().max()
    return plain if difference > FOLDING_ERROR * expected_ND.abs().max() else folded


def _conv_norm_pairs(network: Network, images_NCHW: Tensor) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], Tensor]:
    """The convolutions whose output goes into a batch norm, each with it, and the features."""
    produced: dict[int, nn.Conv2d] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    kept: list[Tensor] = []  # tensors stay alive, so that their ids stay theirs

    def after_conv(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        produced[id(output)] = layer
        kept.append(output)

    def before_norm(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        if (conv := produced.get(id(inputs[0]))) is not None:
            pairs.append((conv, layer))

    hooks = [m.register_forward_hook(after_conv) for m in network.backbone.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.backbone.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
    hooks += [m.register_forward_pre_hook(before_norm) for m in norms]
    with torch.inference_mode():
        features_ND = network.features(images_NCHW)
    for hook in hooks:
        hook.remove()
    return pairs, features_ND


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for name, module in root.named_modules():
        if module is old:
            setattr(root.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], new)
            return
