"""A region of a picture that words speak of (RefCOCO)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from onepeace import losses
from onepeace.data.batch import Batch
from onepeace.model import OnePeace
from onepeace.train.terms.supervised import Supervised


class Box(Supervised):
    """``box/image+text``: L1 and generalised IoU; the target "box" is [x0, y0, x1, y1], relative to the picture."""

    target = "box"
    task = "box"
    num_outputs = 4
    follows_pixels = True

    @classmethod
    def example_value(cls, labels: Sequence[str]) -> list[float]:
        return [0.0, 0.0, 1.0, 1.0]

    def head_loss(self, outputs: Tensor, batch: Batch, model: OnePeace) -> Tensor:
        return losses.box(outputs, torch.tensor(self.values(batch), dtype=torch.float32, device=outputs.device))
