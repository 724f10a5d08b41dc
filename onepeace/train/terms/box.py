"""A region of a picture that words speak of (RefCOCO)."""

import torch
from torch import Tensor

from onepeace import losses
from onepeace.data.batch import Batch
from onepeace.model import Trained
from onepeace.train.supervised import Supervised, SupervisedOptions


class Box(Supervised[SupervisedOptions]):
    """L1 and generalised IoU; the target "box" is [x0, y0, x1, y1], relative to the picture."""

    target = "box"
    task = "box"
    num_outputs = 4
    follows_pixels = True

    def head_loss(self, outputs: Tensor, batch: Batch, model: Trained) -> Tensor:
        return losses.box(outputs, torch.tensor(self.values(batch), dtype=torch.float32, device=outputs.device))
