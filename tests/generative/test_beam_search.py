"""The search: every hypothesis of the original's, and what an answer must not depend on."""

from itertools import chain

import pytest
import torch
from support.generative import golden_inputs, golden_json, golden_model

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
