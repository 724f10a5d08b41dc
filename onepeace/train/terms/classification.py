"""One class of several: a label per item (ImageNet, VGGSound, ESC-50, NLVR2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from onepeace import losses
from onepeace.data.batch import Batch
from onepeace.model import Trained
from onepeace.train.supervised import Supervised, SupervisedOptions


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions(SupervisedOptions):
    label_smoothing: float = 0.0


class Classification(Supervised[ClassificationOptions]):
    """Cross entropy of the target "label"."""

    Options = ClassificationOptions
    target = "label"
    task = "label"

    def head_loss(self, outputs: Tensor, batch: Batch, model: Trained) -> Tensor:
        numbers = [self.number_of(label, key) for label, key in zip(self.values(batch), batch.keys, strict=True)]
        target = torch.tensor(numbers, device=outputs.device)
        return losses.classification(outputs, target, self.options.label_smoothing)
