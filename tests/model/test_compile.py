"""Compiled blocks: one graph for all lengths, the same vectors, and what is said where it does not pay."""

import pytest
import torch
from support.golden_cases import assert_near
from support.small_models import small_model
from torch._dynamo.testing import CompileCounter

from onepeace import compiling


def text_batch(count, length):
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(3, 40, (count, length), generator=generator)
    return {"text": {"ids": ids}}


@pytest.fixture
def model():
    return small_model("text")


@torch.no_grad()
def test_one_graph_serves_all_lengths_and_batches(model):
    batches = [text_batch(3, 5), text_batch(4, 9), text_batch(2, 9)]
    expected = [model(batch)["text"] for batch in batches]
    counter = CompileCounter()
    for block in model.blocks:
        block.compile(dynamic=True, fullgraph=True, backend=counter)
    for batch, vectors in zip(batches, expected, strict=True):
        assert_near(model(batch)["text"], vectors, 1e-6)
    assert counter.frame_count == 1


def is_compiled(model):
    return all(block._compiled_call_impl is not None for block in model.blocks)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_vectors_are_the_same(model, monkeypatch):
    monkeypatch.setattr(compiling, "MIN_WIDTH", 1)
    batches = [text_batch(3, 5), text_batch(3, 9)]
    expected = [model(batch)["text"] for batch in batches]
    compiling.compile_blocks(model)
    assert is_compiled(model)
    for batch, vectors in zip(batches, expected, strict=True):
        assert_near(model(batch)["text"], vectors, 1e-6)


@pytest.mark.parametrize(("width", "reason"), [(1, "compiler"), (10_000, "10000")])
def test_compiling_that_does_not_pay(model, monkeypatch, caplog, width, reason):
    monkeypatch.setattr(compiling, "MIN_WIDTH", width)
    monkeypatch.setattr(compiling, "has_cpp_compiler", lambda: False)
    compiling.compile_blocks(model)
    assert not is_compiled(model)
    assert reason in caplog.text
    assert len(caplog.records) == 1


def test_compiling_for_a_gpu_needs_no_compiler_for_a_cpu(model, monkeypatch):
    monkeypatch.setattr(compiling, "MIN_WIDTH", 1)
    monkeypatch.setattr(compiling, "has_cpp_compiler", lambda: False)
    assert compiling.pays_off(model, torch.device("cuda"))
    assert not compiling.pays_off(model, torch.device("cpu"))
