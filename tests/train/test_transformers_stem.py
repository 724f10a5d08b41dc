"""An encoder of transformers as the audio stem: its own function, none of it depends on the batch, and a model folder
needs nothing else."""

import shutil

import pytest
import torch
import transformers
from support.training import MODEL, assert_same_tensors, make_recipe

from onepeace.embed.embedder import load
from onepeace.model.stems.transformers import TransformersStem, network_options
from onepeace.train import trainer

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
CONFIGS = {
    "wav2vec2": transformers.Wav2Vec2Config,
    "hubert": transformers.HubertConfig,
    "wavlm": transformers.WavLMConfig,
}


def save_encoder(folder, architecture):
    """A small one with random weights."""
    torch.manual_seed(3)
    network = transformers.AutoModel.from_config(CONFIGS[architecture](**SMALL)).eval()
    network.save_pretrained(folder)
    return network


@torch.inference_mode()
@pytest.mark.parametrize("architecture", CONFIGS)
def test_audio_stem_is_encoder_in_any_batch(tmp_path, architecture):
    network = save_encoder(tmp_path, architecture)
    stem = TransformersStem(24, str(tmp_path)).train()
    stem.load_pretrained()
    waveform = torch.randn(4, 9000)
    lengths = torch.tensor([4321, 9000, 6000, 4321])

    together = stem.features(waveform, lengths, 4321)

    assert stem(waveform, lengths, 4321).shape == (4, stem.token_lengths(9000), 24)
    for row, length in enumerate(lengths.tolist()):
        expected = network(waveform[row : row + 1, :length]).last_hidden_state[0]
        count = stem.token_lengths(length)
        assert len(expected) == count > 0
        assert expected.std() > 0
        torch.testing.assert_close(together[row, :count], expected, rtol=1e-4, atol=1e-5)
        assert not together[row, count:].any()


def test_model_folder_needs_no_audio_encoder(root, tmp_path):
    encoder = tmp_path / "encoder"
    save_encoder(encoder, "wavlm")
    stem_options = {"stem": "transformers", "name": str(encoder), "num_buckets": 8, "pos_depth": 1, "pos_groups": 4}
    recipe = make_recipe(
        root,
        tmp_path / "run",
        steps=1,
        pair="audio",
        model={
            **MODEL,
            "modalities": ["text", "audio"],
            "adapters": {"text": MODEL["adapters"]["text"], "audio": stem_options},
        },
        data={"stem_views": {"audio": 1}},
        freeze=["adapters.*.stem.network.*"],
    )
    folder = trainer.train(recipe)
    options = network_options(str(encoder))
    stem = TransformersStem(8, str(encoder))
    stem.load_pretrained()
    shutil.rmtree(encoder)

    model = load(folder, device="cpu")

    assert model.module.config.adapters["audio"]["network"] == options
    stem_in_model = model.module.adapters["audio"].stem
    assert_same_tensors(stem_in_model.network.state_dict(), stem.network.state_dict())
    sound = (torch.randn(16000).numpy(), 16000)
    longer = (torch.randn(30000).numpy(), 16000)
    (alone,) = model.encode_audio([sound])
    among_others, _ = model.encode_audio([sound, longer])
    assert among_others.allclose(alone, atol=1e-5)
