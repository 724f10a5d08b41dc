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
    code, line = export("--onnx", "--modalities", "text,video")
    assert (code, line) == (1, f"onepeace: {random_folder} makes no vectors of 'video', only of text, image, audio")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_missing_package_is_named_with_its_extra(export, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert export("--onnx") == (1, f'onepeace: needs {package}: pip install "onepeace[onnx]"')


def test_int8_is_for_onnx(export):
    assert export("--torch-export", "--int8", "dynamic") == (2, "onepeace: --int8 dynamic is for --onnx")


@pytest.mark.parametrize("options", [(), ("--onnx", "--torch-export"), ("--onnx", "--int8", "4")])
def test_wrong_usage_points_to_the_help(export, options):
    code, line = export(*options)
    assert code == 2
    assert line.endswith("; see: onepeace export --help")


def test_help_has_an_example(capsys):
    assert main(["export", "--help"]) == 0
    assert "\n  onepeace export tiny -o exported --onnx\n" in capsys.readouterr().out
