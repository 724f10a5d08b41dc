"""A random encoder and a random language model."""

import pytest
import torch
from support.random_model import save_random_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from onepeace.processors.tokenizer import SPECIALS, train_bpe


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """(encoder, language model), random."""
    folder = tmp_path_factory.mktemp("bridge")
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), SPECIALS, strict=True))
    trained = train_bpe(["a dog barks", "a cat on a mat"], 280)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, **names)
    tokenizer.save_pretrained(folder / "words")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.2, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "words")
    return str(save_random_model(folder / "encoder")), str(folder / "words")
