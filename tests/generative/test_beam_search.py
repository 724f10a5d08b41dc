"""The search: every hypothesis of the original's, and what an answer must not depend on."""

from dataclasses import dataclass
from itertools import chain

import pytest
import torch
from support.generative import golden_inputs, golden_json, golden_model

from onepeace.errors import UserError
from onepeace.generative.scoring import Trie
from onepeace.generative.search import SearchOptions, search
from onepeace.special_ids import BOS, EOS, PAD

CASES = golden_json("generate")["generate"]
OUR_OPTIONS = {
    "beam_size": "beam",
    "max_len_b": "max_len",
    "min_len": "min_len",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "len_penalty": "length_penalty",
    "normalize_scores": "normalize",
    "temperature": "temperature",
}


def our_options(case):
    options = {}
    for name, value in case["settings"].items():
        if name in OUR_OPTIONS:
            options[OUR_OPTIONS[name]] = value
    return SearchOptions(**options)


def allowed_tokens(case):
    """The restriction of a case: its answers, a range of ids, or none."""
    if "answers" in case:
        return Trie(case["answers"])
    if "constraint_range" not in case["settings"]:
        return None
    start, stop = case["settings"]["constraint_range"].split(",")
    ids = [BOS, PAD, EOS, 3, *range(int(start), int(stop))]
    return lambda answer: ids


def search_case(name):
    """Our hypotheses for a case of the original's."""
    case = CASES[name]
    rows = case["rows"]
    inputs = golden_inputs()
    ids = inputs.ids[rows]
    longest_source = int((ids != PAD).sum(1).max())
    pixels = inputs.pixels[rows] if case["uses_image"] else None
    prefixes = [()] * len(rows)
    if case["uses_prefix_tokens"]:
        prefixes = [inputs.prompts[row] for row in rows]
    options = our_options(case)

    model = golden_model()
    with torch.no_grad():
        encoded = model.encode(ids[:, :longest_source], pixels)
        longest_prefix = max(len(prefix) for prefix in prefixes)
        state = model.decoder.start(encoded, options.max_len + longest_prefix + 1)
    return search(
        model.decoder.step,
        state,
        num_sources=len(rows),
        options=options,
        prefixes=prefixes,
        allowed=allowed_tokens(case),
    )


def tokens_of(hypotheses):
    return [list(hypothesis.tokens) for hypothesis in hypotheses]


@pytest.mark.parametrize("name", CASES)
def test_hypotheses_are_the_originals(name):
    hypotheses = list(chain.from_iterable(search_case(name)))

    expected = list(chain.from_iterable(CASES[name]["hypotheses"]))
    assert tokens_of(hypotheses) == [original["tokens"] for original in expected]
    for hypothesis, original in zip(hypotheses, expected, strict=True):
        assert hypothesis.score == pytest.approx(original["score"], abs=1e-4)
        assert hypothesis.token_scores == pytest.approx(original["token_scores"], abs=1e-4)


@dataclass
class FedTokens:
    """A decoder's state that is nothing but what was fed."""

    source: torch.Tensor
    tokens: list[torch.Tensor]

    def select(self, rows):
        return FedTokens(self.source[rows], [column[rows] for column in self.tokens])


def table_decoder(num_sources, vocab_size=7):
    """A step whose logits depend on the source, the last two tokens and the length, and its state."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_sources, 8, vocab_size, vocab_size, vocab_size)
    table = 2 * torch.randn(shape, generator=generator)

    def step(tokens, state):
        previous = state.tokens[-1] if state.tokens else torch.zeros_like(tokens)
        logits = table[state.source, len(state.tokens), previous, tokens]
        state.tokens.append(tokens)
        return logits

    return step, FedTokens(torch.arange(num_sources), [])


def test_nothing_allowed_gives_nothing():
    options = SearchOptions(beam=2)
    assert search(*table_decoder(1), 1, options, allowed=lambda answer: [PAD]) == [[]]


def test_blocked_repetition_lets_an_answer_end():
    """The forced prefix may hold eos, as the source of a fine-tuned classifier does."""
    options = SearchOptions(beam=2, max_len=2, no_repeat_ngram=1)
    (hypotheses,) = search(*table_decoder(1), 1, options, prefixes=[[5, EOS]])

    assert len(hypotheses) == 2
    for hypothesis in hypotheses:
        assert hypothesis.tokens[:2] == (5, EOS)
        assert hypothesis.tokens[-1] == EOS
        answer = hypothesis.tokens[2:-1]
        assert len(set(answer) - {BOS, 5}) == len(answer)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"beam": 0}, "beam"),
        ({"min_len": 5, "max_len": 4}, "min_len"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_wrong_options_are_refused(options, name):
    with pytest.raises(UserError, match=name):
        SearchOptions(**options)
