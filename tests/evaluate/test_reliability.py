"""Reliability of hand-made and of perfect probabilities, and the diagram."""

import numpy as np
import pytest

from onepeace.errors import UserError
from onepeace.evaluate.reliability import Reliability, draw


def test_bins_and_error_of_hand_made_probabilities():
    found = Reliability.of([0.05, 0.07, 0.95, 1.0], [0, 1, 1, 1], [1, 1, 2, 4])
    assert found.said == pytest.approx([0.06, (0.95 * 2 + 4) / 6])
    assert found.true == pytest.approx([0.5, 1.0])
    assert found.weight == pytest.approx([2 / 8, 6 / 8])
    assert found.error == pytest.approx(2 / 8 * 0.44 + 6 / 8 * (1 - 5.9 / 6))


def test_probabilities_that_come_true_have_a_small_error_and_overconfident_ones_a_large_one():
    rng = np.random.default_rng(0)
    p = rng.random(50_000)
    true = rng.random(50_000) < p
    assert Reliability.of(p, true).error < 0.01
    assert Reliability.of(np.round(p), true).error == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("wrong", [[], [0.5, np.nan], [1.1]])
def test_what_is_no_probability_is_an_error(wrong):
    with pytest.raises(ValueError, match=r"not all of them in 0\.\.1"):
        Reliability.of(wrong, wrong)


def test_diagram_is_a_picture_with_a_line_for_each(tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    one = Reliability.of([0.1, 0.3, 0.9], [0, 1, 1])
    draw({"text to image": one}, tmp_path / "one.png", "prior 0.01")
    draw({"text to image": one, "text to audio": Reliability.of([0.5, 0.2], [1, 0])}, tmp_path / "two.png")
    sizes = []
    for name in ("one", "two"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            sizes.append(len(picture.convert("RGB").getcolors(1 << 24)))
            assert picture.width > 600
    assert sizes[1] > sizes[0]
    for file, message in (("x.what", "x.what: "), ("none/x.png", "cannot be written")):
        with pytest.raises(UserError, match=message):
            draw({"a": one}, tmp_path / file)
