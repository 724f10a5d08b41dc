"""Every answer of a closed set, scored through the trie: the original's numbers, and the work that is shared."""

from itertools import islice, product

import pytest
import torch
from support.generative import golden_inputs, golden_json, golden_model, small_ofa

from onepeace.generative.scoring import Trie, score_answers
from onepeace.special_ids import BOS, EOS

GOLDEN = golden_json("generate")["all_candidates"]


def score_golden_answers(prefixes, **options):
    inputs = golden_inputs()
    model = golden_model()
    with torch.no_grad():
        encoded = model.encode(inputs.ids, inputs.pixels)
        state = model.decoder.start(encoded, 30)
    trie = Trie(GOLDEN["answers"])
    return score_answers(model.decoder.step, state, 3, trie, prefixes=prefixes, **options)


@pytest.mark.parametrize("prompted", [True, False])
@pytest.mark.parametrize("max_rows", [512, 4])
def test_scores_are_the_originals(prompted, max_rows):
    prefixes = golden_inputs().prompts if prompted else None
    scores = score_golden_answers(prefixes, max_rows=max_rows)

    expected = GOLDEN["scores_with_prompt" if prompted else "scores_without_prompt"]
    torch.testing.assert_close(scores, torch.tensor(expected).double(), atol=1e-4, rtol=0)
    assert scores.exp().sum(1).tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_thousands_of_answers_take_a_few_batches():
    """As beginnings are shared, the decoder runs for few of their 12,516 tokens."""
    answers = list(islice(product(range(4, 12), repeat=4), 3129))
    decoder = small_ofa().decoder
    batch_sizes = []

    def step(tokens, state):
        batch_sizes.append(len(tokens))
        return decoder.step(tokens, state)

    with torch.no_grad():
        encoded = small_ofa().encode(torch.tensor([[BOS, 9, 8, EOS]]))
        state = decoder.start(encoded, 5)
    scores = score_answers(step, state, 1, Trie(answers))

    assert float(scores.exp().sum()) == pytest.approx(1, abs=1e-5)
    assert len(batch_sizes) <= 6
    assert sum(batch_sizes) < 0.2 * sum(len(answer) for answer in answers)


def test_trie_allows_what_follows_and_else_eos():
    trie = Trie([[4, 5], [4, 6, 7], [8]])
    assert sorted(trie([])) == [4, 8]
    assert sorted(trie([4])) == [5, 6]
    assert trie([8]) == [EOS]
    assert trie([9, 9]) == [EOS]
