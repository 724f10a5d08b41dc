"""An encoder of transformers as the audio stem: its own function, none of it depends on the batch, and a model folder
needs nothing else."""

import shutil

import pytest
import torch
import transformers
from support.training import MODEL, recipe

from onepeace.embed.embedder import load
from onepeace.model.stems.transformers import TransformersStem, network_options
from onepeace.train import loop

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
KINDS = {
    "wav2vec2": transformers.Wav2Vec2Config,
    "hubert": transformers.HubertConfig,
    "wavlm": transformers.WavLMConfig,
}


def save(folder, kind):
    """A small encoder with random weights."""
    torch.manual_seed(3)
    network = transformers.AutoModel.from_config(KINDS[kind](**SMALL)).eval()
    network.save_pretrained(folder)
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_stem_is_the_encoder_and_padding_never_changes_a_sound(tmp_path, kind):
    folder, network = tmp_path, save(tmp_path, kind)
    stem = TransformersStem(24, str(folder)).train()
    stem.load_pretrained()
    waveform, lengths = torch.randn(4, 9000), torch.tensor([4321, 9000, 6000, 4321])
    with torch.inference_mode():
        together = stem.features(waveform, lengths, 4321)
        assert stem(waveform, lengths, 4321).shape == (4, stem.token_lengths(9000), 24)
        for row, length in enumerate(lengths.tolist()):
            expected = network(waveform[row : row + 1, :length]).last_hidden_state[0]
            assert len(expected) == stem.token_lengths(length) > 0
            assert expected.std() > 0
            torch.testing.assert_close(together[row, : len(expected)], expected, rtol=1e-4, atol=1e-5)
            assert not together[row, len(expected) :].any()
    assert (stem.hop, stem.receptive_field) == (320, 400)
    assert stem.token_lengths(400) == 1


def test_model_folder_needs_neither_the_encoder_nor_a_network(root, tmp_path):
    folder = tmp_path / "encoder"
    save(folder, "wavlm")
    audio = {"stem": "transformers", "name": str(folder), "num_buckets": 8, "pos_depth": 1, "pos_groups": 4}
    adapters = {"text": {"vocab_size": 400, "num_positions": 32, "num_buckets": 8}, "audio": audio}
    model = {**MODEL, "adapters": adapters, "modalities": [*adapters], "projections": [*adapters]}
    sources = [{"shards": "tones.tar", "pair": ["audio", "text"]}]
    run = {"batch_size": 4, "workers": 0, "log_every": 1, "precision": "float32"}
    own = recipe(
        root,
        tmp_path / "run",
        steps=2,
        model=model,
        freeze=["adapters.*.stem.network.*"],
        data={"root": str(root), "train": sources, "stem_views": {"audio": 1}},
        run={**run, "out": str(tmp_path / "run")},
        processors={"text": {"max_tokens": 16}, "audio": {"min_seconds": 0.5}},
    )
    loop.train(own)
    options = network_options(str(folder))
    stem = TransformersStem(8, str(folder))
    stem.load_pretrained()
    shutil.rmtree(folder)
    made = load(tmp_path / "run" / "model", device="cpu")
    assert made.module.config.adapters["audio"]["network"] == options
    network = made.module.adapters["audio"].stem.network.state_dict()
    assert network.keys() == stem.network.state_dict().keys()
    assert all(torch.equal(network[key], tensor) for key, tensor in stem.network.state_dict().items())
    sound = (torch.randn(16000).numpy(), 16000)
    longer = (torch.randn(30000).numpy(), 16000)
    assert made.encode_audio([sound, longer])[0].allclose(made.encode_audio([sound])[0], atol=1e-5)
