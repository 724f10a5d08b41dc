"""What stems that were trained elsewhere share."""

from typing import Any, cast

import torch
from torch import Tensor, nn


class PretrainedStem(nn.Module):
    """A network with published weights, and a projection of its feature map to the width of the tokens.

    A subclass makes ``network`` and gives ``features`` (raw input -> feature map, channels last). Where the network is
    frozen (``freeze: [adapters.*.stem.network.*]``) a run can compute its features once and keep them
    (onepeace/train/stem_features.py): an adapter takes ``{"features"}`` in place of its raw input.

    Args:
        dim: width of the tokens.
        channels: of the feature map.
    """

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.proj = nn.Linear(channels, dim)

    def project(self, features: Tensor) -> Tensor:
        """A feature map (B, ..., channels) -> (B, ..., dim)."""
        return self.proj(self.norm(features.to(self.norm.weight.dtype)))

    def load_pretrained(self) -> None:
        """Fetch the network's published weights, from an installed package or a hub.

        Raises:
            UserError: they cannot be had.
        """
        raise NotImplementedError


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """The network in evaluation mode without batch norms: each becomes part of the convolution before it.

    Same function, faster on a CPU, and training cannot move running statistics. A batch norm with no convolution of its
    width before it stays.
    """
    network.eval()
    before: tuple[str, nn.Module] | None = None
    for name, child in list(network.named_children()):
        conv = before[1] if before is not None else None
        follows = isinstance(child, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d)
        if before is not None and follows and cast(nn.Conv2d, conv).out_channels == child.num_features:
            setattr(network, before[0], torch.nn.utils.fuse_conv_bn_eval(cast(nn.Conv2d, conv), cast(Any, child)))
            setattr(network, name, getattr(child, "act", nn.Identity()))  # timm's batch norms hold the activation
        else:
            fold_batch_norms(child)
        before = (name, child)
    return network
