"""What a calibration is made of: who is dealt where, what is chosen by held-out queries, and what is left out."""

import logging

import numpy as np
import pytest
from support.two_towers import WIDTH, labelled, unit

from onepeace.errors import UserError
from onepeace.index import fitting
from onepeace.index.calibration import OWN
from onepeace.index.fitting import ALONE, BANK, CHECK, FIT, Vectors, fit


def test_samples_are_dealt_whole_and_those_without_a_partner_are_in_the_banks():
    found = labelled(100)
    alone = Vectors(found["text"].vectors[:40], np.arange(900, 940), np.full(40, ALONE))
    texts = Vectors(*(np.concatenate([a, b]) for a, b in zip(found["text"][:3], alone[:3], strict=True)))
    parts = fitting._deal({**found, "text": texts})
    assert [np.sum(parts["text"] == part) for part in (BANK, FIT, CHECK)] == [140, 50, 50]
    assert (parts["text"][200:] == BANK).all()
    assert parts["image"].tolist() == parts["text"][:100].tolist()
    assert parts["audio"].tolist() == parts["text"][100:200].tolist()


def test_every_pair_of_modalities_with_pairs_is_fitted_and_checked():
    result = fit(labelled(), prior=0.02, model="m", about={"a": 1})
    expected = {("text", "image"), ("image", "text"), ("text", "audio"), ("audio", "text")}
    assert set(result.calibration.platt) == set(result.checks) == expected
    for own in result.calibration.platt.values():
        assert own.prior == pytest.approx(0.02)
        assert own.queries > 60
        assert 0 < own.error < 0.1
    assert (result.calibration.model, result.calibration.about) == ("m", {"a": 1})
    again = fit(labelled(), prior=0.02, model="m", about={"a": 1})
    assert again.calibration.platt == result.calibration.platt


def test_items_of_a_class_match_one_another_but_no_query_finds_itself():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 20, 400)
    vectors = unit(unit(rng.normal(size=(20, WIDTH)))[classes] + 0.6 * unit(rng.normal(size=(400, WIDTH))))
    found = {"image": Vectors(vectors, np.arange(400), classes)}
    searches = fitting._searches(found, fitting._deal(found), ("image", "image"), FIT)
    assert searches.matches.shape == (100, 100)
    assert (searches.others.sum(axis=1) == 99).all()
    own = ~searches.others
    assert not (searches.matches & own).any()
    # the query is left out of its own scores
    assert [len(row) for row in searches.z(fit(found, prior=0.01, model="", about={}).calibration)] == [99] * 100
    assert ("image", "image") in fit(found, prior=0.01, model="", about={}).calibration.platt


def hubs(found, strength):
    """The same pictures, some of them nearer to every text than they should be."""
    rows = found["image"].vectors.copy()
    rows[::5] = unit(rows[::5] + strength * np.eye(WIDTH)[0])
    return {**found, "image": found["image"]._replace(vectors=rows.astype(np.float32))}


def test_own_statistics_count_where_they_help_and_not_where_they_harm():
    clean = labelled(800)
    assert fit(hubs(clean, 1.0), prior=0.01, model="", about={}).calibration.own >= 0.5
    # A bank of other texts than those that are searched for takes from pictures what these texts look for.
    rng = np.random.default_rng(0)
    parts = fitting._deal(clean)
    narrow = clean["text"].vectors.copy()
    bank = parts["text"] == BANK
    narrow[bank] = unit(rng.normal(size=(int(bank.sum()), 3)) @ rng.normal(size=(3, WIDTH)) + 0.5)
    harmed = {**clean, "text": clean["text"]._replace(vectors=narrow.astype(np.float32))}
    assert fit(harmed, prior=0.01, model="", about={}).calibration.own <= 0.25


def test_banks_alone_and_too_few_pairs_are_said(caplog):
    found = labelled(200)
    alone = {key: own._replace(groups=np.full(len(own.groups), ALONE)) for key, own in found.items()}
    result = fit(alone, prior=0.01, model="", about={})
    assert (result.calibration.platt, result.checks, result.calibration.own) == ({}, {}, OWN)
    assert {key: bank.count for key, bank in result.calibration.banks.items()} == {
        "image": 200,
        "audio": 200,
        "text": 400,
    }
    caplog.set_level(logging.INFO)
    groups = np.where(np.arange(200) < 60, found["image"].groups, ALONE)
    few = fit({**found, "image": found["image"]._replace(groups=groups)}, prior=0.01, model="", about={})
    assert set(few.calibration.platt) == {("text", "audio"), ("audio", "text")}
    assert "text to image: 1" in caplog.text
    with pytest.raises(UserError, match=r"audio: a bank of \d+ vectors is too small; give at least 30; half of all"):
        fit({"audio": Vectors(*(part[:50] for part in found["audio"][:3]))}, prior=0.01, model="", about={})


def test_scores_that_tell_nothing_give_no_match_probability(caplog):
    found = labelled(200)
    rng = np.random.default_rng(0)
    noise = unit(rng.normal(size=(200, WIDTH))).astype(np.float32)
    shuffled = {**found, "image": found["image"]._replace(vectors=-found["text"].vectors[:200] + 0.1 * noise)}
    result = fit(shuffled, prior=0.01, model="", about={})
    assert ("text", "image") not in result.calibration.platt
    assert "text to image: matches score no higher than others" in caplog.text
