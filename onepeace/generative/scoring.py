"""Closed sets of answers: a trie of their tokens, and the score of every answer; shared prefixes are computed once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onepeace.errors import UserError
from onepeace.generative.search import S, Step
from onepeace.processors.tokenizer import BOS, EOS

MAX_ROWS = 512
"""Maximum number of prefixes of answers, over all sources, in one decoder batch."""


class Node(dict[int, "Node"]):
    """A prefix of answers: its children by token. The child under eos is a leaf, with the number of its `answer`."""

    answer: int = -1
    num_answers: int = 0
    """Number of answers with this prefix."""

    def first_answer(self) -> int:
        """Number of the first answer with this prefix."""
        node = self
        while node:
            node = next(iter(node.values()))
        return node.answer


class Trie:
    """Answers by their tokens.

    Args:
        answers: ids of each answer, without bos and eos.
        names: names of the answers, for messages; None = their numbers.

    Raises:
        UserError: an answer has no tokens, or the same tokens as another.
    """

    def __init__(self, answers: Sequence[Sequence[int]], names: Sequence[object] | None = None) -> None:
        names = names or range(len(answers))
        self.root = Node()
        self.root.num_answers = len(answers)
        self.depth = max(map(len, answers), default=0)
        """Number of tokens of the longest answer."""
        for number, answer in enumerate(answers):
            if not answer:
                raise UserError(f"answer {names[number]!r} to choose from is empty")
            leaf = self._add(answer)
            if leaf.num_answers > 1:
                raise UserError(
                    f"{names[leaf.answer]!r} and {names[number]!r} to choose from are the same to the model"
                )
            leaf.answer = number

    def _add(self, answer: Sequence[int]) -> Node:
        """Count an answer in the nodes of its prefixes; returns its leaf."""
        node = self.root
        for token in (*answer, EOS):
            node = node.setdefault(token, Node())
            node.num_answers += 1
        return node

    def __call__(self, prefix: Sequence[int]) -> list[int]:
        """Tokens that may follow a prefix, for `search`; eos if no answer has this prefix."""
        node = self.root
        for token in prefix:
            node = node.get(token, Node())
        return list(node) or [EOS]


class _Row(NamedTuple):
    """A prefix of answers in a decoder batch."""

    source: int
    token: int
    """Last token, which is fed next."""
    node: Node
    total: float
    """Sum of the log-probabilities of its tokens."""
    parent: int
    """Its row at the previous step."""


@torch.no_grad()
def score_answers(
    step: Step[S],
    state: S,
    num_sources: int,
    trie: Trie,
    *,
    prefixes: Sequence[Sequence[int]] | None = None,
    max_rows: int = MAX_ROWS,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Log-probabilities (sources, answers) in float64: sums over each answer's tokens and eos, without the prefix.

    Probabilities are over the tokens that the trie allows. A token without an alternative has probability 1, so only
    prefixes that several answers share go through the decoder: some hundreds for 3,129 answers to questions.

    Args:
        step, state: the decoder, before bos, as for `search`.
        prefixes: for each source, tokens before all answers.
        max_rows: maximum number of prefixes in one batch; more are split into several batches.
    """
    if prefixes is None:
        prefixes = [()] * num_sources
    scores = torch.zeros(num_sources, trie.root.num_answers, dtype=torch.float64)
    if trie.root.num_answers > 1:
        rows = []
        for source in range(num_sources):
            row = _Row(
                source=source,
                token=BOS,
                node=trie.root,
                total=0.0,
                parent=source,
            )
            rows.append(row)
        _Scoring(step, prefixes, max_rows, device, scores).follow(rows, state, length=0)
    return scores


@dataclass(frozen=True)
class _Scoring(Generic[S]):
    """The walk through a trie, depth first in blocks of rows; arguments as in `score_answers`."""

    step: Step[S]
    prefixes: Sequence[Sequence[int]]
    max_rows: int
    device: torch.device | str
    scores: Tensor
    """(sources, answers): the result, filled during the walk."""

    def follow(self, rows: Sequence[_Row], state: S, length: int) -> None:
        """Score the answers that begin with the rows.

        Args:
            state: the decoder's, before the token of each row.
            length: number of tokens after bos that each row has.
        """
        tokens = torch.tensor([row.token for row in rows], device=self.device)
        logits = self.step(tokens, state).float()
        children = self._advance(rows, logits, length)
        for start in range(0, len(children), self.max_rows):
            block = children[start : start + self.max_rows]
            parents = torch.tensor([child.parent for child in block], device=self.device)
            self.follow(block, state.select(parents), length + 1)

    def _advance(self, rows: Sequence[_Row], logits: Tensor, length: int) -> list[_Row]:
        """Score the answers that are certain after one more token; returns the prefixes that several answers share."""
        next_tokens = [self._next_tokens(row, length) for row in rows]
        log_probs = _log_probabilities(logits, next_tokens)
        children = []
        for number, row in enumerate(rows):
            prefix = self.prefixes[row.source]
            if length < len(prefix):
                children.append(row._replace(token=prefix[length], parent=number))
                continue
            # The values of this row are followed by padding.
            for (token, node), log_prob in zip(row.node.items(), log_probs[number], strict=False):
                total = row.total + log_prob
                if node.num_answers == 1:
                    self.scores[row.source, node.first_answer()] = total
                else:
                    child = _Row(
                        source=row.source,
                        token=token,
                        node=node,
                        total=total,
                        parent=number,
                    )
                    children.append(child)
        return children

    def _next_tokens(self, row: _Row, length: int) -> list[int]:
        if length < len(self.prefixes[row.source]):
            return [BOS]  # any token will do: a forced one is not scored
        return list(row.node)


def _log_probabilities(logits: Tensor, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
    """Log-probabilities of the tokens of each row among themselves, (N, maximum number of tokens).

    Values after a row's tokens are undefined.
    """
    rows = list(map(torch.tensor, tokens))
    ids = pad_sequence(rows, batch_first=True, padding_value=-1).to(logits.device)
    logits = logits.gather(1, ids.clamp(min=0))
    logits = logits.masked_fill(ids < 0, -torch.inf)
    return logits.log_softmax(1).tolist()
