"""Figures from scores: ties against the model, few candidates, odd numbers, and agreement with the stored cases."""

import json
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file
from support.evaluation import worst_order

from onepeace.evaluate.metrics import (
    as_array,
    average_precisions,
    best_ranks,
    box_iou,
    chance_average_precision,
    chance_recall,
    hits,
    mean_reciprocal_rank,
    precisions_at,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics"
EXPECTED = json.loads((GOLDEN / "results.json").read_text())
NAN = np.nan
examples = settings(deadline=None, derandomize=True, max_examples=60)


def recall_at(k, scores, correct):
    return hits(best_ranks(scores, correct), k).mean()


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_matches_golden(k):
    case = load_file(GOLDEN / "recall.safetensors")
    scores = case["text"] @ case["image"].T

    correct = case["text_ids"][:, None] == case["image_ids"]

    to_image = recall_at(k, scores, correct)
    to_text = recall_at(k, scores.T, correct.T)

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
    scores = np.zeros((1, 4))
    correct = [np.array([0, 1, 2, 1]) == query_id]

    assert best_ranks(scores, correct) == rank
    assert precisions_at(scores, correct, 2) == 0
    assert precisions_at(scores, correct, 3) == pytest.approx(precision_at_3)
    assert average_precisions(scores, correct) == pytest.approx(average_precision)


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
    assert best_ranks([scores], [[1, 0]]) == 2
    assert precisions_at([scores], [[1, 0]], 1) == 0
    assert average_precisions([scores], [[1, 0]]) == 0.5


@st.composite
def queries(draw):
    """Scores (N, M), many of them equal and some NaN, and which candidates are right."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 6)))
    scores = draw(hnp.arrays(np.float64, shape, elements=st.sampled_from([0.0, 0.5, 1.0, NAN])))
    return scores, draw(hnp.arrays(bool, shape))


def in_order(scores, is_right):
    """Which candidates are right, from the first to the last; ties and NaN count against the model."""
    replaced = np.where(np.isnan(scores), np.where(is_right, -np.inf, np.inf), scores)
    return is_right[worst_order(replaced, is_right)]


@examples
@given(queries(), st.integers(1, 8))
def test_figures_equal_plain_loops(case, k):
    scores, correct = case

    ranks = best_ranks(scores, correct)
    precisions = precisions_at(scores, correct, k)
    average = average_precisions(scores, correct)

    reciprocal_ranks = []
    for query, is_right in enumerate(map(in_order, scores, correct)):
        places = 1 + np.flatnonzero(is_right)
        rank = places[0] if places.size else len(is_right) + 1
        reciprocal_ranks.append(1 / rank)
        assert ranks[query] == rank
        assert hits(ranks, k)[query] == is_right[:k].any() or not places.size
        assert precisions[query] == pytest.approx(is_right[:k].mean())
        expected = [(number + 1) / place for number, place in enumerate(places)]
        assert average[query] == pytest.approx(np.mean(expected) if expected else 0)
    assert mean_reciprocal_rank(ranks) == pytest.approx(np.mean(reciprocal_ranks))


@st.composite
def numbers_right(draw):
    """A number of candidates, and how many of them are right for each query."""
    total = draw(st.integers(1, 5))
    return total, draw(st.lists(st.integers(0, total), min_size=1, max_size=4))


@examples
@given(numbers_right(), st.integers(1, 6))
def test_chance_is_the_mean_over_all_orders(case, k):
    total, numbers = case
    recalls = []
    precisions = []
    for number in numbers:
        scores = np.array(list(permutations(range(total))))
        correct = np.broadcast_to(np.arange(total) < number, scores.shape)
        is_hit = hits(best_ranks(scores, correct), k) & (number > 0)  # without a right one, no order has a hit
        recalls.append(is_hit.mean())
        precisions.append(average_precisions(scores, correct).mean())

    assert chance_recall(numbers, total, k) == pytest.approx(np.mean(recalls))
    assert chance_average_precision(np.array(numbers), total) == pytest.approx(np.mean(precisions))


SIDES = st.tuples(st.integers(0, 5), st.integers(0, 5)).map(sorted)


def cells(x0, y0, x1, y1):
    return set(product(range(x0, x1), range(y0, y1)))


@examples
@given(st.lists(st.tuples(SIDES, SIDES, SIDES, SIDES), min_size=1, max_size=4))
def test_iou_is_that_of_the_cells_of_a_grid(pairs):
    boxes = [(x[0], y[0], x[1], y[1]) for x, y, _, _ in pairs]
    references = [(x[0], y[0], x[1], y[1]) for _, _, x, y in pairs]

    overlaps = box_iou(boxes, references)

    for box, reference, overlap in zip(boxes, references, overlaps, strict=True):
        common = cells(*box) & cells(*reference)
        either = cells(*box) | cells(*reference)
        assert overlap == pytest.approx(len(common) / len(either) if common else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_of_any_float_type_are_read(dtype):
    scores = torch.tensor([[0.5, 1.0, NAN]], dtype=dtype, requires_grad=True)
    assert best_ranks(scores, torch.tensor([[1, 0, 0]])) == 3
    assert as_array(scores).dtype == np.float32
