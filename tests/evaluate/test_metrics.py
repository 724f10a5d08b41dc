"""Figures from scores: ties against the model, few candidates, odd numbers, and agreement with the stored cases."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

from onepeace.evaluate import metrics

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics"
WANT = json.loads((GOLDEN / "results.json").read_text())


def recalls_at(ranks, at):
    return {k: metrics.hits(ranks, k).mean() for k in at}


def test_recall_matches_golden():
    case, want = load_file(GOLDEN / "recall.safetensors"), WANT["recall"]
    scores = case["text"] @ case["image"].T
    to_image = recalls_at(metrics.best_ranks(scores, case["text_ids"], case["image_ids"]), (1, 5, 10))
    to_text = recalls_at(metrics.best_ranks(scores.T, case["image_ids"], case["text_ids"]), (1, 5, 10))
    assert to_image == pytest.approx({k: want[f"img_r{k}"] / 100 for k in (1, 5, 10)}, abs=1e-9)
    assert to_text == pytest.approx({k: want[f"txt_r{k}"] / 100 for k in (1, 5, 10)}, abs=1e-9)
    mean = np.mean([*to_image.values(), *to_text.values()])
    assert mean == pytest.approx(want["r_mean"] / 100, abs=1e-9)


def test_map_matches_golden():
    case = load_file(GOLDEN / "map.safetensors")
    found = metrics.average_precisions(case["logits"].T, case["targets"].T)
    assert found[case["targets"].any(axis=0)].mean() == pytest.approx(WANT["map"], abs=1e-9)


def test_iou_accuracy_matches_golden():
    case, want = load_file(GOLDEN / "iou.safetensors"), WANT["iou"]
    right = metrics.box_iou(case["hyps"], case["refs"]) >= 0.5
    assert right.mean() == pytest.approx(want["iou_acc"], abs=1e-9)
    assert right.sum() == want["score_sum"]


def test_ties_count_against_the_model():
    same = np.zeros((3, 4))
    assert metrics.best_ranks(same, [0, 1, 9], [0, 1, 2, 1]).tolist() == [4, 3, 5]
    assert metrics.class_ranks(same, [0, 1, 3]).tolist() == [4, 4, 4]
    assert metrics.precisions_at(same, [0, 1, 2], [0, 1, 2, 1], 2).tolist() == [0, 0, 0]
    assert metrics.precisions_at(same, [0, 1, 2], [0, 1, 2, 1], 3).tolist() == pytest.approx([0, 1 / 3, 0])
    # places 3 and 4 for the two right ones of the second query
    precisions = metrics.average_precisions(same, np.array([0, 1, 2])[:, None] == [0, 1, 2, 1])
    assert precisions.tolist() == pytest.approx([1 / 4, (1 / 3 + 2 / 4) / 2, 1 / 4])


def test_nan_counts_against_the_model():
    nan = np.nan
    assert metrics.best_ranks([[nan, 0.2], [0.3, nan], [nan, nan]], [0, 0, 0], [0, 1]).tolist() == [2, 2, 2]
    assert metrics.best_ranks([[nan, 0.5, 0.1]], [0], [0, 0, 1]).tolist() == [1]
    assert metrics.precisions_at([[nan, 0.2], [0.3, nan]], [0, 0], [0, 1], 1).tolist() == [0, 0]
    assert metrics.average_precisions([[nan, 0.2], [0.3, nan]], [[1, 0], [1, 0]]).tolist() == [0.5, 0.5]


def test_fewer_than_k():
    scores = np.eye(3)
    ranks = metrics.best_ranks(scores, [0, 1, 5], [0, 1, 2])
    assert ranks.tolist() == [1, 1, 4]
    assert recalls_at(ranks, (1, 10)) == {1: pytest.approx(2 / 3), 10: 1.0}
    assert metrics.precisions_at(scores, [0, 1, 2], [0, 1, 2], 10).tolist() == pytest.approx([1 / 3] * 3)
    assert metrics.chance_recall([0, 1], [0, 1, 2], 10) == 1.0


def test_ranks_of_classes_count_targets():
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.1, 0.2, 0.7]])
    assert metrics.class_ranks(scores, [1, 2, 0]).tolist() == [1, 2, 3]


def test_a_target_outside_the_classes_is_an_error():
    with pytest.raises(ValueError, match=r"1 to 3.*3 classes"):
        metrics.class_ranks(np.zeros((2, 3)), [1, 3])


def test_average_precision_by_hand():
    scores, correct = [[4, 3, 2, 1]], [[0, 1, 0, 1]]
    assert metrics.average_precisions(scores, correct).tolist() == [(1 / 2 + 2 / 4) / 2]
    assert metrics.average_precisions(scores, [[0, 0, 0, 0]]).tolist() == [0]


def test_average_precision_equals_scikit_learn_without_ties():
    library = pytest.importorskip("sklearn.metrics").average_precision_score
    random = np.random.default_rng(0)
    scores, correct = random.random((20, 30)), random.random((20, 30)) < 0.3
    expected = [library(right, row) for right, row in zip(correct, scores, strict=True)]
    assert metrics.average_precisions(scores, correct) == pytest.approx(expected, abs=1e-12)


def test_shapes_that_disagree_are_an_error():
    with pytest.raises(ValueError, match="2 queries and 4 candidates"):
        metrics.best_ranks(np.zeros((2, 3)), [0, 1], [0, 1, 2, 3])
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.average_precisions(np.zeros((2, 3)), np.zeros((3, 2)))


def test_iou_by_hand():
    boxes = [[0, 0, 2, 2], [0, 0, 1, 1], [2, 2, 3, 3], [0, 0, 0, 0]]
    references = [[1, 1, 3, 3], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert metrics.box_iou(boxes, references).tolist() == pytest.approx([1 / 7, 1, 0, 0])


def test_tensors_of_any_float_type():
    scores = torch.tensor([[0.5, 0.25], [0.25, 0.5]], dtype=torch.bfloat16, requires_grad=True)
    assert metrics.class_ranks(scores, torch.tensor([0, 1])).tolist() == [1, 1]


def test_chance_is_what_random_scores_reach():
    query_ids, candidate_ids = np.arange(5), np.array([0, 0, 0, 1, 1, 2, 3, 4])
    scores = np.random.default_rng(0).random((2000, 5, 8))
    for k in (1, 3):
        reached = np.mean([recalls_at(metrics.best_ranks(s, query_ids, candidate_ids), (k,))[k] for s in scores])
        assert metrics.chance_recall(query_ids, candidate_ids, k) == pytest.approx(reached, abs=0.01)


def test_chance_precision_is_what_random_scores_reach():
    query_ids, candidate_ids = np.array([0, 0, 1, 9]), np.array([0, 0, 0, 1, 1, 2, 3, 4])
    assert metrics.chance_precision(query_ids, candidate_ids) == pytest.approx((3 + 3 + 2 + 0) / 8 / 4)
    scores = np.random.default_rng(0).random((2000, 4, 8))
    for k in (1, 3):
        reached = np.mean([metrics.precisions_at(s, query_ids, candidate_ids, k) for s in scores])
        assert metrics.chance_precision(query_ids, candidate_ids) == pytest.approx(reached, abs=0.01)


def test_chance_average_precision_is_what_random_scores_reach():
    correct = np.array([0, 0, 1, 2, 9])[:, None] == np.array([0, 0, 0, 1, 1, 2, 3, 4])
    reached = np.mean([metrics.average_precisions(s, correct) for s in np.random.default_rng(0).random((1000, 5, 8))])
    assert metrics.chance_average_precision([3, 3, 2, 1, 0], 8) == pytest.approx(reached, abs=0.02)


@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 7)), elements=st.sampled_from([0.0, 0.5, 1.0])),
    st.randoms(use_true_random=False),
)
def test_ranks_equal_a_plain_loop(scores, random):
    query_ids = [random.randrange(3) for _ in scores]
    candidate_ids = [random.randrange(3) for _ in scores[0]]
    for row, query, rank in zip(scores, query_ids, metrics.best_ranks(scores, query_ids, candidate_ids), strict=True):
        # worst order among equals: the wrong ones first
        order = sorted(range(len(row)), key=lambda j: (-row[j], candidate_ids[j] == query))
        hits = [place for place, j in enumerate(order, 1) if candidate_ids[j] == query]
        assert rank == (hits[0] if hits else len(row) + 1)
