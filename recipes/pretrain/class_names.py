"""The term `names`: a classifier's probabilities are soft targets for the similarities of items to its class names.

A recipe has `imports: [class_names.py]`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.config.reader import Count
from onepeace.data.batch import Batch, Inputs
from onepeace.device import upload
from onepeace.errors import UserError, expect, need
from onepeace.layers.precision import without_autocast
from onepeace.model import INITIAL_SCALE, Encoder, Trained
from onepeace.train import parallel
from onepeace.train.passes import Passes
from onepeace.train.teachers import TeacherOptions, TeacherTable
from onepeace.train.term import Term, TermContext, TermOptions, TrainingData, check_projections
from onepeace.train.terms import TERMS


@dataclass(frozen=True, kw_only=True)
class NamesOptions(TermOptions):
    teacher: TeacherOptions
    """Classifier of ImageNet's 1,000 classes, from timm."""
    names: Count = 128
    """Number of classes used in a step."""
    templates: tuple[str, ...] = ("{}", "a photo of a {}")


class Names(Term[NamesOptions]):
    """Distillation of classes, including those that occur in no caption; it trains the vectors of items and of names.

    Each step uses the most probable classes of the batch, in one of the templates.
    """

    Options = NamesOptions

    def __init__(self, options: NamesOptions, model: Trained, prepared: tuple[TeacherTable, list[Inputs]]):
        super().__init__(options, model)
        scores, self.names = prepared
        probabilities = scores.features.float().softmax(-1)
        self.scores = scores._replace(features=probabilities.half())

    @classmethod
    def check(cls, options: NamesOptions, context: TermContext) -> None:
        key = options.one_modality()
        if key == "text":
            raise UserError(f"{options.where}.on is [text]; give a modality beside text")
        check_projections(options, (key, "text"), context.config)

    @classmethod
    def prepare(cls, options: NamesOptions, data: TrainingData) -> tuple[TeacherTable, list[Inputs]]:
        """The scores, and the text input of all class names for each template."""
        scores = data.features(options.teacher, options.one_modality(), "scores")
        classes = need("open_clip", "teachers").IMAGENET_CLASSNAMES
        num_scores = scores.features.shape[1]
        if num_scores != len(classes):
            raise UserError(
                f"{options.teacher} has {num_scores} classes, and {len(classes)} names are known", where=options.where
            )
        inputs = []
        for template in options.templates:
            inputs.append(data.texts([template.format(name) for name in classes]))
        return scores, inputs

    def outputs(self, passes: Passes) -> tuple[Tensor, Tensor]:
        """Unit vectors (n, E) of the items in the classifier's table, and its probabilities (n, K)."""
        embeddings = passes.embedding(self.options.one_modality())
        vectors, scores = self.scores.known(passes.batch.keys, embeddings)
        return vectors, scores.float()

    def loss(self, outputs: tuple[Tensor, Tensor], batch: Batch, model: Trained) -> dict[str, Tensor]:
        vectors, scores_here = outputs
        scores, _ = parallel.gather_ragged(scores_here)
        likeliest = scores.amax(0) if len(scores) else scores.new_zeros(scores.shape[1])
        chosen = likeliest.topk(min(self.options.names, len(likeliest))).indices
        template = self.names[self.step % len(self.names)]
        # Which names are the longest is known on the device alone, so their padding stays.
        inputs = {name: upload(tensor, chosen.device)[chosen] for name, tensor in template.items()}
        encoder = expect(model, Encoder)
        features = encoder.encode(encoder.stems({"text": inputs}))
        texts = encoder.embed("text", features["text"])
        scale = INITIAL_SCALE if model.logit_scale is None else model.logit_scale.exp()
        loss = soft_targets(
            vectors,
            texts,
            scores_here[:, chosen],
            scale,
            count=max(len(scores), 1) / parallel.world_size(),
        )
        return {self.options.name: loss}


def soft_targets(
    items: Tensor, texts: Tensor, targets: Tensor, scale: Tensor | float, count: float | None = None
) -> Tensor:
    """Cross entropy of the items' similarities to the texts under ``targets``.

    Args:
        items: (B, E) unit vectors.
        texts: (K, E) unit vectors.
        targets: (B, K) probabilities; rows may sum to less than 1, which lowers their weight.
        scale: factor on the cosines.
        count: divisor of the sum over items. None: B.

    Returns:
        Scalar mean over the items, float32; 0, still attached to the graph, if there are no items.
    """
    with without_autocast(items.device.type):
        logits = scale * items.float() @ texts.float().T
        total = torch.sum(-targets.float() * F.log_softmax(logits, dim=-1))
    if count is None:
        count = max(len(items), 1)
    return total / count


TERMS["names"] = Names
