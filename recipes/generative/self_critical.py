"""The term `self_critical` (arXiv 1612.00563): a model's own captions become more or less probable by their score.

A recipe has `imports: [self_critical.py]`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onepeace.config import Options
from onepeace.data.batch import Batch
from onepeace.errors import UserError, expect
from onepeace.generative.asking import check_caption_head, read_task, real_targets
from onepeace.generative.captions import CiderReward
from onepeace.generative.config import OFAConfig
from onepeace.generative.decoder import Caption, CaptionOptions, EncoderOutput
from onepeace.generative.model import OFA
from onepeace.generative.search import search
from onepeace.generative.tasks import Task
from onepeace.generative.terms import check_writes, count_tokens, mean_over_tokens, pixels_of, token_losses
from onepeace.generative.vocabulary import Vocabulary
from onepeace.model import Encoder, Trained
from onepeace.processors.tokenizer import BOS, EOS, PAD
from onepeace.train.frozen import by_name
from onepeace.train.passes import Passes
from onepeace.train.term import Logged, Term, TermContext, TermOptions, TrainingData
from onepeace.train.terms import TERMS

if TYPE_CHECKING:
    from tokenizers import Tokenizer


Captions = list[tuple[int, ...]]
"""The tokens of the captions of an item, with eos."""

END = "<eos>"
"""Appended to every caption that is compared, so that an incomplete one has a lower score (released code)."""


class Prepared(NamedTuple):
    """Facts about the data that the term needs."""

    task: Task
    tokenizer: "Tokenizer"
    references: dict[str, list[str]]
    """Captions of each sample by key."""
    reward: CiderReward


class Judged(NamedTuple):
    """Losses and rewards of the captions written for a part of the batch."""

    loss: Tensor
    """(N,): for each token, the negative log-probability times the advantage of its caption."""
    reward: Tensor
    """(M,): CIDEr-D of each caption."""


@dataclass(frozen=True, kw_only=True)
class SelfCriticalOptions(TermOptions):
    """Options of `SelfCritical`."""

    task: str = "caption"
    """Name of the task, whose search finds the captions."""
    changes: Options = field(default_factory=dict)
    """Changed fields of the task, which is taken from the starting model or else built in."""
    head: str | None = None
    """A caption head that writes, an entry of model.heads; null: the model writes by itself (OFA)."""

    def reads(self, source: str, present: Sequence[str]) -> bool:
        return super().reads(source, present) and "text" in present


class SelfCritical(Term[SelfCriticalOptions]):
    """The log-probability of captions from the model's own search, times their advantage.

    The search runs in evaluation mode. The advantage of a caption is its CIDEr-D, with the words of the evaluation and
    the document frequencies of the training captions, minus the mean of the item's other captions (OFA).
    """

    Options = SelfCriticalOptions
    needs_whole_model = True

    def __init__(self, options: SelfCriticalOptions, model: Trained, prepared: Prepared):
        super().__init__(options, model)
        self.prepared = prepared
        self.key = "image" if options.head is None else options.one_modality()
        writer = self._writer(model)
        if isinstance(writer, OFA):
            self.vocabulary = Vocabulary.of(writer.config, prepared.tokenizer)
        else:
            self.vocabulary = Vocabulary(prepared.tokenizer, writer.options.vocab_size)

    @classmethod
    def check(cls, options: SelfCriticalOptions, context: TermContext) -> None:
        where = options.where
        task = read_task(options, options.task, options.changes, context.start_folder)
        if task.answer != "text" or task.decoder_prompt != "none" or task.image is None or task.fields:
            raise UserError(f"the task {options.task} writes no captions", where=where)
        if task.search.beam < 2:
            raise UserError("captions are compared with each other; give changes: {search: {beam: 5}}", where=where)
        if options.head is None:
            check_writes(options, context)
            num_positions = expect(context.config.model, OFAConfig).num_positions
        else:
            head = check_caption_head(options, context.config)
            num_positions = head.get("max_tokens", CaptionOptions.max_tokens)
        if task.search.max_len >= num_positions:
            raise UserError(
                f"search.max_len is {task.search.max_len}, and what writes has {num_positions} "
                f"places, one of them for bos; give changes: {{search: {{max_len: {num_positions - 1}}}}}",
                where=where,
            )

    @classmethod
    def prepare(cls, options: SelfCriticalOptions, data: TrainingData) -> Prepared:
        samples = [sample for sample in data.samples(options) if sample.captions]
        samples_by_key = by_name(samples, "text", "captions to compare with")
        references = {key: sample.captions for key, sample in samples_by_key.items()}
        task = read_task(options, options.task, options.changes, data.start_folder)
        data.keep_task(options, options.task, task)
        reward = CiderReward(references.values(), end=END)
        return Prepared(task=task, tokenizer=data.tokenizer, references=references, reward=reward)

    def outputs(self, passes: Passes) -> Judged:
        model = passes.model
        batch = passes.batch
        captions_by_item = self._search(model, batch)
        if not any(captions_by_item):
            raise UserError(
                f"no caption of {batch.keys[0]} was found, as what the model computes is not finite; lower optim.lr",
                where=self.options.where,
            )
        rewards_by_item = self._rewards(batch, captions_by_item)
        advantages = torch.cat([_advantages(rewards) for rewards in rewards_by_item])
        captions = [torch.tensor(tokens) for tokens in chain.from_iterable(captions_by_item)]
        target = pad_sequence(captions, batch_first=True, padding_value=PAD)
        count_tokens(passes, None, len(real_targets(target)), target.numel(), key=self.key)
        decoder = self._writer(model).decoder
        device = decoder.token_embed.weight.device
        bos = torch.full_like(target[:, :1], BOS)
        written = torch.cat([bos, target[:, :-1]], dim=1)
        encoded = self._encode(model, batch).rows(_item_of_each(captions_by_item, device))
        logits = decoder(written.to(device), encoded)
        lengths = torch.tensor([len(tokens) for tokens in captions])
        advantage_of_token = advantages.repeat_interleave(lengths).to(device)
        return Judged(
            loss=token_losses(logits, target.to(device)) * advantage_of_token,
            reward=torch.cat(rewards_by_item).to(device),
        )

    def loss(self, outputs: Judged, batch: Batch, model: Trained) -> Mapping[str, Tensor | Logged]:
        name = self.options.name
        mean = mean_over_tokens(outputs.loss)
        return {name: mean, f"{name}/reward": Logged(outputs.reward.mean())}

    def _writer(self, model: Trained) -> OFA | Caption:
        """What writes."""
        if self.options.head is None:
            return expect(model, OFA)
        return expect(expect(model, Encoder).heads[self.options.head], Caption)

    def _encode(self, model: Trained, batch: Batch) -> EncoderOutput:
        writer = self._writer(model)
        if isinstance(writer, OFA):
            prompt = self.vocabulary.encode(self.prepared.task.source({}))
            device = writer.decoder.token_embed.weight.device
            ids = torch.tensor([[BOS, *prompt, EOS]], device=device)
            return writer.encode(ids.expand(len(batch.keys), -1), pixels_of(batch))
        encoder = expect(model, Encoder)
        stems = encoder.stems({self.key: batch.inputs[self.key]})
        features = encoder.encode(stems)[self.key]
        return writer.encoded(features)

    @torch.no_grad()
    def _search(self, model: Trained, batch: Batch) -> list[Captions]:
        """The tokens of the captions of each item, with eos, found in evaluation mode."""
        options = self.prepared.task.search
        decoder = self._writer(model).decoder
        was_training = model.training
        model.eval()
        try:
            state = decoder.start(self._encode(model, batch), options.max_len + 1)
            device = decoder.token_embed.weight.device
            hypotheses_by_item = search(decoder.step, state, len(batch.keys), options, device=device)
        finally:
            model.train(was_training)
        return [[hypothesis.tokens for hypothesis in hypotheses] for hypotheses in hypotheses_by_item]

    def _rewards(self, batch: Batch, captions_by_item: Sequence[Captions]) -> list[Tensor]:
        """Rewards of the captions of each item."""
        all_tokens = chain.from_iterable(captions_by_item)
        texts = [self.vocabulary.decode(tokens).strip() for tokens in all_tokens]
        references: list[list[str]] = []
        for key, caption, captions in zip(batch.keys, batch.captions, captions_by_item, strict=True):
            # An item mixed with another one has a caption made for both.
            references_of_item = self.prepared.references.get(key, [caption])
            references += [references_of_item] * len(captions)
        rewards = torch.tensor(self.prepared.reward(texts, references), dtype=torch.float32)
        return list(rewards.split([len(captions) for captions in captions_by_item]))


def _advantages(rewards: Tensor) -> Tensor:
    """Each reward (N,) of an item's captions minus the mean of the others."""
    count = len(rewards)
    return (count * rewards - rewards.sum()) / max(count - 1, 1)


def _item_of_each(captions_by_item: Sequence[Captions], device: torch.device) -> Tensor:
    """Number of the item of each caption (M,)."""
    counts = torch.tensor(list(map(len, captions_by_item)))
    return torch.arange(len(counts)).repeat_interleave(counts).to(device)


TERMS["self_critical"] = SelfCritical
