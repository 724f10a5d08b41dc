"""Terms that learn what people wrote, token by token: answers to tasks by OFA, captions by a caption head."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.config import Options
from onepeace.config.reader import Count, Natural, Share
from onepeace.data.batch import Batch, real_tokens
from onepeace.device import upload
from onepeace.errors import UserError, expect
from onepeace.evaluate.protocols.classes import read_class_names
from onepeace.generative.asking import MATCH, Asking, AskingOptions, check_caption_head, read_task, real_targets
from onepeace.generative.config import OFAConfig
from onepeace.generative.decoder import Caption
from onepeace.generative.model import OFA
from onepeace.generative.tasks import Task
from onepeace.generative.vocabulary import Vocabulary
from onepeace.hub.architectures import architecture
from onepeace.model import Trained
from onepeace.processors.tokenizer import BOS
from onepeace.train import parallel
from onepeace.train.passes import Passes
from onepeace.train.term import Term, TermContext, TermOptions, TrainingData, check_places
from onepeace.train.terms.heads import Supervised, SupervisedOptions

if TYPE_CHECKING:
    from tokenizers import Tokenizer

AUTO = "auto"
"""Value of ``choices`` for the labels or answers of the training data, instead of a file."""


def token_losses(
    logits: Tensor,
    target: Tensor,
    *,
    real: Tensor | None = None,
    allowed: Tensor | None = None,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy (N,) of a decoder's logits (B, T, V) for the next ids ``target`` (B, T), row by row; padding in the
    targets is ignored.

    Args:
        real: (N,) int64, the targets that are not padding, in the flattened (B, T), from `real_targets`. None: they are
            looked up, which waits for the device of the targets.
        allowed: (V,) or (B, T, V) bool: the ids in the softmax, e.g. the continuations in a trie of answers. Targets
            must be among them, or the loss is infinite. None: all.
        weights: (B,), factors on the log-probabilities of each row.
        label_smoothing: see `smoothed_cross_entropy`.
    """
    if real is None:
        real = real_targets(target)
    scores = logits.flatten(0, 1)[real].float()
    if allowed is not None:
        allowed = allowed.expand_as(logits).flatten(0, 1)[real]
        scores = scores.masked_fill(~allowed, -torch.inf)
    log_probs = scores.log_softmax(-1)
    if weights is not None:
        weights_of_tokens = weights.unsqueeze(1).expand_as(target).flatten()[real]
        log_probs = log_probs * weights_of_tokens.unsqueeze(1)
    return smoothed_cross_entropy(log_probs, target.flatten()[real], allowed, label_smoothing)


