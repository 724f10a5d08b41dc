"""Base class of pretrained stems."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class PretrainedStem(nn.Module):
    """Network with published weights, and a projection of its feature map to the token width.

    A subclass creates ``network`` and implements ``features`` (raw input -> feature map, channels last). If the network
    is frozen (``freeze: [adapters.*.stem.network.*]``), a run can compute its features once and cache them
    (onepeace/train/stem_features.py): an adapter accepts ``{"features"}`` instead of its raw input.

    Args:
        dim: width of the tokens; 0 = the feature map alone, without a projection (`JoinedStem`).
        channels: channels of the feature map.
    """

    network: Any
    features: Any

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.channels = channels
        if dim:
            self.norm = nn.LayerNorm(channels)
            self.proj = nn.Linear(channels, dim)

    def train(self, mode: bool = True) -> "PretrainedStem":
        """Set the mode, but keep the network in evaluation mode: no dropout, stochastic depth or masking."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, *inputs: Any) -> Tensor:
        """The arguments of ``features`` -> tokens (B, ..., dim)."""
        return self.project(self.features(*inputs))

    def project(self, features: Tensor) -> Tensor:
        """Project a feature map (B, ..., channels) to (B, ..., dim)."""
        return self.proj(self.norm(features.to(self.norm.weight.dtype)))

    def load_pretrained(self) -> None:
        """Load the published weights, from an installed package or a hub.

        Raises:
            UserError: the weights are not available.
        """
        raise NotImplementedError


def load_bundled_sound_network(network: nn.Module, number: int) -> None:
    """Load the published weights of a network of sounds from the bundled model, which has them in float16, with folded
    batch norms.

    Args:
        number: of the network in the bundled model's stem, which is `JoinedStem`.
    """
    from safetensors import safe_open

    with safe_open(Path(__file__).parents[2] / "weights" / "tiny" / "model.safetensors", "pt") as file:
        key_by_name = {key.partition(f".network.{number}.network.")[2]: key for key in file.keys()}
        weights = {name: file.get_tensor(key_by_name[name]) for name in network.state_dict()}
    network.load_state_dict(weights)


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Fold each batch norm of a network in evaluation mode into the preceding convolution.

    The network computes the same function, faster on a CPU, and training cannot change running statistics. A batch norm
    without a preceding convolution of its width is kept.
    """
    network.eval()
    previous: nn.Module | None = None
    previous_name = ""
    for name, child in list(network.named_children()):
        if (
            isinstance(previous, nn.Conv2d)
            and isinstance(child, nn.BatchNorm2d)
            and previous.out_channels == child.num_features
        ):
            setattr(network, previous_name, torch.nn.utils.fuse_conv_bn_eval(previous, child))
            setattr(network, name, getattr(child, "act", nn.Identity()))  # timm's batch norms hold the activation
        else:
            fold_batch_norms(child)
        previous = child
        previous_name = name
    return network
