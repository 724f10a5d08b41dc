"""OFA's image stem: the first three stages of a ResNet."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """Batch norm without torch's count of batches, which only matters if momentum is None."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.num_batches_tracked = None

    def reset_running_stats(self) -> None:
        nn.init.zeros_(self.running_mean)  # type: ignore[arg-type]
        nn.init.ones_(self.running_var)  # type: ignore[arg-type]

    def _load_from_state_dict(self, *args: Any) -> None:
        nn.Module._load_from_state_dict(self, *args)  # torch's method would add the count to older states


class ResNetStem(nn.Module):
    """Pixels -> a map of 16 x 16 pixel patches: ResNet (v1.5) without its fourth stage, names as in torchvision.

    Args:
        width: channels of the first convolution; stages end with 4, 8 and 16 times as many.
        depths: bottlenecks of each stage.
        freeze_norms: use the stored statistics of batch norms in training too. Gains and biases are trained.
    """

    def __init__(self, width: int, depths: Sequence[int], freeze_norms: bool = True):
        super().__init__()
        self.freeze_norms = freeze_norms
        self.channels = 16 * width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(width, width, depths[0], stride=1)
        self.layer2 = _stage(4 * width, 2 * width, depths[1], stride=2)
        self.layer3 = _stage(8 * width, 4 * width, depths[2], stride=2)

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def train(self, mode: bool = True) -> "ResNetStem":
        super().train(mode)
        if self.freeze_norms:
            for module in self.modules():
                if isinstance(module, BatchNorm):
                    module.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, channels, H / 16, W / 16), sides rounded up."""
        x = self.maxpool(self.bn1(self.conv1(pixels)).relu())
        return self.layer3(self.layer2(self.layer1(x)))


def _stage(channels: int, width: int, depth: int, stride: int) -> nn.Sequential:
    from torchvision.models.resnet import Bottleneck, conv1x1

    shortcut = nn.Sequential(conv1x1(channels, 4 * width, stride), BatchNorm(4 * width))
    blocks = [Bottleneck(channels, width, stride, shortcut, norm_layer=BatchNorm)]
    for _ in range(depth - 1):
        blocks.append(Bottleneck(4 * width, width, norm_layer=BatchNorm))
    return nn.Sequential(*blocks)
