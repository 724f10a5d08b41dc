"""The hash by which an index, a calibration or a result says which model it is of."""

import pytest

from onepeace.hub import resolve as fingerprint_module
from onepeace.hub.resolve import fingerprint

READ = ("config.yaml", "model.safetensors", "tokenizer.json")


@pytest.fixture
def folder(tmp_path):
    for name in (*READ, "MODEL_CARD.md"):
        (tmp_path / name).write_bytes(b"a")
    return tmp_path


@pytest.mark.parametrize("name", READ)
def test_fingerprint_changes_with_what_vectors_depend_on(folder, name):
    original = fingerprint(folder)
    (folder / name).write_bytes(b"b")
    assert fingerprint(folder) != original


@pytest.mark.parametrize(
    ("position", "is_sampled"),
    [
        (0, True),
        (20, False),
        (35, True),
        (99, True),
    ],
)
def test_large_weights_are_sampled(tmp_path, monkeypatch, position, is_sampled):
    monkeypatch.setattr(fingerprint_module, "PARTS", 4)
    monkeypatch.setattr(fingerprint_module, "PART", 10)
    content = bytearray(100)
    (tmp_path / "model.safetensors").write_bytes(content)
    original = fingerprint(tmp_path)

    content[position] = 1
    (tmp_path / "model.safetensors").write_bytes(content)

    assert (fingerprint(tmp_path) != original) == is_sampled
