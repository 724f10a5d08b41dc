"""The figures equal those of CLIP_benchmark and mteb on the same similarities; they treat only equal ones otherwise."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch

from onepeace.evaluate import metrics

AT = (1, 5, 10)


@pytest.fixture(params=[0, 1, 2])
def case(request):
    """Scores (60, 40) without equal ones, ids of queries and candidates: many-to-many, all queries with an answer."""
    random = np.random.default_rng(request.param)
    scores = random.permutation(60 * 40).reshape(60, 40).astype(np.float32) / 2400
    return scores, random.integers(0, 12, 60), np.concatenate([np.arange(12), random.integers(0, 12, 28)])


def test_recall_equals_clip_benchmark(case):
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    scores, query_ids, candidate_ids = case
    for matrix, queries, candidates in (
        (scores, query_ids, candidate_ids),
        (scores.T.copy(), candidate_ids, query_ids),
    ):
        asked = np.isin(queries, candidates)
        matrix, queries = matrix[asked], queries[asked]
        positive = torch.from_numpy(queries[:, None] == candidates)
        recalls = metrics.recall_at(metrics.best_ranks(matrix, queries, candidates), AT)
        for k in AT:
            found = theirs.batchify(theirs.recall_at_k, torch.from_numpy(matrix), positive, 16, "cpu", k=k)
            assert recalls[k] == pytest.approx((found > 0).float().mean().item(), abs=1e-7)
    assert 0 < recalls[1] < recalls[5]


def test_retrieval_equals_mteb(case):
    theirs = pytest.importorskip("mteb._evaluators.retrieval_metrics")
    scores, query_ids, candidate_ids = case
    correct = query_ids[:, None] == candidate_ids
    results = {f"q{i}": {f"d{j}": float(score) for j, score in enumerate(row)} for i, row in enumerate(scores)}
    truth = {f"q{i}": {f"d{j}": 1 for j in np.flatnonzero(row)} for i, row in enumerate(correct)}
    want = theirs.calculate_retrieval_scores(results, truth, AT)
    recalls = metrics.recall_at(metrics.best_ranks(scores, query_ids, candidate_ids), AT)
    for k in AT:  # they round to five digits
        assert recalls[k] == pytest.approx(want.hit_rate[f"HitRate@{k}"], abs=1e-5)
        precisions = metrics.average_precisions(scores, correct, k)
        assert precisions.mean() == pytest.approx(want.map[f"MAP@{k}"], abs=1e-5)
        shares = metrics.precisions_at(scores, query_ids, candidate_ids, k)
        assert shares.mean() == pytest.approx(want.precision[f"P@{k}"], abs=1e-5)


def test_classification_equals_clip_benchmark(case):
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    scores, targets, _ = case
    from onepeace.plugins.clip_benchmark import _accuracy

    recalls = metrics.recall_at(metrics.class_ranks(scores, targets), (1, 5))
    assert list(recalls.values()) == _accuracy(torch.from_numpy(scores), torch.from_numpy(targets), (1, 5))
    tags = np.random.default_rng(0).random(scores.shape) < 0.2
    tags[0] = True
    want = theirs.average_precision_per_class(torch.from_numpy(scores), torch.from_numpy(tags))
    np.testing.assert_allclose(metrics.average_precisions(scores.T, tags.T), want.numpy(), atol=1e-6)
