"""Small models of other libraries with random weights, saved as their authors save trained ones."""

import json

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = "a an the low high deep red green blue square tone of and dog barks far away".split()
SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
WIDTH = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SOUND_RATE = 8000
"""Of CLAP below, which reads one second."""


def tokenizer(**options):
    """One token a word, with RoBERTa's special tokens."""
    ids = {word: number for number, word in enumerate([*SPECIAL.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL, **options)


def text_config(positions):
    return {
        **WIDTH,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "vocab_size": len(SPECIAL) + len(WORDS),
        "max_position_embeddings": positions,
    }


VISION_CONFIG = {**WIDTH, "image_size": 32, "patch_size": 16}


def image_processor(cls=transformers.CLIPImageProcessor):
    return cls(size={"height": 32, "width": 32}, do_center_crop=False)


def enlarge(model):
    """Make larger differences between items than random weights make."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()


def save(folder, model, *preprocessing):
    for part in (enlarge(model), *preprocessing):
        part.save_pretrained(folder)
    return model


def clip(folder):
    config = transformers.CLIPConfig(text_config=text_config(12), vision_config=VISION_CONFIG, projection_dim=8)
    return save(folder, transformers.CLIPModel(config), tokenizer(model_max_length=12), image_processor())


def siglip(folder):
    config = transformers.SiglipConfig(text_config=text_config(12), vision_config=VISION_CONFIG)
    processor = image_processor(transformers.SiglipImageProcessor)
    return save(folder, transformers.SiglipModel(config), tokenizer(model_max_length=12), processor)


def clap(folder):
    act = {"projection_hidden_act": "tanh"}  # random weights before a ReLU may give nothing but zeros
    audio_config = {
        "num_mel_bins": 16,
        "spec_size": 64,
        "window_size": 4,
        "patch_size": 2,
        "patch_stride": [2, 2],
        "hidden_size": 16,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        **act,
    }
    config = transformers.ClapConfig(
        text_config={**text_config(14), **act},
        audio_config=audio_config,
        projection_dim=8,
    )
    extractor = transformers.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=SOUND_RATE,
        hop_length=80,
        max_length_s=1,
        fft_window_size=256,
        frequency_max=3500,
        truncation="rand_trunc",
    )
    return save(folder, transformers.ClapModel(config), tokenizer(model_max_length=12), extractor)


def bert(folder):
    config = transformers.BertConfig(**text_config(20))
    return save(folder, transformers.BertModel(config), tokenizer(model_max_length=20))


def resnet(folder):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 384}, crop_pct=1.0)
    return save(folder, transformers.ResNetModel(config), processor)


def open_clip(folder):
    """A CLIP of open_clip, as `local-dir:` reads it, with a resize to the shorter side and a crop."""
    import open_clip as library
    from safetensors.torch import save_file

    config = {
        "embed_dim": 8,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 16,
            "head_width": 8,
            "patch_size": 16,
        },
        "text_cfg": {
            "context_length": 12,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 2,
        },
    }
    model = enlarge(library.CLIP(**config))
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model
