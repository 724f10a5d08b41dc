"""Captions, written word by word from the features of an item."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.generative.tasks import Task
from onepeace.heads import Caption
from onepeace.losses import TokenLosses, token_losses
from onepeace.model import OnePeace
from onepeace.processors.tokenizer import BOS
from onepeace.train.passes import Passes
from onepeace.train.terms.asking import read_task
from onepeace.train.terms.generation import mean_over_tokens
from onepeace.train.terms.supervised import Supervised
from onepeace.train.terms.term import TermName


class Captioning(Supervised):
    """``captioning/image``: cross entropy of each word of the item's caption, given the ones before and the picture.

    The caption is the text of the pair; the encoder does not read it. Of one that is longer than the head's max_tokens
    the beginning is learned.
    """

    task = "caption"
    min_modalities: ClassVar[int] = 2

    @dataclass(frozen=True, kw_only=True)
    class Options(Supervised.Options):
        head: str = "caption"
        caption: str = "text"
        """The modality of the pair whose tokens are written."""
        label_smoothing: float = 0.1
        changes: dict[str, Any] = field(default_factory=dict)
        """Fields of the task "caption", which the trained model is asked, that are other than in the starting model's
        tasks and the built-in ones."""

    options: Options

    def __init__(self, name: TermName, options: Any, model: OnePeace, prepared: Task | None = None):
        super().__init__(name, options, model)
        self.asked = prepared

    @classmethod
    def check(cls, name, options, recipe, config) -> None:
        where = f"objective.{name.text}"
        head = config.model.heads.get(options.head)
        if head is None or head["kind"] != "caption":
            raise UserError(f"{where} needs model.heads.{options.head} of kind caption")
        if len(name.modalities) != 1 or name.modalities[0] not in head["on"]:
            raise UserError(f"{where}: its head reads {', '.join(head['on'])}, one at a time")
        for pair, keys in cls.pairs(name, recipe).items():
            if options.caption not in keys:
                raise UserError(f"{where} writes {options.caption}, which the pair {pair} does not have")
        rows = config.model.adapters.get(options.caption, {}).get("vocab_size")
        if rows is not None and rows > head["vocab_size"]:
            raise UserError(f"{where}: model.heads.{options.head}.vocab_size is {head['vocab_size']}, and texts have "
                            f"ids up to {rows - 1}")  # fmt: skip

    @classmethod
    def prepare(cls, name, options, recipe, sources, processors) -> Task:
        return read_task(cls.task, options.changes, recipe, f"objective.{name.text}")

    def tasks(self) -> dict[str, Task]:
        return {} if self.asked is None else {self.task: self.asked}

    def outputs(self, passes: Passes) -> TokenLosses:  # type: ignore[override]
        head: Caption = passes.model.heads[self.options.head]  # type: ignore[assignment]
        ids = passes.batch.inputs[self.options.caption]["ids"][:, : head.options.max_tokens]
        before = F.pad(ids[:, :-1], (1, 0), value=BOS)
        logits = head(passes.unimodal(self.name.modalities[0]), before)
        return token_losses(logits, ids, label_smoothing=self.options.label_smoothing)

    def head_loss(  # type: ignore[override]
        self, outputs: TokenLosses, batch: Batch, model: OnePeace
    ) -> Tensor:
        """The mean over the words of the batch, those of all processes."""
        return mean_over_tokens(outputs.loss.sum(), len(outputs.loss))
