"""Banks against plain loops, Platt's fit against known numbers, and the file: what is read is what was written."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.two_towers import unit

from onepeace.errors import UserError
from onepeace.index.calibration import FILE, TOLERANCE, Bank, Calibration, Platt


@pytest.fixture
def vectors():
    """Unit vectors most of whose variance lies in few directions, as those of models."""
    rng = np.random.default_rng(0)
    return unit(rng.normal(size=(500, 24)) * 0.7 ** np.arange(24) + 0.3)


@pytest.fixture
def calibration(vectors):
    fits = {("text", "image"): Platt(2.5, -4.0, 0.01, 50, 0.02), ("image", "text"): Platt(1.5, -3.0, 0.01, 40)}
    return Calibration({"text": Bank.of(vectors), "image": Bank.of(vectors[:60])}, fits, 0.5, "abc", {"samples": 3})


def test_bank_knows_the_cosines_of_any_item_with_few_rows(vectors):
    bank = Bank.of(vectors)
    items = unit(np.random.default_rng(1).normal(size=(50, 24)))
    mean, variance = bank.statistics(items)
    cosines = items @ vectors.T
    assert mean == pytest.approx(cosines.mean(axis=1), abs=1e-6)
    whole = np.var(vectors, axis=0, ddof=1).sum()
    assert np.abs(variance - cosines.var(axis=1, ddof=1)).max() <= TOLERANCE * whole
    assert len(bank.factor) < 20


def test_bank_without_few_directions_keeps_them_all():
    vectors = unit(np.random.default_rng(0).normal(size=(40, 64)))
    bank = Bank.of(vectors)
    items = unit(np.random.default_rng(1).normal(size=(50, 64)))
    assert bank.statistics(items)[1] == pytest.approx((items @ vectors.T).var(axis=1, ddof=1), rel=1e-4)


def test_bank_that_spreads_evenly_needs_no_row_at_all():
    bank = Bank.of(np.concatenate([np.eye(32), -np.eye(32)]))
    assert bank.factor.shape == (0, 32)
    assert bank.statistics(np.eye(32)[:3])[1] == pytest.approx(np.full(3, 64 / 63 / 32))
    assert bank.typical(bank) == pytest.approx((0, 64 / 63 / 32), rel=0.02)


def test_bank_counts_each_vector_by_its_weight(vectors):
    twice = Bank.of(np.concatenate([vectors, vectors[:100]]))
    weighted = Bank.of(vectors, np.where(np.arange(500) < 100, 2.0, 1.0))
    assert weighted.mean == pytest.approx(twice.mean, abs=1e-6)
    assert weighted.statistics(vectors)[1] == pytest.approx(twice.statistics(vectors)[1], rel=5e-3)
    assert weighted.statistics(vectors)[1] != pytest.approx(Bank.of(vectors).statistics(vectors)[1], rel=5e-3)


def test_typical_statistics_are_the_mean_over_the_items(vectors):
    items = unit(np.random.default_rng(1).normal(size=(4000, 24)) + 0.5)
    mean, variance = Bank.of(vectors).statistics(items)
    assert Bank.of(vectors).typical(Bank.of(items)) == pytest.approx((mean.mean(), variance.mean()), rel=1e-3)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.eye(29), "a bank of 29 vectors is too small; give at least 30"),
        (np.full((30, 4), np.nan), "have NaN or infinite numbers"),
        (np.full((30, 4), 0.5), "the 30 vectors of a bank are all the same"),
    ],
)
def test_a_useless_bank_is_refused(vectors, message):
    with pytest.raises(UserError, match=message):
        Bank.of(vectors)


def test_platt_finds_known_parameters_and_another_prior_moves_them():
    rng = np.random.default_rng(0)
    z = rng.normal(0.5, 1.5, 200_000)
    matches = rng.random(len(z)) < 1 / (1 + np.exp(-(2.0 * z - 4.0)))
    fit = Platt.fit(z, matches, np.ones(len(z)), 7)
    assert (fit.a, fit.b) == pytest.approx((2.0, -4.0), abs=0.05)
    assert (fit.prior, fit.queries) == (pytest.approx(matches.mean()), 7)
    # matches ten times as rare: what was said at their old share is moved to the new one
    rare = Platt.fit(z, matches, np.where(matches, 0.1, 1.0))
    at = np.linspace(0, 4, 9)
    assert fit.probability(at, rare.prior) == pytest.approx(rare.probability(at), abs=0.02)
    assert np.abs(fit.probability(at) - rare.probability(at)).max() > 0.2


def test_platt_stays_finite_and_admits_that_it_cannot_tell():
    z = np.concatenate([np.linspace(-3, -1, 90), np.linspace(1, 3, 10)])
    fit = Platt.fit(z, z > 0, np.ones(100))
    assert fit.probability([-2.0, 2.0]) == pytest.approx([1 / 92, 11 / 12], abs=0.05)  # Platt's targets
    assert Platt.fit(z, z < 0, np.ones(100)) is None
    assert fit.probability([-1e6, 1e6]).tolist() == [0, 1]


def test_file_holds_everything(calibration, vectors, tmp_path):
    calibration.save(tmp_path / FILE)
    read = Calibration.load(tmp_path, embed_dim=24, model="abc")
    assert (read.platt[("text", "image")], read.own, read.model, read.about) == (
        calibration.platt[("text", "image")], 0.5, "abc", {"samples": 3},
    )  # fmt: skip
    assert np.isnan(read.platt[("image", "text")].error)
    for key, bank in calibration.banks.items():
        for got, want in zip(read.banks[key].statistics(vectors), bank.statistics(vectors), strict=True):
            assert got.tolist() == want.tolist()
    assert (read.banks["image"].count, read.embed_dim, read.typical) == (60, 24, calibration.typical)


def test_a_file_that_is_none_or_of_another_model_is_named(calibration, tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(UserError, match=r"c\.safetensors: no such file; make it with: onepeace calibrate"):
        Calibration.load(path)
    calibration.save(path)
    content = path.read_bytes()
    for wanted, message in (
        ({"embed_dim": 256}, "is for vectors of 24 numbers, these have 256"),
        ({"model": "xyz"}, "is of the model abc, not of xyz"),
    ):
        with pytest.raises(UserError, match=message):
            Calibration.load(path, **wanted)
    for size in (0, 4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"c\.safetensors: damaged or cut off"):
            Calibration.load(path)
    save_file({"vectors": np.ones((2, 2), dtype=np.float32)}, path)
    with pytest.raises(UserError, match=r"c\.safetensors: is no calibration"):
        Calibration.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, tensors: header.update(format=2), r"format 2 is not the one this onepeace reads \(1\)"),
        (lambda header, tensors: header.update(banks={}), "damaged or cut off"),
        (lambda header, tensors: header["platt"][0].update(c=1), "damaged or cut off"),
        (lambda header, tensors: tensors.pop("mean.text"), "damaged or cut off"),
        (lambda header, tensors: tensors.update({"mean.text": tensors["mean.text"][:5]}), "do not fit together"),
        (lambda header, tensors: tensors["factor.text"].__setitem__(0, np.nan), "not all finite float32"),
    ],
)
def test_a_strange_file_is_refused_in_one_line(calibration, tmp_path, change, message):
    path = tmp_path / "c.safetensors"
    calibration.save(path)
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()["calibration"])
    tensors = load_file(path)
    change(header, tensors)
    save_file(tensors, path, {"calibration": json.dumps(header)})
    with pytest.raises(UserError, match=message) as error:
        Calibration.load(path)
    assert "\n" not in str(error.value)