def smoothed_cross_entropy(
    log_probs: Tensor, target: Tensor, allowed: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Losses (N,) of log-probabilities (N, V) and targets (N,), without padding (released code).

    Args:
        allowed: (V,) or (N, V) bool, the ids that share the smoothing's mass; None: all.
        label_smoothing: mass spread evenly over the wrong ids.
    """
    nll = -log_probs.gather(1, target.unsqueeze(1)).squeeze(1)
    if not label_smoothing:
        return nll
    if allowed is None:
        num_wrong: Tensor | int = log_probs.shape[1] - 1
        smooth = -log_probs.sum(1)
    else:
        num_wrong = (allowed.sum(-1) - 1).clamp_min(1)  # a token without alternatives has no loss for any share
        smooth = -log_probs.masked_fill(~allowed, 0.0).sum(1)
    share = label_smoothing / num_wrong
    return (1 - label_smoothing - share) * nll + share * smooth


def without_worst(losses: Tensor, share: float) -> Tensor:
    """The losses of tokens but this share, the largest: captions from the web are often wrong."""
    num_kept = int(len(losses) * (1 - share))
    return losses.topk(num_kept, largest=False).values


class Prepared(NamedTuple):
    """Facts about the data that the term needs."""

    task: Task
    """Task with its choices."""
    tokenizer: "Tokenizer"


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(AskingOptions, TermOptions):
    """Options of `Generation`."""

    task: str
    """Name of a task; the trained model keeps the task under this name."""
    changes: Options = field(default_factory=dict)
    """Changed fields of the task, which is taken from the starting model or else built in."""
    choices: str | None = None
    """JSON file below data.root that lists the possible answers; auto: the labels or answers of the data."""
    patches: Count | None = None
    """Number of patches of each picture that are read, drawn at random in every step; null = all."""
    label_smoothing: Share = 0.0
    drop_worst: Share = 0.0
    """Share of the tokens that is ignored: those with the largest loss."""
    drop_worst_after: Natural = 0
    """Number of updates before ``drop_worst`` applies."""


class Generation(Term[GenerationOptions]):
    """Cross entropy of each token of the answer to a task, given the previous ones.

    The prompt of the task (onepeace/generative/tasks.py) may contain the caption of a sample, {text}, and its targets
    by name. If the task has choices, only the tokens that continue one of them compete in each step.
    """

    Options = GenerationOptions

    def __init__(self, options: GenerationOptions, model: Trained, prepared: Prepared):
        super().__init__(options, model)
        config = expect(model, OFA).config
        vocabulary = Vocabulary.of(config, prepared.tokenizer)
        self.asking = Asking(prepared.task, vocabulary, config.num_positions, options)
        self.trie = prepared.task.trie(vocabulary) if prepared.task.labels else None

    @classmethod
    def check(cls, options: GenerationOptions, context: TermContext) -> None:
        where = options.where
        task = read_task(options, options.task, options.changes, context.start_folder)
        check_writes(options, context)
        if options.weighted and options.writes != "answers":
            raise UserError(f"{where}.weighted is for answers with scores, and writes is {options.writes}")
        needed = {*task.fields, options.writes}
        if options.writes == "boxes":
            needed.add("box_labels")
        for source in context.sources:
            if ("image" in source.modalities) != (task.image is not None):
                reads = "no picture" if task.image is None else "a picture"
                modalities = ", ".join(source.modalities)
                raise UserError(
                    f"the task {options.task} reads {reads}, and {source.name} is of {modalities}", where=where
                )
            available = {*source.targets, MATCH}
            if "text" in source.modalities:
                available.add("text")
            missing = needed - available
            if missing:
                raise UserError(f"{where} needs {min(missing)} of its samples; add it to targets of {source.shards}")
        places = needed & {"box", "boxes"}
        if places:
            check_places(options, min(places), context.data, context.config)

    @classmethod
    def prepare(cls, options: GenerationOptions, data: TrainingData) -> Prepared:
        task = read_task(options, options.task, options.changes, data.start_folder)
        if options.choices == AUTO:
            task = replace(task, answer="choice", choices=_answers_of_data(options, data))
        elif options.choices is not None:
            file = Path(os.path.expandvars(data.config.root), options.choices)
            task = replace(task, answer="choice", choices=read_class_names(file))
        if task.answer == "choice" and not task.choices:
            raise UserError(
                f"the task {options.task} has no choices; give choices: auto or a file", where=options.where
            )
        data.keep_task(options, options.task, task)
        return Prepared(task, data.tokenizer)

    def outputs(self, passes: Passes) -> Tensor:
        pixels = pixels_of(passes.batch)
        asked = self.asking(passes.batch, self.trie)
        keep = None
        if self.options.patches is not None and pixels is not None:
            num_patches = passes.batch.lengths["image"] - 1
            # Drawn separately for each picture.
            scores = torch.rand(len(num_patches), num_patches[0], device=passes.device)
            keep = scores.argsort(1)[:, : self.options.patches]
        count_tokens(passes, keep, asked.num_tokens, asked.ids.numel() + asked.written.numel())
        asked = asked.to(passes.device)
        logits = passes.model(asked.ids, asked.written, pixels, keep=keep)
        return token_losses(
            logits,
            asked.target,
            real=asked.real,
            allowed=asked.allowed,
            weights=asked.weights,
            label_smoothing=self.options.label_smoothing,
        )

    def loss(self, outputs: Tensor, batch: Batch, model: Trained) -> dict[str, Tensor]:
        if self.options.drop_worst and self.step > self.options.drop_worst_after:
            outputs = without_worst(outputs, self.options.drop_worst)
        return {self.options.name: mean_over_tokens(outputs)}


def _answers_of_data(options: GenerationOptions, data: TrainingData) -> list[str]:
    """All values of the target that is written: labels, or answers with their scores."""
    answers: set[str] = set()
    for sample in data.samples(options):
        value = sample.targets.get(options.writes)
        if not value:
            continue
        answers.update([value] if isinstance(value, str) else value)
    return sorted(answers)


def check_writes(options: TermOptions, context: TermContext) -> None:
    """UserError for a model that does not write, or options of the recipe that models which write do not support."""
    config = context.config
    if not architecture(config.architecture).generates:
        raise UserError(
            f"{options.where} needs a generative model, such as architecture: ofa; a caption head learns by captioning"
        )
    updates_statistics = isinstance(config.model, OFAConfig) and not config.model.freeze_stem_norms
    if updates_statistics and context.run.grad_cache_chunks > 1:
        raise UserError(
            "model.freeze_stem_norms: false needs run.grad_cache_chunks=1: parts are computed twice, and would count "
            "twice in the statistics"
        )
    if context.optim.layer_decay is not None:
        raise UserError("optim.layer_decay: the blocks of a generative model are not one stack; leave it out")
    for section in ("token_dropout", "stem_views"):
        if getattr(context.data, section):
            raise UserError(f"data.{section} is not for generative models; take it out")
    for source in context.sources:
        if source.candidates is not None:
            raise UserError(f"a generative model reads one text of an item; take candidates from {source.shards}")


def pixels_of(batch: Batch) -> Tensor | None:
    """Pixels (B, 3, H, W) of the batch; None if it has no pictures."""
    if "image" not in batch.inputs:
        return None
    if batch.rows > 1:
        raise UserError(f"{batch.keys[0]} has {batch.rows} pictures; a generative model reads one")
    return batch.inputs["image"]["pixels"]


def count_tokens(passes: Passes, keep: Tensor | None, num_words: int, num_padded: int, key: str = "image") -> None:
    """Count the tokens of a pass for the log.

    Args:
        keep: the patches that are read, (B, K); None = all tokens of the modality ``key``, if there are any.
        num_words: number of ids that are read and written, without padding.
        num_padded: the same with padding.
    """
    passes.real_tokens += num_words
    passes.all_tokens += num_padded
    count = 0
    if keep is not None:
        count = keep.numel()
    elif key in passes.batch.inputs:
        count = int((passes.batch.lengths[key] - 1).sum())
    passes.real_tokens += count
    passes.all_tokens += count


def mean_over_tokens(losses: Tensor) -> Tensor:
    """Loss of this process whose average over all processes is the mean over the tokens of all of them."""
    counts = parallel.gather_numbers(len(losses))
    return losses.sum() / max(sum(counts) / len(counts), 1e-6)


@dataclass(frozen=True, kw_only=True)
class CaptioningOptions(SupervisedOptions):
    head: str = "caption"
    label_smoothing: Share = 0.1
    changes: dict[str, Any] = field(default_factory=dict)
    """Changed fields of the task "caption", which is taken from the starting model or else built in."""

    def reads(self, source: str, present: Sequence[str]) -> bool:
        return super().reads(source, present) and "text" in present


class Captioning(Supervised[CaptioningOptions]):
    """Cross entropy of each word of the item's caption, given the ones before and the picture or sound.

    The caption is the text of the pair; the encoder does not read it. A caption that is longer than the head's
    max_tokens is cut.
    """

    Options = CaptioningOptions
    task = "caption"

    @classmethod
    def check(cls, options: CaptioningOptions, context: TermContext) -> None:
        head = check_caption_head(options, context.config)
        num_ids = context.config.model.adapters.get("text", {}).get("vocab_size")
        if num_ids is not None and num_ids > head["vocab_size"]:
            raise UserError(
                f"model.heads.{options.head}.vocab_size is {head['vocab_size']}, and texts have ids "
                f"up to {num_ids - 1}",
                where=options.where,
            )

    @classmethod
    def prepare(cls, options: CaptioningOptions, data: TrainingData) -> None:
        task = read_task(options, cls.task, options.changes, data.start_folder)
        data.keep_task(options, cls.task, task)

    def outputs(self, passes: Passes) -> Tensor:
        head = expect(passes.encoder.heads[self.options.head], Caption)
        ids = passes.batch.inputs["text"]["ids"][:, : head.options.max_tokens]
        written = F.pad(ids[:, :-1], (1, 0), value=BOS)
        logits = head(passes.unimodal(self.options.one_modality()), written)
        lengths = np.minimum(passes.batch.lengths["text"] - 1, head.options.max_tokens)
        real = upload(real_tokens(lengths), ids.device)
        return token_losses(logits, ids, real=real, label_smoothing=self.options.label_smoothing)

    def loss(self, outputs: Tensor, batch: Batch, model: Trained) -> Mapping[str, Tensor]:
        return {self.options.name: mean_over_tokens(outputs)}
