"""What a run decides by the device is decided alike by all processes."""

import pytest
import torch
from support.processes import start
from torch import nn

from onepeace.data.source import open_sources
from onepeace.processors import ImageProcessor
from onepeace.train import parallel, setup
from onepeace.train.sections import RunConfig

resource = pytest.importorskip("resource", reason="a limit of Unix")
CPU = torch.device("cpu")


def decide(folder):
    """Only the first process has a fast device, then only the second has one."""
    with parallel.group(CPU):
        is_first = parallel.rank() == 0
        answers = [parallel.first_decides(is_first), parallel.first_decides(not is_first)]
        (folder / f"{parallel.rank()}").write_text(str(answers))


def test_processes_take_answer_of_first(tmp_path):
    start(2, decide, tmp_path)

    assert [path.read_text() for path in tmp_path.iterdir()] == ["[True, False]", "[True, False]"]


@pytest.mark.parametrize(
    ("precision", "is_fast", "uses_bfloat16"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("float32", True, False),
        ("bfloat16", False, True),
    ],
)
def test_precision_auto_is_that_of_device(small_recipe, monkeypatch, precision, is_fast, uses_bfloat16):
    monkeypatch.setattr(setup, "bfloat16_is_fast", lambda device: is_fast and device.type == "cuda")
    recipe = small_recipe(run={"precision": precision})

    assert setup.computes_in_bfloat16(recipe, torch.device("cuda")) == uses_bfloat16


class WithPositions(nn.Module):
    """A layer with a buffer that is not stored."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("positions", torch.arange(4.0), persistent=False)


def shard_with_positions():
    with parallel.group(CPU):
        with torch.device("cpu" if parallel.rank() == 0 else "meta"):
            module = WithPositions()
        parallel.parallelize(module, [module.layer], RunConfig(out="", parallel="fsdp"), CPU)
        assert module.positions.tolist() == [0, 1, 2, 3]


def test_sharding_keeps_buffers_that_are_not_stored():
    start(2, shard_with_positions)


@pytest.mark.parametrize(
    ("soft", "hard", "limit"),
    [
        (256, 4096, 2048),
        (4000, 4096, 4000),
        (256, 1000, 1000),
    ],
)
def test_limit_of_open_files_is_raised(monkeypatch, caplog, soft, hard, limit):
    limits = [soft, hard]

    def set_limit(_, new):
        limits[:] = new

    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", set_limit)

    parallel.allow_open_files(2048)

    assert limits == [limit, hard]
    assert ("needs about 2048 open files, and the limit is 1000" in caplog.text) == (limit < 2048)


@pytest.mark.parametrize(("size", "is_told"), [(24, False), (48, True)])
def test_small_pictures_are_told_at_the_start(small_recipe, caplog, size, is_told):
    recipe = small_recipe(processors={"image": {"size": size}})
    processors = {"image": ImageProcessor(size=size)}

    setup.warn_of_small_pictures(open_sources(recipe.data), processors)

    line = f"its first pictures have up to 24 pixels a side, and the model reads {size}"
    assert (line in caplog.text) == is_told
