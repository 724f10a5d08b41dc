"""Compiled blocks: one graph for all lengths, the same vectors, and what is said where it does not pay."""

import pytest
import torch
from support.small_models import small_model
from torch._dynamo.testing import CompileCounter

from onepeace import compiling


def ids(batch, length):
    return {"text": {"ids": torch.randint(3, 40, (batch, length), generator=torch.Generator().manual_seed(length))}}


@torch.no_grad()
def test_one_graph_serves_all_lengths_and_batches():
    model, counter = small_model("text").eval(), CompileCounter()
    inputs = [ids(3, 5), ids(4, 9), ids(2, 9)]
    expected = [model(one)["text"] for one in inputs]
    for block in model.blocks:
        block.compile(dynamic=True, fullgraph=True, backend=counter)
    torch.testing.assert_close([model(one)["text"] for one in inputs], expected)
    assert counter.frame_count == 1


def is_compiled(model):
    return all(block._compiled_call_impl is not None for block in model.blocks)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_vectors_are_the_same(monkeypatch):
    monkeypatch.setattr(compiling, "MIN_WIDTH", 1)
    model = small_model("text").eval()
    expected = [model(ids(3, length))["text"] for length in (5, 9)]
    compiling.compile_blocks(model)
    assert is_compiled(model)
    found = [model(ids(3, length))["text"] for length in (5, 9)]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("width", "said"), [(1, "compiler"), (10_000, "10000")])
def test_where_it_does_not_pay_it_says_why(monkeypatch, caplog, width, said):
    monkeypatch.setattr(compiling, "MIN_WIDTH", width)
    monkeypatch.setattr(compiling, "has_cpp_compiler", lambda: False)
    compiling.compile_blocks(model := small_model("text"))
    assert not is_compiled(model)
    assert said in caplog.text
    assert len(caplog.records) == 1


def test_a_model_that_will_be_on_a_gpu_needs_no_compiler_for_a_cpu(monkeypatch):
    monkeypatch.setattr(compiling, "MIN_WIDTH", 1)
    monkeypatch.setattr(compiling, "has_cpp_compiler", lambda: False)
    model = small_model("text")
    assert compiling.pays_off(model, torch.device("cuda"))
    assert not compiling.pays_off(model, torch.device("cpu"))
