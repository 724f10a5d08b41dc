"""`onepeace export`: what is wrong with a command is one line, said before anything is computed."""

import sys

import pytest

from onepeace.cli import main


@pytest.fixture
def export(random_folder, tmp_path, capsys, monkeypatch):
    """Runs the command, which must fail before a model is loaded: (exit code, what it says)."""
    monkeypatch.setattr("onepeace.export.folder.load", None)

    def run(*options):
        code = main(["export", str(random_folder), "-o", str(tmp_path / "out"), *options])
        (line,) = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "out").exists()
        return code, line

    return run


def test_unknown_modality_is_named(export, random_folder):
    code, line = export("--modalities", "text,video")
    assert (code, line.partition(": ")[0]) == (1, "onepeace")
    assert f"{random_folder} embeds text, image, audio; video" in line


def test_missing_package_is_named_with_its_extra(export, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export() == (1, 'onepeace: needs onnxruntime: pip install "onepeace[onnx]"')


def test_an_unknown_form_has_a_nearest_name(export):
    code, line = export("--form", "int9")
    assert (code, "did you mean int8?" in line) == (2, True)
