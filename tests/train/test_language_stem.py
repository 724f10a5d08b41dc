"""The first layers of a text encoder of transformers as the text stem: its own pieces, its own function, and a model
folder that needs nothing else."""

import shutil

import pytest
import torch
import transformers
from support.training import MODEL, recipe
from transformers.convert_slow_tokenizer import bytes_to_unicode

from onepeace.embed.embedder import load
from onepeace.errors import UserError
from onepeace.model.stems.language import LanguageStem
from onepeace.plan.plan import make_plan
from onepeace.processors.tokenizer import from_transformers
from onepeace.train import loop

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
TEXTS = ["a red square", "green", "two blue dogs, and a cat"]


def bert():
    """WordPiece; its specials are neither in front nor in our order."""
    pieces = ["[PAD]", "red", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *",<>"]
    pieces += [*(f"##{letter}" for letter in LETTERS), "dog"]
    tokenizer = transformers.BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)})
    return tokenizer, transformers.BertConfig(vocab_size=len(pieces), **SHAPE)


def roberta():
    """Byte-level BPE, positions counted from behind the padding's id."""
    alphabet = sorted(bytes_to_unicode().values())
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, "re", "red", "Ġa", "<mask>"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = transformers.RobertaTokenizer(vocab=vocab, merges=[("r", "e"), ("re", "d"), ("Ġ", "a")])
    config = transformers.RobertaConfig(vocab_size=len(pieces), max_position_embeddings=66, pad_token_id=1, **SHAPE)
    return tokenizer, config


@pytest.fixture(params=[bert, roberta], ids=lambda made: made.__name__)
def saved(request, tmp_path):
    """The folder of a small encoder with random weights, the encoder and its tokenizer."""
    torch.manual_seed(5)
    tokenizer, config = request.param()
    network = transformers.AutoModel.from_config(config).eval()
    for module in (tokenizer, network):
        module.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder", network, tokenizer


@pytest.mark.parametrize("layers", [1, None])
def test_stem_is_the_encoder_and_company_never_changes_a_text(saved, layers):
    folder, network, theirs = saved
    ours = from_transformers(str(folder))
    stem = LanguageStem(24, str(folder), layers).train()
    stem.load_pretrained()
    seen: list = []
    stem.proj.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    ids = [torch.tensor(ours.encode(text).ids) for text in TEXTS]
    together = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=1)
    mask = torch.arange(together.shape[1]) >= torch.tensor([len(one) for one in ids])[:, None]
    with torch.inference_mode():
        assert stem(together, mask).shape == (3, together.shape[1], 24)
        for row, (text, own) in enumerate(zip(TEXTS, ids, strict=True)):
            wanted = theirs(text, return_tensors="pt")
            assert len(own) == wanted["input_ids"].shape[1] - 1
            states = network(**wanted, output_hidden_states=True).hidden_states[-1 if layers is None else layers]
            expected = stem.norm(states[0, 1:])
            assert expected.std() > 0.1
            torch.testing.assert_close(seen[0][row, : len(own)], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(stem(own[None], None)[0], stem.proj(expected), rtol=1e-4, atol=1e-5)


def text_recipe(folder, root, out, **fields):
    text = {"stem": "transformers", "name": str(folder), "layers": 2, "num_positions": 32, "num_buckets": 8}
    adapters = {"text": text, "image": {"patch_size": 8, "grid": 3, "bias_grid": 3}}
    model = {**MODEL, "adapters": adapters, "projections": [*adapters]}
    run = {"batch_size": 8, "log_every": 1}
    return recipe(root, out, steps=2, model=model, run=run, freeze=["adapters.*.stem.network.*"], **fields)


def test_model_folder_needs_neither_the_encoder_nor_a_network(saved, root, tmp_path):
    folder, _, _ = saved
    out = tmp_path / "run"
    wanted = text_recipe(folder, root, out)
    assert make_plan(wanted).flops_per_step > 0
    loop.train(wanted)
    stem = LanguageStem(8, str(folder), 2)
    stem.load_pretrained()
    shutil.rmtree(folder)
    made = load(out / "model", device="cpu")
    kept = made.module.adapters["text"].stem.network.state_dict()
    assert kept.keys() == stem.network.state_dict().keys()
    assert all(torch.equal(kept[key], tensor) for key, tensor in stem.network.state_dict().items())
    alone = torch.cat([made.encode_text([text]) for text in TEXTS])
    assert made.encode_text(TEXTS).allclose(alone, atol=1e-5)
    assert (alone[0] - alone[1]).norm() > 1e-3


def test_what_cannot_be_a_text_stem_is_named(saved, root, tmp_path):
    folder, _, _ = saved
    with pytest.raises(UserError, match=r"tokenizer: leave out name, the stem .*encoder has a vocabulary of"):
        loop.train(text_recipe(folder, root, tmp_path / "run", tokenizer={"name": "clip"}))
    transformers.Wav2Vec2Config(conv_dim=[8] * 7).save_pretrained(tmp_path / "sound")
    with pytest.raises(ValueError, match=r"sound is a wav2vec2, no text encoder"):
        LanguageStem(8, str(tmp_path / "sound"))
    with pytest.raises(UserError, match=r"the tokenizer of transformers .*nothing cannot be loaded .*; check its name"):
        from_transformers(str(tmp_path / "nothing"))
