"""Names given by others, as they are printed."""

import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from onepeace.cli import _PrintableLines, main
from onepeace.errors import UserError, one_line, printable
from onepeace.files.table import format_table

EVIL = "a\x1b]0;title\x07\x1b[2J\r\u202egnp.exe"
ESCAPED = r"a\x1b]0;title\x07\x1b[2J\r\u202egnp.exe"


@pytest.mark.parametrize(
    "write",
    [
        printable,
        one_line,
        UserError,
        lambda name: UserError("is wrong", where=name),
        lambda name: format_table(["name"], [[name]]),
        lambda name: _PrintableLines("%(message)s").format(logging.makeLogRecord({"msg": name})),
    ],
)
def test_control_characters_are_escaped(write):
    text = str(write(EVIL))
    assert "gnp.exe" in text
    assert text.replace("\n", "").isprintable()


def test_names_are_printed_as_they_are():
    assert printable(EVIL) == ESCAPED
    for name in ("a b", "Überraschung.jpg", "猫.png", "C:\\dog.jpg", ESCAPED):
        assert printable(name) == name


def test_names_of_tensors_are_printed_without_control_characters(random_folder, tmp_path, capsys):
    folder = shutil.copytree(random_folder, tmp_path / "m")
    (folder / "SHA256SUMS").unlink()
    path = folder / "model.safetensors"
    save_file({**load_file(path), EVIL: torch.zeros(1)}, path)

    assert main(["info", str(folder)]) == 0
    assert "\n" + ESCAPED.partition(".")[0] in capsys.readouterr().out
