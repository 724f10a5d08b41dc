"""Figures from scores: ties against the model, few candidates, odd numbers, and agreement with the stored cases."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file
from support.evaluation import worst_order

from onepeace.evaluate.metrics import (
    average_precisions,
    best_ranks,
    box_iou,
    chance_average_precision,
    chance_precision,
    chance_recall,
    hits,
    precisions_at,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics"
EXPECTED = json.loads((GOLDEN / "results.json").read_text())
NAN = np.nan


def recall_at(k, scores, query_ids, candidate_ids):
    ranks = best_ranks(scores, query_ids, candidate_ids)
    return hits(ranks, k).mean()


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_matches_golden(k):
    case = load_file(GOLDEN / "recall.safetensors")
    scores = case["text"] @ case["image"].T

    to_image = recall_at(k, scores, case["text_ids"], case["image_ids"])
    to_text = recall_at(k, scores.T, case["image_ids"], case["text_ids"])

    expected = EXPECTED["recall"]
    assert 100 * to_image == pytest.approx(expected[f"img_r{k}"], abs=1e-7)
    assert 100 * to_text == pytest.approx(expected[f"txt_r{k}"], abs=1e-7)


def test_average_precision_matches_golden():
    case = load_file(GOLDEN / "map.safetensors")
    correct = case["targets"].T

    precisions = average_precisions(case["logits"].T, correct)

    has_items = correct.any(axis=1)
    assert precisions[has_items].mean() == pytest.approx(EXPECTED["map"], abs=1e-9)
    assert not precisions[~has_items].any()


def test_iou_matches_golden():
    case = load_file(GOLDEN / "iou.safetensors")
    is_right = box_iou(case["hyps"], case["refs"]) >= 0.5

    assert is_right.mean() == pytest.approx(EXPECTED["iou"]["iou_acc"], abs=1e-9)


@pytest.mark.parametrize(
    ("query_id", "rank", "precision_at_3", "average_precision"),
    [
        (0, 4, 0, 1 / 4),
        (1, 3, 1 / 3, (1 / 3 + 2 / 4) / 2),  # its two right ones are third and fourth
        (9, 5, 0, 0),  # none is right
    ],
)
def test_ties_count_against_the_model(query_id, rank, precision_at_3, average_precision):
    candidate_ids = np.array([0, 1, 2, 1])
    scores = np.zeros((1, 4))

    assert best_ranks(scores, [query_id], candidate_ids) == rank
    assert precisions_at(scores, [query_id], candidate_ids, 2) == 0
    assert precisions_at(scores, [query_id], candidate_ids, 3) == pytest.approx(precision_at_3)
    assert average_precisions(scores, [candidate_ids == query_id]) == pytest.approx(average_precision)


@pytest.mark.parametrize(
    "scores",
    [
        [NAN, 0.2],
        [0.3, NAN],
        [NAN, NAN],
    ],
)
def test_nan_counts_against_the_model(scores):
    """The first of two candidates is right."""
    assert best_ranks([scores], [0], [0, 1]) == 2
    assert precisions_at([scores], [0], [0, 1], 1) == 0
    assert average_precisions([scores], [[1, 0]]) == 0.5


QUERY_IDS = np.array([0, 0, 1, 2, 9])
CANDIDATE_IDS = np.array([0, 0, 0, 1, 1, 2, 3, 4])
CORRECT = QUERY_IDS[:, None] == CANDIDATE_IDS


def mean_of_random_scores(figure, *arguments):
    draws = np.random.default_rng(0).random((2000, *CORRECT.shape))
    return np.mean([figure(scores, *arguments) for scores in draws])


@pytest.mark.parametrize("k", [1, 3])
def test_chance_is_that_of_random_scores(k):
    recall = mean_of_random_scores(lambda scores: recall_at(k, scores, QUERY_IDS, CANDIDATE_IDS))
    precision = mean_of_random_scores(precisions_at, QUERY_IDS, CANDIDATE_IDS, k)

    assert chance_recall(QUERY_IDS, CANDIDATE_IDS, k) == pytest.approx(recall, abs=0.01)
    assert chance_precision(QUERY_IDS, CANDIDATE_IDS) == pytest.approx(precision, abs=0.01)


def test_chance_average_precision_is_that_of_random_scores():
    precision = mean_of_random_scores(average_precisions, CORRECT)
    num_correct = CORRECT.sum(axis=1)

    assert chance_average_precision(num_correct, total=8) == pytest.approx(precision, abs=0.01)


SCORES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 5), st.integers(1, 7)),
    elements=st.sampled_from([0.0, 0.5, 1.0]),
)


@settings(deadline=None, derandomize=True, max_examples=15)
@given(SCORES, st.randoms(use_true_random=False))
def test_ranks_equal_a_plain_loop(scores, random):
    num_queries, num_candidates = scores.shape
    query_ids = random.choices(range(3), k=num_queries)
    candidate_ids = np.array(random.choices(range(3), k=num_candidates))

    ranks = best_ranks(scores, query_ids, candidate_ids)

    for query, rank in enumerate(ranks):
        is_right = candidate_ids == query_ids[query]
        order = worst_order(scores[query], is_right)
        expected = len(order) + 1
        if is_right.any():
            expected = 1 + is_right[order].argmax()
        assert rank == expected
