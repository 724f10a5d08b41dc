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
    """Cross entropy of the target "label"; mixed pictures have a share of each class."""

    Options = ClassificationOptions
    target = "label"
    task = "label"
    takes_mixed = True

    def head_loss(self, outputs: Tensor, batch: Batch, model: Trained) -> Tensor:
        numbers = [self.number_of(label, key) for label, key in zip(self.values(batch), batch.keys, strict=True)]
        target = torch.tensor(numbers, device=outputs.device)
        if batch.mixing is not None:
            one_hot = torch.nn.functional.one_hot(target, outputs.shape[1]).to(batch.mixing.dtype)
            target = batch.mixing @ one_hot
        return losses.classification(outputs, target, self.options.label_smoothing)
