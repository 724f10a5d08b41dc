"""The class of each pixel (ADE20K)."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.evaluate.detections import IGNORED, read_mask
from onepeace.model import Trained
from onepeace.train.supervised import Supervised, SupervisedOptions


class Segmentation(Supervised[SupervisedOptions]):
    """Cross entropy of each pixel at the picture's size, the mean over those that have a class.

    The target "mask" is a PNG of class numbers, brought to the size of the model's input; `IGNORED` has no class.
    """

    target = "mask"
    task = "mask"
    follows_pixels = True

    def head_loss(self, outputs: Tensor, batch: Batch, model: Trained) -> Tensor:
        size = tuple(batch.inputs[model.config.heads[self.options.head]["on"]]["pixels"].shape[-2:])
        masks = [self._mask(one, key, size) for one, key in zip(self.values(batch), batch.keys, strict=True)]
        target = torch.stack(masks).to(outputs.device)
        logits = F.interpolate(outputs.float(), size, mode="bilinear", align_corners=False)
        known = (target != IGNORED).sum().clamp_min(1)
        return F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum") / known

    def _mask(self, encoded: bytes, key: str, size: tuple[int, ...]) -> Tensor:
        """(H, W) int64 of the nearest pixels."""
        mask = read_mask(encoded, key)
        known = mask[mask != IGNORED]
        if known.size and known.max() >= len(self.labels):
            raise UserError(f"{key}: its mask has the class {known.max()}, and the head has {len(self.labels)}")
        rows, columns = (
            ((np.arange(length) + 0.5) * side / length).astype(np.int64)
            for length, side in zip(size, mask.shape, strict=True)
        )
        return torch.from_numpy(mask[rows][:, columns].astype(np.int64))
