"""Greedy and beam search with any decoder that returns the logits of the next token.

The rules for comparing and finishing hypotheses are fairseq's, with which OFA's released results were obtained; the
beam search of other libraries finds other captions. An answer depends only on its own source.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

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

    beam: int = 5
    """Number of hypotheses (1 = greedy)."""
    max_len: int = 16
    """Maximum number of tokens of an answer, without eos, which is then forced."""
    min_len: int = 1
    """Minimum number of tokens before eos, including those of a prefix."""
    length_penalty: float = 1.0
    """The sum of log-probabilities is divided by the number of tokens, including eos, to this power."""
    normalize: bool = True
    """Whether the sum is divided like this; if not, the score is the sum."""
    temperature: float = 1.0
    no_repeat_ngram: int = 0
    """Size of n-grams of tokens that must not occur twice; 0 = no restriction."""

    def __post_init__(self) -> None:
        lowest = {"beam": 1, "max_len": 1, "min_len": 0, "no_repeat_ngram": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise UserError(f"search.{name} is {getattr(self, name)}; it must be at least {least}")
        if self.min_len > self.max_len:
            raise UserError(f"search.min_len {self.min_len} is above search.max_len {self.max_len}")
        if not self.temperature > 0:
            raise UserError(f"search.temperature is {self.temperature}; it must be above 0")


class Hypothesis(NamedTuple):
    """A finished answer."""

    tokens: tuple[int, ...]
    """Forced prefix, answer and eos, without bos."""
    score: float
    """Score, normalised as in the options, by which the hypotheses of a source are ranked."""
    token_scores: tuple[float, ...]
    """Log-probability of each token."""


class _Live(NamedTuple):
    """An unfinished hypothesis."""

    row: int
    """Row of its parent at the previous step."""
    tokens: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    total: float = 0.0

    def followed_by(self, token: int, score: float, row: int) -> "_Live":
        return _Live(row, (*self.tokens, token), (*self.scores, score), self.total + score)


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
    prompts = [tuple(prefix) for prefix in prefixes] if prefixes is not None else [()] * num_sources
    live = [[_Live(source)] for source in range(num_sources)]
    done: list[list[Hypothesis]] = [[] for _ in range(num_sources)]
    length, num_rows = 0, num_sources
    while any(live):
        rows = [(source, one) for source, group in enumerate(live) for one in group]
        parents = [one.row for _, one in rows]
        if parents != list(range(num_rows)):
            state = state.select(torch.tensor(parents, device=device))
        num_rows = len(rows)
        tokens = torch.tensor([one.tokens[-1] if length else BOS for _, one in rows], device=device)
        logits = step(tokens, state).float()
        log_probs = _log_probabilities(logits, rows, prompts, options, allowed)
        found = _best(log_probs, rows, options.beam)
        for source, start in enumerate(map(len, prompts)):
            going = []
            for place, one in enumerate(found.get(source, ())):
                if one.tokens[-1] != EOS or length < start:
                    going.append(one)
                elif place < options.beam and len(done[source]) < options.beam:
                    score = one.total / len(one.tokens) ** options.length_penalty if options.normalize else one.total
                    done[source].append(Hypothesis(one.tokens, score, one.scores))
            is_over = len(done[source]) == options.beam or length == start + options.max_len
            live[source] = [] if is_over else going[: options.beam]
        length += 1
    return [sorted(hypotheses, key=lambda one: -one.score) for hypotheses in done]


def _log_probabilities(
    logits: Tensor,
    rows: Sequence[tuple[int, _Live]],
    prompts: Sequence[Sequence[int]],
    options: SearchOptions,
    allowed: Allowed | None,
) -> Tensor:
    """Log-probabilities (N, V), -inf for tokens that must not come next."""
    logits = logits / options.temperature
    if allowed is not None:
        logits = logits.masked_fill(_blocked(logits, rows, prompts, allowed), -torch.inf)
    log_probs = logits.log_softmax(1).nan_to_num_(-torch.inf, torch.inf, -torch.inf)
    log_probs[:, PAD] = -torch.inf
    for row, (source, one) in enumerate(rows):
        length, start = len(one.tokens), len(prompts[source])
        if length < start:
            _only(log_probs[row], prompts[source][length])
            continue
        if length < options.min_len:
            log_probs[row, EOS] = -torch.inf
        if length == start + options.max_len:
            _only(log_probs[row], EOS)
        if repeats := _repeats((BOS, *one.tokens), options.no_repeat_ngram):
            log_probs[row, repeats] = -torch.inf
    return log_probs


def _blocked(
    logits: Tensor, rows: Sequence[tuple[int, _Live]], prompts: Sequence[Sequence[int]], allowed: Allowed
) -> Tensor:
    """Mask (N, V) of the ids that `allowed` excludes; within a prefix none is excluded."""
    blocked = torch.zeros_like(logits, dtype=torch.bool)
    for row, (source, one) in enumerate(rows):
        start = len(prompts[source])
        if len(one.tokens) >= start:
            blocked[row] = True
            blocked[row, torch.as_tensor(allowed(one.tokens[start:]), device=logits.device)] = False
    return blocked


def _only(log_probs: Tensor, token: int) -> None:
    value = log_probs[token].clone()
    log_probs.fill_(-torch.inf)
    log_probs[token] = value


def _repeats(tokens: tuple[int, ...], n: int) -> list[int]:
    """Tokens, except eos, that would repeat an n-gram."""
    if not 0 < n <= len(tokens):
        return []
    last = tokens[len(tokens) - n + 1 :]
    runs = (tokens[i : i + n] for i in range(len(tokens) - n + 1))
    return [run[-1] for run in runs if run[:-1] == last and run[-1] != EOS]


def _best(log_probs: Tensor, rows: Sequence[tuple[int, _Live]], beam: int) -> dict[int, list[_Live]]:
    """The 2 * beam best continuations by source; twice the beam, because up to half of them may end."""
    values, ids = (found.tolist() for found in log_probs.topk(min(2 * beam, log_probs.shape[1]), dim=1))
    found: dict[int, list[_Live]] = {}
    for row, (source, one) in enumerate(rows):
        best = zip(ids[row], values[row], strict=True)
        found.setdefault(source, []).extend(one.followed_by(*pair, row) for pair in best if pair[1] > -torch.inf)
    return {source: sorted(group, key=lambda one: -one.total)[: 2 * beam] for source, group in found.items()}
