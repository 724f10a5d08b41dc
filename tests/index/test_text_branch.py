"""The text branch in the cache: the vectors of the model without the model."""

import logging

import numpy as np
import pytest
from support.random_model import save_random_model

from onepeace.embed.embedder import load
from onepeace.export.text_branch import TextBranch, text_branch_folder
from onepeace.hub.fingerprint import fingerprint
from onepeace.index import build, derived
from onepeace.index.index import Index

pytest.importorskip("onnxscript")


def test_words_are_read_without_the_model(tmp_path, monkeypatch, caplog):
    model = save_random_model(tmp_path / "model", ("text",), depth=1)
    monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(derived, "EXPORT_FROM", 2)
    for i in range(2):
        (tmp_path / f"{i}.txt").write_text(f"words {i}")
    paths, model_hash = [tmp_path / "0.txt", tmp_path / "1.txt"], fingerprint(model)
    build(tmp_path / "one", paths[:1], str(model), progress=False)
    assert TextBranch.open(model_hash) is None
    build(tmp_path / "one", paths, str(model), progress=False)
    texts = ["a dog", "two dogs on a beach, and further words"]
    expected = load(str(model), modalities=["text"]).encode_text(texts, progress=False)
    np.testing.assert_allclose(TextBranch.open(model_hash).encode(texts), expected, atol=1e-5)

    with monkeypatch.context() as patch:  # another environment, without onnxruntime
        patch.setattr("onepeace.export.text_branch.find_spec", lambda name: None)
        assert TextBranch.open(model_hash) is None
    assert "onepeace.export.text_branch" not in [record.name for record in caplog.records]

    monkeypatch.setattr("onepeace.export.folder.export_model", lambda *_, **__: pytest.fail("it is there"))
    build(tmp_path / "two", paths, str(model), progress=False)
    monkeypatch.setattr("onepeace.embed.embedder.load", lambda *_, **__: pytest.fail("no model is needed"))
    with Index.open(tmp_path / "two") as index:
        assert len(index.search("words")) == 2

    path = text_branch_folder(model_hash) / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    with caplog.at_level(logging.WARNING, "onepeace"):
        assert TextBranch.open(model_hash) is None
    assert "tokenizer.json" in caplog.text
