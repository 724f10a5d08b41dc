"""The hash by which an index, a calibration or a result says which model it is of."""

from onepeace.hub import fingerprint as module
from onepeace.hub.fingerprint import fingerprint


def test_it_changes_with_what_vectors_depend_on_and_with_nothing_else(tmp_path):
    for name in ("config.yaml", "model.safetensors", "tokenizer.json", "MODEL_CARD.md"):
        (tmp_path / name).write_bytes(b"a")
    first = fingerprint(tmp_path)
    (tmp_path / "MODEL_CARD.md").write_bytes(b"b")
    (tmp_path / "calibration.safetensors").write_bytes(b"b")
    assert fingerprint(tmp_path) == first
    for name in ("config.yaml", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"b")
        assert fingerprint(tmp_path) != first
        (tmp_path / name).write_bytes(b"a")


def test_large_weights_are_sampled_from_their_first_byte_to_their_last(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PARTS", 4)
    monkeypatch.setattr(module, "PART", 10)
    content = bytearray(100)
    found = set()
    for place in (None, 0, 35, 99, 20):  # the last is between two samples
        changed = bytearray(content)
        if place is not None:
            changed[place] = 1
        (tmp_path / "model.safetensors").write_bytes(changed)
        found.add(fingerprint(tmp_path))
    assert len(found) == 4
