"""Greedy and beam search with any decoder that returns the logits of the next token.

The rules for comparing and finishing hypotheses are fairseq's, with which OFA's released results were obtained; the
beam search of other libraries finds other captions. An answer depends only on its own source.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from onepeace.config.reader import Count, Finite, Natural, Positive, read_arguments
from onepeace.errors import UserError
from onepeace.processors.tokenizer import BOS, EOS, PAD

S = TypeVar("S", bound="State")


class State(Protocol):
    """State of a decoder with N hypotheses; `TextDecoder.start` creates one with a hypothesis for each source."""

    def select(self: S, rows: Tensor) -> S:
        """Select the hypotheses `rows` (M,), which may repeat."""


Step = Callable[[Tensor, S], Tensor]
"""Feeds each hypothesis of a state its next token (N,), which updates the state, and returns the logits (N, V) of the
token after it; for example `TextDecoder.step`."""

Ids = Sequence[int] | Tensor
Allowed = Callable[[Sequence[int]], Ids]
"""Tokens of the answer so far -> the ids that may come next."""


@dataclass(frozen=True)
class SearchOptions:
    """Options of the search for an answer. The defaults are fairseq's, except for ``beam`` and ``max_len``."""

    beam: Count = 5
    """Number of hypotheses (1 = greedy)."""
    max_len: Count = 16
    """Maximum number of tokens of an answer, without eos, which is then forced."""
    min_len: Natural = 1
    """Minimum number of tokens before eos, including those of a prefix."""
    length_penalty: Finite = 1.0
    """The sum of log-probabilities is divided by the number of tokens, including eos, to this power."""
    normalize: bool = True
    """Whether the sum is divided like this; if not, the score is the sum."""
    temperature: Positive = 1.0
    no_repeat_ngram: Natural = 0
    """Size of n-grams of tokens that must not occur twice; 0 = no restriction."""

    def __post_init__(self) -> None:
        read_arguments(type(self), vars(self), "", "search")
        if self.min_len > self.max_len:
            raise UserError(f"search.min_len {self.min_len} is above search.max_len {self.max_len}")


class Hypothesis(NamedTuple):
    """A finished answer."""

    tokens: tuple[int, ...]
    """Forced prefix, answer and eos, without bos."""
    score: float
    """Score, normalised as in the options, by which the hypotheses of a source are ranked."""
    token_scores: tuple[float, ...]
    """Log-probability of each token."""


class _Live(NamedTuple):
    """An unfinished hypothesis, a row of the decoder's batch."""

    source: int
    parent: int
    """Row of its parent at the previous step; before the first step, row of its source."""
    tokens: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    total: float = 0.0

    def followed_by(self, token: int, score: float, *, row: int) -> "_Live":
        """The hypothesis with another token; `row` is the row of this one."""
        return _Live(
            source=self.source,
            parent=row,
            tokens=(*self.tokens, token),
            scores=(*self.scores, score),
            total=self.total + score,
        )


@torch.no_grad()
def search(
    step: Step[S],
    state: S,
    num_sources: int,
    options: SearchOptions,
    *,
    prefixes: Sequence[Sequence[int]] | None = None,
    allowed: Allowed | None = None,
    device: torch.device | str = "cpu",
) -> list[list[Hypothesis]]:
    """Find the hypotheses of each source, best first: at most `options.beam`, none if nothing is allowed.

    Args:
        step, state: the decoder, before bos; it is fed up to 1 + longest prefix + `max_len` tokens.
        prefixes: forced first tokens of the answers by source; they count in scores, but not in `max_len`.
        allowed: restricts the tokens of the answer after the prefix.
        device: device of the decoder.
    """
    if prefixes is None:
        prefixes = [()] * num_sources
    rules = _Rules(options, prefixes, allowed)
    live = [_Live(source=source, parent=source) for source in range(num_sources)]
    finished: list[list[Hypothesis]] = [[] for _ in range(num_sources)]
    num_rows = num_sources
    while live:
        parents = [hypothesis.parent for hypothesis in live]
        if parents != list(range(num_rows)):
            state = state.select(torch.tensor(parents, device=device))
        num_rows = len(live)
        newest = [hypothesis.tokens[-1] if hypothesis.tokens else BOS for hypothesis in live]
        logits = step(torch.tensor(newest, device=device), state).float()
        log_probs = rules.log_probabilities(logits, live)
        candidates_by_source = _candidates(log_probs, live, options.beam)
        live = []
        for source, candidates in candidates_by_source.items():
            live += _unfinished(candidates, finished[source], len(prefixes[source]), options)
    for hypotheses in finished:
        hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
    return finished


