"""Detectors of torchvision over the encoder of pictures, and its maps for the heads of other libraries.

    import onepeace
    from onepeace.plugins.torchvision import PyramidBackbone, detector

    model = onepeace.load("tiny", modalities=["image"])
    network = detector(model, num_classes=21, masks=True, size=320)  # Mask R-CNN; class 0 is the background
    losses = network([picture], [{"boxes": boxes, "labels": labels, "masks": masks}])

Pictures are (3, H, W) with values from 0 to 1 and boxes are in their pixels, as torchvision has them; it scales both.

A head that takes a list of maps, such as that of UPerNet in transformers, reads those of the backbone:

    from transformers import UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetHead

    backbone = PyramidBackbone(model.module)
    head = UperNetHead(UperNetConfig(num_labels=150), in_channels=[backbone.out_channels] * 4)
    logits = head(backbone.maps(pixels))                             # (B, 150, H / 8, W / 8) for patches of 32
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.embed.embedder import Embedder
from onepeace.errors import UserError, expect
from onepeace.heads import Pyramid
from onepeace.model import OnePeace
from onepeace.model.adapters.image import ImageAdapter
from onepeace.processors import ImageProcessor

KEY = "image"


class PyramidBackbone(nn.Module):
    """Normalised pixels (B, 3, H, W) -> the maps of a ViTDet pyramid under torchvision's names.

    "0" is the finest, of a quarter of the patch, "3" the coarsest, of two patches; "pool" has every other place of it,
    as in torchvision's own pyramids.

    Args:
        model: its weights are shared, not copied.
        out_channels: of each map.
    """

    def __init__(self, model: OnePeace, out_channels: int = 256):
        super().__init__()
        self.backbone = model.backbone(KEY)
        self.pyramid = Pyramid(model.config.dim, out_channels)
        self.out_channels = out_channels

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """The four maps, the finest first."""
        (last,) = self.backbone({"pixels": pixels})
        return self.pyramid(last)

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.maps(pixels)
        return OrderedDict([*((str(i), each) for i, each in enumerate(maps)), ("pool", F.max_pool2d(maps[-1], 1, 2))])


def detector(
    model: Embedder,
    num_classes: int,
    *,
    masks: bool = False,
    size: int | Sequence[int] | None = None,
    out_channels: int = 256,
    anchor_scale: float = 8,
    **options: Any,
) -> nn.Module:
    """A Faster R-CNN, or a Mask R-CNN with ``masks``, whose weights but the encoder's are fresh.

    Args:
        model: its encoder is shared, not copied; its mean and deviation of pixels are used.
        num_classes: with the background, class 0.
        size: side or (height, width) in pixels to which pictures are squashed; the model's own by default. A multiple
            of the patch. torchvision scales without antialiasing, so very large pictures should come scaled down.
        out_channels: of the pyramid.
        anchor_scale: sides of the anchors, in strides of their map; 8 makes the usual 32 to 512 for patches of 16.
        options: of torchvision's class. ``fixed_size=None`` with ``min_size`` and ``max_size`` keeps the ratio of the
            sides and pads to a multiple of the patch; what the model sees of a picture then depends on its batch.

    Raises:
        UserError: no pictures, a size that does not fit, a patch whose maps torchvision cannot place.
    """
    from torchvision.models.detection import FasterRCNN, MaskRCNN
    from torchvision.models.detection.rpn import AnchorGenerator

    if KEY not in model.processors:
        raise UserError(f"a detector needs {KEY}s; this model has {', '.join(model.processors)}")
    processor = expect(model.processors[KEY], ImageProcessor)
    patch = expect(model.module.adapters[KEY], ImageAdapter).patch_size
    if not math.log2(patch).is_integer():
        raise UserError(f"the patch is {patch} pixels; torchvision places boxes on maps by strides of powers of two")
    sides = (processor.height, processor.width) if size is None else (size, size) if isinstance(size, int) else size
    if len(sides) != 2 or any(side < patch or side % patch for side in sides):
        raise UserError(f"size is {size}; it must be a multiple of the patch, {patch}, or two of them")
    anchors = tuple((anchor_scale * patch / 4 * 2**level,) for level in range(5))
    usual = {
        "fixed_size": (sides[1], sides[0]),
        "size_divisible": patch,
        "image_mean": processor.mean.flatten().tolist(),
        "image_std": processor.std.flatten().tolist(),
        "rpn_anchor_generator": AnchorGenerator(anchors, ((0.5, 1.0, 2.0),) * len(anchors)),
    }
    network = MaskRCNN if masks else FasterRCNN
    return network(PyramidBackbone(expect(model.module, OnePeace), out_channels), num_classes, **{**usual, **options})
