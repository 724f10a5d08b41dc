"""Distillation of a teacher's features for the item, or for its caption, into CLS features."""

from dataclasses import dataclass

from torch import Tensor, nn

from onepeace import losses
from onepeace.config.reader import Positive
from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.model import Trained
from onepeace.train import parallel
from onepeace.train.passes import Passes
from onepeace.train.teachers import TeacherOptions, TeacherTable
from onepeace.train.term import Term, TermContext, TermOptions, TrainingData


@dataclass(frozen=True, kw_only=True)
class DistillationOptions(TermOptions):
    teacher: TeacherOptions
    scale: Positive = 10.0
    vectors: bool = False
    """Whether the item's vector in the shared space learns the teacher's features as they are, such as those of another
    model folder; otherwise CLS features do, through a linear layer, and the features are standardised."""


class Distillation(Term[DistillationOptions]):
    """Distillation (losses/distillation.py) from a teacher (train/teachers.py); ``prepared`` is its table."""

    Options = DistillationOptions

    def __init__(self, options: DistillationOptions, model: Trained, prepared: TeacherTable):
        super().__init__(options, model)
        features = prepared.features.float()
        self.head: nn.Module = nn.Identity()
        self.teacher = prepared._replace(features=features)
        if options.vectors:
            return
        # Pooled features share a large mean, without which cosines separate pictures better.
        normalized = (features - features.mean(0)) / (features.std(0) + 1e-6)
        self.teacher = prepared._replace(features=normalized)
        self.head = nn.Linear(model.config.dim, features.shape[1])

    @classmethod
    def check(cls, options: DistillationOptions, context: TermContext) -> None:
        reads = options.teacher.reads
        if options.one_modality() == "text" and reads == "items":
            raise UserError("a teacher of text reads captions; set teacher.reads: captions", where=options.where)
        if options.vectors and options.one_modality() not in context.config.model.projections:
            raise UserError(
                f"vectors: the model has no vectors of {options.one_modality()}; see model.projections",
                where=options.where,
            )

    @classmethod
    def prepare(cls, options: DistillationOptions, data: TrainingData) -> TeacherTable:
        modality = options.one_modality() if options.teacher.reads == "items" else "text"
        return data.features(options.teacher, modality)

    def outputs(self, passes: Passes) -> tuple[Tensor, Tensor]:
        """Features (n, F) of the items in the teacher's table, and the teacher's features of them."""
        batch = passes.batch
        # Items that are not in the table, such as mixed clips, are left out.
        names = batch.captions if self.options.teacher.reads == "captions" else batch.keys
        modality = self.options.one_modality()
        vectors = passes.embedding(modality) if self.options.vectors else passes.unimodal(modality).cls
        known, features = self.teacher.known(names, vectors)
        return self.head(known), features

    def loss(self, outputs: tuple[Tensor, Tensor], batch: Batch, model: Trained) -> dict[str, Tensor]:
        keys, _ = parallel.gather_ragged(outputs[1])
        count = max(len(keys), 1) / parallel.world_size()
        return {self.options.name: losses.distillation(*outputs, self.options.scale, keys, count)}
