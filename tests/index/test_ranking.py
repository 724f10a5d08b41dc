"""Rankings against their formulas, folding, composed queries against draws, and a pool whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
from onepeace.index.calibration import MODALITIES, Bank, Calibration
from onepeace.index.fitting import fit
from support.two_towers import WIDTH, labelled, pairs, unit

from onepeace.errors import UserError
from onepeace.evaluate.reliability import Reliability
from onepeace.index import ranking
from onepeace.index.ranking import (
    RANKINGS,
    PartVector,
    Pool,
    QueryVector,
    fold,
    match,
    means,
    prior_of,
    scores,
    statistics,
)

IMAGE, AUDIO, TEXT = range(3)


@pytest.fixture(scope="module")
def calibration():
    return fit(labelled(), prior=0.01, model="two towers", about={}).calibration


@pytest.fixture(scope="module")
def items():
    """100 pictures and 100 sounds, and the texts that mean them."""
    images, sounds = pairs("image", 100, 7), pairs("audio", 100, 8)
    return np.concatenate([images[1], sounds[1]]), np.repeat([IMAGE, AUDIO], 100), images[0], sounds[0]


@pytest.fixture(scope="module")
def pool(calibration, items):
    return Pool.of(items[0], items[1], calibration)


def a_query(*parts, seed=0):
    """One of random unit vectors: (modality, weight)."""
    vectors = unit(np.random.default_rng(seed).normal(size=(len(parts), WIDTH)))
    return QueryVector.of(
        [PartVector(key, vector, weight) for (key, weight), vector in zip(parts, vectors, strict=True)]
    )


def test_znorm_and_centred_are_their_formulas(calibration, items, pool):
    vectors, codes, *_ = items
    for parts in ([("text", 1.0)], [("text", 0.7), ("image", -0.4), ("text", 1.5)]):
        query = a_query(*parts)
        whole = query.norm * query.vector
        own = replace(calibration, own=1.0)
        banks = [own.banks[key] for key, _ in parts]
        mean = sum(weight * vectors @ bank.mean for (_, weight), bank in zip(parts, banks, strict=True))
        variance = sum(
            weight**2 * (np.square(vectors @ bank.factor.T).sum(axis=1) + bank.rest)
            for (_, weight), bank in zip(parts, banks, strict=True)
        )
        got = scores("znorm", query, vectors, Pool.of(vectors, codes, own))
        assert got == pytest.approx((vectors @ whole - mean) / np.sqrt(variance), abs=1e-5)
        centre = np.stack([calibration.banks[MODALITIES[code]].mean for code in codes])
        left = whole - sum(weight * bank.mean for (_, weight), bank in zip(parts, banks, strict=True))
        want = unit(vectors - centre) @ unit(left)
        assert scores("centred", query, vectors, pool) == pytest.approx(want, abs=1e-5)


def test_no_share_of_its_own_keeps_the_order_of_the_cosines_inside_a_modality(calibration, items):
    vectors, codes, *_ = items
    query = a_query(("text", 1.0))
    cosines = vectors @ query.vector
    flat, full = (
        scores("znorm", query, vectors, Pool.of(vectors, codes, replace(calibration, own=own))) for own in (0.0, 1.0)
    )
    for code in (IMAGE, AUDIO):
        assert np.argsort(flat[codes == code]).tolist() == np.argsort(cosines[codes == code]).tolist()
        assert np.argsort(full[codes == code]).tolist() != np.argsort(cosines[codes == code]).tolist()


def test_per_modality_takes_turns():
    codes = np.array([IMAGE, AUDIO, IMAGE, TEXT, AUDIO])
    found = RANKINGS["per-modality"](a_query(("text", 1.0)), np.array([0.9, -0.2, 0.8, 0.1, -0.9]), Pool(codes))
    assert np.argsort(-found).tolist() == [0, 3, 1, 2, 4]


@pytest.mark.parametrize("parts", [[("text", 1.0)], [("text", 1.2), ("text", -0.7), ("text", 0.3)], [("image", 2.0)]])
def test_folded_query_has_a_multiple_of_the_znorm(items, pool, parts):
    query, key = a_query(*parts), parts[0][0]
    want = scores("znorm", query, items[0], pool)
    got = (items[0] @ fold(query) - means(key, pool)) * pool.statistics[:, MODALITIES.index(key), 1]
    factor = sum(w for _, w in parts) / np.sqrt(sum(w * w for _, w in parts))
    assert got.shape == want.shape
    assert np.abs(factor * got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -0.4)])
@pytest.mark.parametrize("second", ["audio", "text"])
def test_znorm_of_a_mix_is_standard_over_draws_of_its_parts(items, weights, second):
    """Against each item, queries made of generic parts have mean 0 and variance 1, whatever the weights."""
    rng = np.random.default_rng(3)
    draws = {
        "text": unit(rng.normal(size=(4000, WIDTH)) + 0.4),
        "audio": unit(rng.normal(size=(4000, WIDTH)) * 2 - 0.3),
    }
    calibration = Calibration({key: Bank.of(rows) for key, rows in draws.items()}, own=1.0)
    pool = Pool.of(items[0], items[1], calibration)
    partners = draws[second][rng.permutation(4000)]
    found = np.array(
        [
            scores(
                "znorm",
                QueryVector.of([PartVector("text", a, weights[0]), PartVector(second, b, weights[1])]),
                items[0],
                pool,
            )
            for a, b in zip(draws["text"], partners, strict=True)
        ]
    )
    assert found.shape == (4000, 200)
    assert np.abs(found.mean(axis=0)).max() < 4 / np.sqrt(4000)
    assert np.abs(found.var(axis=0) - 1).max() < 5 * np.sqrt(2 / 4000)


def test_statistics_are_computed_in_chunks_and_per_item(calibration, items, pool, monkeypatch):
    monkeypatch.setattr(ranking, "CHUNK", 7)
    vectors, codes, *_ = items
    assert statistics(vectors, codes, calibration) == pytest.approx(pool.statistics, rel=1e-5)
    rows = np.array([3, 150, 20])
    few = replace(calibration, banks={key: calibration.banks[key] for key in ("image", "text")})
    want = statistics(vectors, codes, few)[rows]
    assert np.isnan(want[:, AUDIO]).all()
    assert statistics(vectors[rows], codes[rows], few) == pytest.approx(want, rel=1e-5, nan_ok=True)
    assert want[0, TEXT] == pytest.approx(pool.statistics[3, TEXT], rel=1e-5)
    assert want[1, TEXT, 1] != pytest.approx(
        pool.statistics[150, TEXT, 1], rel=1e-3
    )  # nothing typical is known of sounds
    assert pool.take(rows).statistics.tolist() == pool.statistics[rows].tolist()


def test_fair_where_modalities_have_a_gap(items, pool):
    """All pictures are nearer to any text than the sounds are: raw shows pictures only, Z-norm what was meant."""
    vectors, _, _, sound_texts = items
    hits = {"raw": [], "znorm": [], "centred": []}
    for number, text in enumerate(sound_texts):
        query = QueryVector.of([PartVector("text", text)])
        for name in hits:
            hits[name].append(np.argmax(scores(name, query, vectors, pool)) == 100 + number)
    assert np.mean(hits["raw"]) < 0.1
    assert np.mean(hits["znorm"]) > 0.9
    assert np.mean(hits["centred"]) > 0.9


def test_match_is_low_where_there_is_no_answer_and_right_where_there_is(items, pool):
    vectors, _, *texts = items
    said, true, without = [], [], []
    for place, side in enumerate(texts):
        for number, text in enumerate(side):
            query = QueryVector.of([PartVector("text", text)])
            found = match(query, scores("znorm", query, vectors, pool), pool, prior=1 / len(vectors))
            assert np.isfinite(found).all()
            own = np.arange(200) == 100 * place + number
            said.append(found)
            true.append(own)
            without.append(found[~own].max())
    assert np.mean(np.array(without) < 0.5) > 0.9
    said, true = np.array(said), np.array(true)
    assert np.mean(said[true] > 0.5) > 0.8
    assert Reliability.of(said.ravel(), true.ravel()).error < 0.003  # one pair in 200 is a match
    confident = said > 0.5
    assert said[confident].mean() == pytest.approx(true[confident].mean(), abs=0.1)


def test_match_of_a_mix_lies_between_its_parts_and_is_unknown_without_pairs(calibration, items, pool):
    z = np.linspace(-2, 6, 200)
    text, image = calibration.platt["text", "image"], calibration.platt["text", "audio"]
    single = match(a_query(("text", 3.0)), z, pool)
    assert single[:100] == pytest.approx(text.probability(z[:100]), abs=1e-9)
    assert single[100:] == pytest.approx(image.probability(z[100:]), abs=1e-9)
    assert match(a_query(("text", 3.0), ("text", -1.0)), z, pool) == pytest.approx(single, abs=1e-9)
    common = match(a_query(("text", 3.0)), z, pool, prior=0.3)
    assert common[:100] == pytest.approx(calibration.probability(z[:100], "text", "image", 0.3), abs=1e-9)
    fits = {("text", "image"): text, ("audio", "image"): image}
    mixed = Pool(pool.codes, replace(calibration, platt=fits), pool.statistics)
    found = match(a_query(("text", 3.0), ("audio", -1.0)), z, mixed)
    logit = (3 * text.logit(z[:100]) + image.logit(z[:100])) / 4
    assert found[:100] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-9)
    assert np.isnan(found[100:]).all()


def test_what_lacks_is_named(calibration, items):
    vectors, codes, *_ = items
    with pytest.raises(UserError, match="cancel out"):
        QueryVector.of([PartVector("text", vectors[0]), PartVector("text", vectors[0], -1.0)])
    query = a_query(("audio", 1.0))
    for name in ("znorm", "centred"):
        with pytest.raises(UserError, match="needs a calibration"):
            scores(name, query, vectors, Pool(codes))
        few = replace(calibration, banks={"text": calibration.banks["text"]})
        with pytest.raises(UserError, match="no bank of audio, only of text"):
            scores(name, query, vectors, Pool.of(vectors, codes, few))


def test_a_bank_of_texts_alone_serves_texts(calibration, items):
    vectors, codes, *_ = items
    few = replace(calibration, banks={"text": calibration.banks["text"]}, own=0.0)
    query = a_query(("text", 1.0))
    want = scores("znorm", query, vectors, Pool.of(vectors, codes, replace(calibration, own=1.0)))
    assert scores("znorm", query, vectors, Pool.of(vectors, codes, few)) == pytest.approx(want, abs=1e-5)


def test_more_items_need_a_higher_score():
    assert prior_of(500) == pytest.approx(0.01)
    assert prior_of(3) == prior_of(0) == 0.05
    assert prior_of(10**9) == 1e-3
