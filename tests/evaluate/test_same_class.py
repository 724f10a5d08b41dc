"""Search between modalities that were never paired: the figures, ties, and matches that do not fit."""

import numpy as np
import pytest
from support.evaluation import SAME_CLASS, EqualEmbedder, KnownEmbedder, measure, recipe_of

from onepeace.errors import UserError
from onepeace.evaluate.protocols.same_class import Labelled, precisions


def test_precisions_equal_a_plain_loop():
    sounds = Labelled(
        np.random.default_rng(1).normal(size=(9, 3)).round(1),
        np.array(["dog", "horn", "motor", "rain", "dog", "horn", "motor", "motor", "dog"]),
    )
    pictures = Labelled(
        np.random.default_rng(2).normal(size=(11, 3)).round(1),
        np.array(["pug", "car", "tree", "bus", "car", "terrier", *["tree"] * 3, "pug", "bus"]),
    )
    forth = {"dog": ("pug", "terrier"), "horn": ("car",), "motor": ("car", "bus")}
    back = {"pug": ["dog"], "terrier": ["dog"], "car": ["horn", "motor"], "bus": ["motor"]}
    for queries, candidates, matches in ((sounds, pictures, forth), (pictures, sounds, back)):
        want = []
        for k in (1, 4):
            shares, chances = [], []
            for vector, query in zip(*queries, strict=True):
                row = candidates.vectors @ vector
                hits = [candidate in matches.get(query, ()) for candidate in candidates.labels]
                if any(hits):
                    first = sorted(range(len(row)), key=lambda j, row=row, hits=hits: (-row[j], hits[j]))[:k]
                    shares.append(sum(hits[j] for j in first) / k)
                    chances.append(sum(hits) / len(hits))
            assert 0 < sum(shares) < len(shares)
            want.append((f"there precision@{k}", pytest.approx(np.mean(shares)), np.mean(chances), len(shares)))
        got = precisions("there", queries, candidates, matches, at=[1, 4])
        assert [figure._replace(chance=pytest.approx(figure.chance))[:4] for figure in got] == want
    assert all(np.mean(figure.per_query) == pytest.approx(figure.value) for figure in got)


def test_matched_items_are_searched_among_all(root, pictures):
    rows = measure(KnownEmbedder(), recipe_of(root, SAME_CLASS))
    assert [row[:2] for row in rows] == [("both", "audio to image precision@2"), ("both", "image to audio precision@2")]
    # the dog's sound finds two dogs, the cat's one cat; each picture has one sound among four
    assert [row.value for row in rows] == [pytest.approx((1 + 1 / 2) / 2), pytest.approx(1 / 2)]
    assert [row.chance for row in rows] == [pytest.approx((2 / 4 + 1 / 4) / 2), pytest.approx(1 / 4)]
    assert [row.n for row in rows] == [2, 3]
    assert [row.ratio for row in rows] == [pytest.approx(2), pytest.approx(2)]
    # ties count against the model
    assert [row.value for row in measure(EqualEmbedder(), recipe_of(root, SAME_CLASS))] == [0, 0]


@pytest.mark.parametrize("lacks", ["image", "audio"])
def test_both_modalities_are_needed(root, pictures, caplog, lacks):
    embedder = KnownEmbedder(modalities={"text", "image", "audio"} - {lacks})
    assert measure(embedder, recipe_of(root, SAME_CLASS)) == []
    assert f"both: left out, the model has no {lacks}" in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("matches.bird=[pug]", r"set both: matches names 'bird', which is no label in val/sounds"),
        ("matches.cat=[tiger]", r"set both: matches names 'tiger', which is no label in val/pictures"),
    ],
)
def test_a_match_of_no_item_is_named(root, pictures, override, message):
    with pytest.raises(UserError, match=message):
        measure(KnownEmbedder(), recipe_of(root, SAME_CLASS, f"sets.both.{override}"))
