"""The study of sounds through a projector of pictures: its scores and its moves are what they say."""

import sys

import pytest
import torch
from support.random_model import ROOT

from onepeace.bridge import Bridge
from onepeace.bridge.conversations import Conversation


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes" / "bridge"))
    import transfer

    yield transfer
    for name in ("transfer", "transfer_data"):
        sys.modules.pop(name)


def test_scores_are_those_of_each_sentence_alone(study, folders):
    bridge = Bridge.new(*folders, template=study.TEMPLATE)
    items = torch.randn(2, 3, 32)
    sentences = ["a cat", "a dog barks", "mat"]
    got = study.scores(bridge, items, sentences)
    for row, sentence in enumerate(sentences):
        heard = [Conversation([("<audio>", sentence)], [("audio", item)]) for item in items]
        batches = [bridge.collate([one]) for one in [*heard, Conversation([("", sentence)], [])]]
        with torch.no_grad():
            *after, before = (-bridge(**batch).loss * (batch["labels"] != -100).sum() for batch in batches)
        want = torch.stack(after) - before
        assert want.isfinite().all()
        assert want.abs().min() > 1e-3
        torch.testing.assert_close(got[:, row], want, atol=1e-4, rtol=0)


def test_moved_sounds_have_the_statistics_of_pictures(study):
    sounds, pictures = torch.randn(50, 4, 8) * 3 + 1, torch.randn(40, 6, 8) * torch.rand(8) - 2
    assert study.moved(sounds, "raw", sounds, pictures) is sounds
    for by in ("centred", "z-norm"):
        found = study.moved(sounds, by, sounds, pictures)
        assert found.shape == sounds.shape
        torch.testing.assert_close(found.mean((0, 1)), pictures.mean((0, 1)))
        std = pictures.std((0, 1)) if by == "z-norm" else sounds.std((0, 1))
        torch.testing.assert_close(found.std((0, 1)), std)
    assert (sounds.std((0, 1)) - pictures.std((0, 1))).abs().min() > 0.1


def test_names_match_by_whole_words(study):
    import transfer_data

    assert transfer_data.words("Sea waves and the dogs") == {"sea", "wave", "dog"}
    assert not transfer_data.words("caterpillar") & transfer_data.words("cat")
