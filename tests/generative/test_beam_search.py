"""The search: every hypothesis of the original's, and what an answer must not depend on."""

from dataclasses import dataclass
from itertools import chain, product

import pytest
import torch
from support.generative import golden_inputs, golden_json, golden_model

from onepeace.errors import UserError
from onepeace.generative.scoring import Trie
from onepeace.generative.search import SearchOptions, search

CASES = golden_json("generate")["generate"]
RENAMED = {"beam_size": "beam", "max_len_b": "max_len", "min_len": "min_len", "no_repeat_ngram_size": "no_repeat_ngram",
           "len_penalty": "length_penalty", "normalize_scores": "normalize", "temperature": "temperature"}  # fmt: skip


def original(name: str):
    """Our hypotheses for a case of the original's, and its own."""
    case = CASES[name]
    settings = case["settings"]
    options = SearchOptions(**{ours: settings[theirs] for theirs, ours in RENAMED.items() if theirs in settings})
    ids, pixels, prompts = golden_inputs()
    ids, pixels = ids[case["rows"]], pixels[case["rows"]]
    ids = ids[:, : int((ids != 1).sum(1).max())]
    prefixes = [prompts[row] for row in case["rows"]] if case["uses_prefix_tokens"] else None
    allowed = Trie(case["answers"]) if "answers" in case else None
    if "constraint_range" in settings:
        start, stop = map(int, settings["constraint_range"].split(","))
        allowed = lambda answer: [0, 1, 2, 3, *range(start, stop)]  # noqa: E731
    decoder = golden_model().decoder
    with torch.no_grad():
        encoded = golden_model().encode(ids, pixels if case["uses_image"] else None)
        longest = options.max_len + max(map(len, prefixes or [()])) + 1
        state = decoder.start(encoded, longest)
    found = search(decoder.step, state, len(ids), options, prefixes=prefixes, allowed=allowed)
    return found, case["hypotheses"]


@pytest.mark.parametrize("name", CASES)
def test_hypotheses_are_the_originals(name):
    found, expected = original(name)
    assert [[list(one.tokens) for one in row] for row in found] == [[one["tokens"] for one in row] for row in expected]
    for ours, theirs in zip(chain(*found), chain(*expected), strict=True):
        assert ours.score == pytest.approx(theirs["score"], abs=1e-4)
        assert ours.token_scores == pytest.approx(theirs["token_scores"], abs=1e-4)


def test_row_alone_is_row_in_the_batch():
    (alone,), _ = original("caption_single")
    together = original("caption")[0][CASES["caption_single"]["rows"][0]]
    assert [one.tokens for one in alone] == [one.tokens for one in together]
    assert [one.score for one in alone] == pytest.approx([one.score for one in together], abs=1e-4)


@dataclass
class Written:
    """A decoder's state that is nothing but what was fed."""

    tokens: torch.Tensor

    def select(self, rows):
        return Written(self.tokens[rows])


def table(num_sources: int, vocab_size: int = 7, seed: int = 0):
    """A step whose logits depend on the source, the last two tokens and the length, and its state."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_sources, 8, vocab_size, vocab_size, vocab_size, generator=generator)

    def step(tokens, state):
        state.tokens = torch.cat([state.tokens, tokens[:, None]], dim=1)
        before = state.tokens[:, -2] if state.tokens.shape[1] > 2 else torch.zeros_like(tokens)
        return logits[state.tokens[:, 0], state.tokens.shape[1] - 2, before, tokens]

    return step, Written(torch.arange(num_sources)[:, None])


def test_wide_beam_finds_the_best_of_all_answers():
    options = SearchOptions(beam=400, max_len=3, normalize=False)
    (found,) = search(*table(1), 1, options)
    scores = {}
    for length in range(1, 4):
        for tokens in product((0, 3, 4, 5, 6), repeat=length):
            step, state = table(1)
            total = 0.0
            for fed, token in zip((0, *tokens), (*tokens, 2), strict=True):
                total += float(step(torch.tensor([fed]), state).log_softmax(1)[0, token])
            scores[(*tokens, 2)] = total
    assert {one.tokens for one in found} <= set(scores)
    assert len(found) == len(scores) == 5 + 25 + 125
    assert found[0].tokens == max(scores, key=scores.__getitem__)
    assert [one.score for one in found] == pytest.approx([scores[one.tokens] for one in found], abs=1e-4)


def test_answer_does_not_depend_on_batch_mates():
    options = SearchOptions(beam=3, max_len=6)
    many = search(*table(4), 4, options)
    step, state = table(4)
    for source, expected in enumerate(many):
        (alone,) = search(step, state.select(torch.tensor([source])), 1, options)
        assert alone == expected
    assert len({row[0].tokens for row in many}) > 1


def test_nothing_allowed_gives_nothing():
    assert search(*table(1), 1, SearchOptions(beam=2), allowed=lambda answer: [1]) == [[]]


def test_blocked_repetition_lets_an_answer_end():
    """Also where the forced prefix holds eos, as the source of a fine-tuned classifier does."""
    (found,) = search(*table(1), 1, SearchOptions(beam=2, max_len=2, no_repeat_ngram=1), prefixes=[[5, 2]])
    assert len(found) == 2
    for one in found:
        assert one.tokens[:2] == (5, 2)
        assert one.tokens[-1] == 2
        assert len(set(one.tokens[2:-1]) - {0, 5}) == len(one.tokens[2:-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam is 0"),
        ({"min_len": 5, "max_len": 4}, "min_len 5 is above"),
        ({"temperature": 0.0}, "temperature is 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SearchOptions(**options)
