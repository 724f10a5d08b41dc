"""What a run decides by the device is decided alike by all processes."""

import pytest
import torch
from support.processes import start
from support.training import recipe

from onepeace.train import build, parallel


def decide(folder):
    """Only the first process has a fast device, then only the others have one."""
    with parallel.group(torch.device("cpu")):
        is_first = parallel.rank() == 0
        answers = [parallel.first_decides(is_first), parallel.first_decides(not is_first)]
        (folder / f"{parallel.rank()}").write_text(str(answers))


def test_processes_take_the_answer_of_the_first(tmp_path):
    start(2, decide, tmp_path)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"[True, False]"}


@pytest.mark.parametrize(("precision", "fast", "bfloat16"), [
    ("auto", True, True),
    ("auto", False, False),
    ("float32", True, False),
    ("bfloat16", False, True),
])  # fmt: skip
def test_precision_auto_is_that_of_the_device(monkeypatch, tmp_path, precision, fast, bfloat16):
    monkeypatch.setattr(build, "bfloat16_is_fast", lambda device: fast and device.type == "cuda")
    wanted = recipe(tmp_path, tmp_path, run={"precision": precision})
    assert build.computes_in_bfloat16(wanted, torch.device("cuda")) == bfloat16
