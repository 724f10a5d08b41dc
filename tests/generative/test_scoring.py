"""Every answer of a closed set, scored through the trie: the original's numbers, and the work that is shared."""

import pytest
import torch
from support.generative import golden_inputs, golden_json, golden_model, small_ofa

from onepeace.errors import UserError
from onepeace.generative.scoring import Trie, score_answers

ANSWERS = golden_json("generate")["all_candidates"]["answers"]


def golden_scores(prefixes, **options):
    ids, pixels, _ = golden_inputs()
    decoder = golden_model().decoder
    with torch.no_grad():
        state = decoder.start(golden_model().encode(ids, pixels), 30)
    return score_answers(decoder.step, state, len(ids), Trie(ANSWERS), prefixes=prefixes, **options)


@pytest.mark.parametrize("prompted", [True, False])
@pytest.mark.parametrize("max_rows", [512, 4])
def test_scores_are_the_originals(prompted, max_rows):
    name = "scores_with_prompt" if prompted else "scores_without_prompt"
    expected = torch.tensor(golden_json("generate")["all_candidates"][name], dtype=torch.float64)
    found = golden_scores(golden_inputs()[2] if prompted else None, max_rows=max_rows)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert found.argmax(1).tolist() == expected.argmax(1).tolist()


def test_probabilities_of_all_answers_sum_to_one():
    torch.testing.assert_close(golden_scores(golden_inputs()[2]).exp().sum(1), torch.ones(3, dtype=torch.float64))


def test_thousands_of_answers_take_a_few_batches():
    """3,129 answers of one to four tokens: with shared beginnings the decoder runs for few of their 10,000 tokens."""
    generator = torch.Generator().manual_seed(0)
    words = (4 + torch.randn(4000, 4, generator=generator).abs() * 100).long().tolist()
    answers = list(dict.fromkeys(tuple(row[: 1 + i % 4]) for i, row in enumerate(words)))[:3129]
    assert len(answers) == 3129
    decoder, batches = small_ofa().decoder, []

    def step(tokens, state):
        batches.append(len(tokens))
        return decoder.step(tokens, state)

    with torch.no_grad():
        state = decoder.start(small_ofa().encode(torch.tensor([[0, 9, 8, 2]])), 5)
    scores = score_answers(step, state, 1, Trie(answers))
    assert float(scores.exp().sum()) == pytest.approx(1, abs=1e-5)
    assert len(batches) <= 6
    assert sum(batches) < 0.2 * sum(map(len, answers))


def test_answers_that_cannot_be_told_apart_are_refused():
    with pytest.raises(UserError, match="0 and 2"):
        Trie([[4, 5], [4], [4, 5]])
    with pytest.raises(UserError, match="answer 1"):
        Trie([[4], []])


def test_trie_allows_what_follows_and_else_eos():
    trie = Trie([[4, 5], [4, 6, 7], [8]])
    assert sorted(trie([])) == [4, 8]
    assert sorted(trie([4])) == [5, 6]
    assert trie([8]) == trie([9, 9]) == [2]