@dataclass(frozen=True)
class _Rules:
    """Rules for the token that follows a hypothesis; arguments as in `search`."""

    options: SearchOptions
    prefixes: Sequence[Sequence[int]]
    allowed: Allowed | None

    def log_probabilities(self, logits: Tensor, live: Sequence[_Live]) -> Tensor:
        """Log-probabilities (N, V), -inf for tokens that must not come next."""
        logits = logits / self.options.temperature
        if self.allowed is not None:
            logits = logits.masked_fill(self._blocked(logits, live, self.allowed), -torch.inf)
        log_probs = logits.log_softmax(1)
        log_probs.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        log_probs[:, PAD] = -torch.inf
        for row, hypothesis in enumerate(live):
            self._restrict(log_probs[row], hypothesis)
        return log_probs

    def _restrict(self, log_probs: Tensor, hypothesis: _Live) -> None:
        """Set log-probabilities (V,) to -inf, in place, by the prefix, the lengths and the n-grams."""
        tokens = hypothesis.tokens
        prefix = self.prefixes[hypothesis.source]
        length = len(tokens)
        if length < len(prefix):
            _only(log_probs, prefix[length])
            return
        if length < self.options.min_len:
            log_probs[EOS] = -torch.inf
        if length == len(prefix) + self.options.max_len:
            _only(log_probs, EOS)
        repeats = _repeats((BOS, *tokens), self.options.no_repeat_ngram)
        if repeats:
            log_probs[repeats] = -torch.inf

    def _blocked(self, logits: Tensor, live: Sequence[_Live], allowed: Allowed) -> Tensor:
        """Mask (N, V) of the ids that `allowed` excludes; within a prefix none is excluded."""
        blocked = torch.zeros_like(logits, dtype=torch.bool)
        for row, hypothesis in enumerate(live):
            prefix_length = len(self.prefixes[hypothesis.source])
            if len(hypothesis.tokens) >= prefix_length:
                answer = hypothesis.tokens[prefix_length:]
                blocked[row] = True
                blocked[row, torch.as_tensor(allowed(answer), device=logits.device)] = False
        return blocked


def _only(log_probs: Tensor, token: int) -> None:
    """Exclude, in place, every token but one."""
    log_prob = log_probs[token].clone()
    log_probs.fill_(-torch.inf)
    log_probs[token] = log_prob


def _repeats(tokens: tuple[int, ...], n: int) -> list[int]:
    """Tokens, except eos, that would repeat an n-gram."""
    if not 0 < n <= len(tokens):
        return []
    newest = tokens[len(tokens) - n + 1 :]
    num_ngrams = len(tokens) - n + 1
    repeating = []
    for start in range(num_ngrams):
        ngram = tokens[start : start + n]
        if ngram[:-1] == newest and ngram[-1] != EOS:
            repeating.append(ngram[-1])
    return repeating


def _candidates(log_probs: Tensor, live: Sequence[_Live], beam: int) -> dict[int, list[_Live]]:
    """The 2 * beam best continuations by source, best first; twice the beam, because up to half of them may end."""
    best = log_probs.topk(min(2 * beam, log_probs.shape[1]), dim=1)
    tokens = best.indices.tolist()
    scores = best.values.tolist()
    candidates_by_source: dict[int, list[_Live]] = {}
    for row, hypothesis in enumerate(live):
        for token, score in zip(tokens[row], scores[row], strict=True):
            if score > -torch.inf:
                candidate = hypothesis.followed_by(token, score, row=row)
                candidates_by_source.setdefault(hypothesis.source, []).append(candidate)
    for candidates in candidates_by_source.values():
        candidates.sort(key=lambda candidate: -candidate.total)
        del candidates[2 * beam :]
    return candidates_by_source


def _unfinished(
    candidates: Sequence[_Live], finished: list[Hypothesis], prefix_length: int, options: SearchOptions
) -> list[_Live]:
    """The candidates of a source that go on; those that end are added to `finished`.

    Args:
        candidates: at least one, best first, all of one length.
    """
    length = len(candidates[0].tokens)
    is_in_prefix = length <= prefix_length
    unfinished = []
    for rank, candidate in enumerate(candidates):
        if candidate.tokens[-1] != EOS or is_in_prefix:
            unfinished.append(candidate)
        elif rank < options.beam and len(finished) < options.beam:
            finished.append(_finish(candidate, options))
    is_full = len(finished) == options.beam
    if is_full or length > prefix_length + options.max_len:
        return []
    return unfinished[: options.beam]


def _finish(live: _Live, options: SearchOptions) -> Hypothesis:
    score = live.total
    if options.normalize:
        score = live.total / len(live.tokens) ** options.length_penalty
    return Hypothesis(tokens=live.tokens, score=score, token_scores=live.scores)
