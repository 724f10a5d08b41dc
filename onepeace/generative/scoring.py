"""Closed sets of answers: a trie of their tokens, and the score of every answer; shared prefixes are computed once."""

from collections.abc import Sequence
from typing import NamedTuple

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
            node = self.root
            for token in (*answer, EOS):
                node = node.setdefault(token, Node())
                node.num_answers += 1
            if node.num_answers > 1:
                one, other = names[node.answer], names[number]
                raise UserError(f"{one!r} and {other!r} to choose from are the same to the model")
            node.answer = number

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
    prompts = [tuple(prefix) for prefix in prefixes] if prefixes is not None else [()] * num_sources
    scores = torch.zeros(num_sources, trie.root.num_answers, dtype=torch.float64)

    def follow(rows: list[_Row], state: S, length: int) -> None:
        logits = step(torch.tensor([row.token for row in rows], device=device), state).float()
        within = [length < len(prompts[row.source]) for row in rows]
        children = [[BOS] if early else list(row.node) for row, early in zip(rows, within, strict=True)]
        found = _log_probabilities(logits, children)
        following = []
        for number, (row, early) in enumerate(zip(rows, within, strict=True)):
            if early:
                following.append(row._replace(token=prompts[row.source][length], parent=number))
                continue
            for (token, node), value in zip(row.node.items(), found[number], strict=False):
                total = row.total + value
                if node.num_answers == 1:
                    end = node
                    while end:
                        end = next(iter(end.values()))
                    scores[row.source, end.answer] = total
                else:
                    following.append(_Row(row.source, token, node, total, number))
        for start in range(0, len(following), max_rows):
            part = following[start : start + max_rows]
            follow(part, state.select(torch.tensor([row.parent for row in part], device=device)), length + 1)

    if trie.root.num_answers > 1:
        follow([_Row(source, BOS, trie.root, 0.0, source) for source in range(num_sources)], state, 0)
    return scores


def _log_probabilities(logits: Tensor, children: Sequence[Sequence[int]]) -> list[list[float]]:
    """Log-probabilities of each row's children, as (N, maximum number of children); values after a row's own children
    are undefined."""
    ids = pad_sequence([torch.tensor(each) for each in children], batch_first=True, padding_value=-1).to(logits.device)
    return logits.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf).log_softmax(1).tolist()
