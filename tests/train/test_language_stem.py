"""The first layers of a text encoder of transformers as the text stem: its own pieces, its own function, and a model
folder that needs nothing else."""

import shutil

import pytest
import torch
import transformers
from support.training import MODEL, assert_same_tensors, make_recipe
from torch.nn.utils.rnn import pad_sequence
from torch.testing import assert_close
from transformers.convert_slow_tokenizer import bytes_to_unicode

from onepeace.embed.embedder import load
from onepeace.errors import UserError
from onepeace.model.stems.transformers import LanguageStem
from onepeace.processors.tokenizer import from_transformers
from onepeace.train import trainer

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
    merges = [("r", "e"), ("re", "d"), ("Ġ", "a")]
    tokenizer = transformers.RobertaTokenizer(vocab=vocab, merges=merges)
    config = transformers.RobertaConfig(vocab_size=len(pieces), max_position_embeddings=66, pad_token_id=1, **SHAPE)
    return tokenizer, config


class Encoder:
    """A small encoder with random weights, in a folder."""

    def __init__(self, folder, make):
        torch.manual_seed(5)
        self.folder = folder
        self.tokenizer, config = make()
        self.network = transformers.AutoModel.from_config(config).eval()
        self.tokenizer.save_pretrained(folder)
        self.network.save_pretrained(folder)

    def stem(self, dim, layers):
        stem = LanguageStem(dim, str(self.folder), layers)
        stem.load_pretrained()
        return stem

    def states(self, text, layer):
        """The hidden states of a layer for each token after the first."""
        inputs = self.tokenizer(text, return_tensors="pt")
        return self.network(**inputs, output_hidden_states=True).hidden_states[layer][0, 1:]


@pytest.fixture(params=[bert, roberta], ids=lambda make: make.__name__)
def encoder(request, tmp_path):
    return Encoder(tmp_path / "encoder", request.param)


@torch.inference_mode()
@pytest.mark.parametrize("layers", [1, None])
def test_language_stem_is_encoder_in_any_batch(encoder, layers):
    tokenizer = from_transformers(str(encoder.folder))
    stem = encoder.stem(24, layers).train()
    ids = [torch.tensor(tokenizer.encode(text).ids) for text in TEXTS]
    padded = pad_sequence(ids, batch_first=True, padding_value=1)
    lengths = torch.tensor([len(text_ids) for text_ids in ids])
    is_padding = torch.arange(padded.shape[1]) >= lengths[:, None]

    together = stem(padded, is_padding)

    assert together.shape == (3, padded.shape[1], 24)
    for row, text in enumerate(TEXTS):
        states = stem.norm(encoder.states(text, -1 if layers is None else layers))
        assert states.std() > 0.1
        expected = stem.proj(states)
        count = lengths[row]
        assert len(expected) == count
        (alone,) = stem(ids[row][None], None)
        assert_close(alone, expected, rtol=1e-4, atol=1e-5)
        assert_close(together[row, :count], expected, rtol=1e-4, atol=1e-5)


def text_recipe(encoder, root, out, **fields):
    name = str(encoder.folder)
    text = {"stem": "transformers", "name": name, "layers": 2, "num_positions": 32, "num_buckets": 8}
    return make_recipe(
        root,
        out,
        steps=2,
        model={**MODEL, "adapters": {**MODEL["adapters"], "text": text}},
        run={"batch_size": 8, "log_every": 1},
        freeze=["adapters.*.stem.network.*"],
        **fields,
    )


def test_model_folder_needs_no_encoder(encoder, root, tmp_path):
    folder = trainer.train(text_recipe(encoder, root, tmp_path / "run"))
    stem = encoder.stem(8, layers=2)
    shutil.rmtree(encoder.folder)

    model = load(folder, device="cpu")

    stem_in_model = model.module.adapters["text"].stem
    assert_same_tensors(stem_in_model.network.state_dict(), stem.network.state_dict())
    alone = torch.cat([model.encode_text([text]) for text in TEXTS])
    assert model.encode_text(TEXTS).allclose(alone, atol=1e-5)
    assert (alone[0] - alone[1]).norm() > 1e-3


def test_tokenizer_beside_that_of_encoder(encoder, root, tmp_path):
    with pytest.raises(UserError, match="tokenizer: leave out name"):
        trainer.train(text_recipe(encoder, root, tmp_path / "run", tokenizer={"name": "clip"}))


def test_encoder_of_sound_is_no_text_stem(tmp_path):
    transformers.Wav2Vec2Config(conv_dim=[8] * 7).save_pretrained(tmp_path)

    with pytest.raises(ValueError, match="wav2vec2"):
        LanguageStem(8, str(tmp_path))
