"""The text branch in the cache: the vectors of the model without the model."""

import logging
import shutil

import numpy as np
import pytest
from support.random_model import save_random_model

from onepeace.embed.embedder import load
from onepeace.export.text_branch import TextBranch, text_branch_folder
from onepeace.hub.resolve import fingerprint
from onepeace.index import Index, maintain

pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two texts, a model, and a cache that has its text branch since an index of both texts was built."""
    folder = tmp_path_factory.mktemp("branch")
    model = save_random_model(folder / "model", ("text",), depth=1)
    texts = [folder / "0.txt", folder / "1.txt"]
    for path in texts:
        path.write_text(f"words {path.name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEPEACE_CACHE", str(folder / "cache"))
        patch.setattr(maintain, "EXPORT_FROM", 2)
        maintain.build(folder / "index", texts[:1], str(model), progress=False)
        assert TextBranch.open(fingerprint(model)) is None
        maintain.build(folder / "index", texts, str(model), progress=False)
    return folder


@pytest.fixture
def model_hash(folder, monkeypatch):
    monkeypatch.setenv("ONEPEACE_CACHE", str(folder / "cache"))
    monkeypatch.setattr(maintain, "EXPORT_FROM", 2)
    return fingerprint(folder / "model")


def test_vectors_are_those_of_the_model(model_hash, folder):
    texts = ["a dog", "two dogs on a beach, and further words"]
    expected = load(str(folder / "model"), modalities=["text"]).encode_text(texts, progress=False)

    np.testing.assert_allclose(TextBranch.open(model_hash).encode(texts), expected, atol=1e-5)


def test_branch_is_not_used_without_onnxruntime(model_hash, monkeypatch, caplog):
    monkeypatch.setattr("onepeace.export.text_branch.find_spec", lambda name: None)

    assert TextBranch.open(model_hash) is None
    assert "onepeace.export.text_branch" not in [record.name for record in caplog.records]


@pytest.mark.usefixtures("model_hash")
def test_search_needs_neither_a_model_nor_a_second_export(folder, build, no_model, index, monkeypatch):
    monkeypatch.setattr("onepeace.export.folder.export_model", lambda *_, **__: pytest.fail("it is there"))
    build(folder / "0.txt", folder / "1.txt", model=folder / "model")
    no_model()

    with Index.open(index) as opened:
        assert len(opened.search("words", collapse=False)) == 2


def test_damaged_branch_is_not_used_and_removed(model_hash, folder, tmp_path, monkeypatch, caplog):
    """The next update of an index then writes it again."""
    shutil.copytree(folder / "cache", tmp_path / "cache")
    monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path / "cache"))
    path = text_branch_folder(model_hash) / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))

    with caplog.at_level(logging.WARNING, "onepeace"):
        assert TextBranch.open(model_hash) is None

    assert "tokenizer.json" in caplog.text
    assert not path.parent.exists()
