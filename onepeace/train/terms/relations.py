"""Relations: items are to be as like each other in the shared space as an outside teacher finds them."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from onepeace import losses
from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.model import OnePeace
from onepeace.train import parallel
from onepeace.train.passes import Passes
from onepeace.train.terms.distillation import Distillation, Features
from onepeace.train.terms.term import TermName


class Relations(Distillation):
    """``relations/image``: as ``distillation/image``, but of the vectors that are searched, and of nothing but their
    cosines with each other: the teacher's space may have any width, and no axis of it is copied.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Distillation.Options):
        student_scale: float = 10.0
        """Factor on our cosines; ``scale`` is that on the teacher's."""

    options: Options

    def __init__(self, name: TermName, options: Any, model: OnePeace, prepared: Any = None):
        super().__init__(name, options, model, prepared)
        self.head = nn.Identity()

    @classmethod
    def check(cls, name, options, recipe, config) -> None:
        super().check(name, options, recipe, config)
        (key,) = name.modalities
        if key not in config.model.projections:
            raise UserError(f"objective.{name.text} needs a projection of {key}; add it to model.projections")

    def student(self, passes: Passes, key: str) -> Tensor:
        return passes.embedding(key)

    def loss(self, outputs: Features, batch: Batch, model: OnePeace) -> dict[str, Tensor]:
        keys, first = parallel.gather_ragged(outputs.student)
        teacher_keys, _ = parallel.gather_ragged(outputs.teacher)
        count = max(len(keys), 1) / parallel.world_size()
        scales = self.options.student_scale, self.options.scale
        return {self.name.text: losses.relations(*outputs, keys.detach(), teacher_keys, first, *scales, count)}
