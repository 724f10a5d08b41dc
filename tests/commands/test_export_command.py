"""`onepeace export`: what is wrong with a command is one line, said before anything is computed."""

import sys

import pytest


@pytest.fixture
def export(run, random_folder, tmp_path, monkeypatch):
    """Runs the command, which must fail before a model is loaded; returns the line that it says."""
    monkeypatch.setattr("onepeace.export.folder.load", None)

    def call(*options, code=1):
        out = tmp_path / "out"
        (line,) = run("export", random_folder, "-o", out, *options, code=code).err.splitlines()
        assert not out.exists()
        return line

    return call


def test_unknown_modality_is_named(export, random_folder):
    line = export("--modalities", "text,video")
    assert line.startswith("onepeace: ")
    assert f"{random_folder} embeds text, image, audio; video" in line


def test_missing_package_is_named_with_its_extra(export, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export() == 'onepeace: needs onnxruntime: pip install "onepeace[onnx]"'
