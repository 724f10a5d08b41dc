"""Original OFA checkpoints, in the layouts of their releases, become model folders."""

import json
import string

import pytest
import torch
from support.golden_ofa import FOLDER, OUTPUT, SIZES, assert_near, golden
from support.hub_layouts import small_vocabulary, wrapper

from onepeace.errors import UserError
from onepeace.generative.config import OFA_SIZES, OFAConfig
from onepeace.generative.convert import infer_config, to_ours
from onepeace.generative.model import OFA
from onepeace.hub import weights
from onepeace.hub.folder import read_config
from onepeace.hub.tensors import expected
from onepeace.hub.weights import convert

NAMES = json.loads((FOLDER / "names.json").read_text())
MODEL_SETTINGS = {
    "_name": "ofa",
    "arch": "ofa_base",
    "disable_entangle": True,
    "no_scale_embedding": True,
    "attn_scale_factor": 2.0,
    "resnet_type": "resnet18",
}
TASK_SETTINGS = {
    "_name": "caption",
    "code_dict_size": 32,
    "num_bins": 40,
    "patch_image_size": 480,
}


def released():
    """The golden weights under the names of the original, with the copies and index tables that it stores too."""
    tensors = dict(golden("weights"))
    for name, (shape, dtype) in NAMES["golden_buffers"].items():
        if name.endswith(("embed_tokens.weight", "output_projection.weight")):
            tensors[name] = tensors["encoder.embed_tokens.weight"]
        elif name.endswith("_rp_bucket"):  # as large as the model otherwise
            tensors[name] = torch.zeros(2, 2, dtype=getattr(torch, dtype))
        else:
            tensors[name] = torch.zeros(shape, dtype=getattr(torch, dtype))
    return tensors


@pytest.fixture
def bpe(tmp_path):
    """64 pieces, the letters of "<pad>" among them."""
    folder = small_vocabulary(tmp_path / "bpe", 64)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *"<>/?.,", "\u0120", *string.ascii_letters, "!"]
    ids = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    return folder


@pytest.fixture
def convert_ofa(tmp_path, bpe):
    """Converts tensors in a trainer's file."""

    def run(tensors, ema=None, **model_settings):
        cfg = {"model": {**MODEL_SETTINGS, **model_settings}, "task": TASK_SETTINGS}
        content = wrapper(tensors, cfg)
        if ema is not None:
            content["extra_state"]["ema"] = ema
        torch.save(content, tmp_path / "caption.pt")
        return convert(tmp_path / "caption.pt", tmp_path / "ofa", bpe=bpe)

    return run


@pytest.fixture
def folder(convert_ofa):
    return convert_ofa(released())


@torch.no_grad()
def assert_writes_as_the_original(folder):
    case = golden("caption")
    model = weights.load(folder)
    assert isinstance(model, OFA)
    logits = model(case["ids"], case["written"], case["pixels"])
    assert_near(logits, case["out.logits"], OUTPUT, case["written"] != 1)


def test_file_of_fairseq_writes_as_the_original(folder):
    config = read_config(folder)
    assert config.architecture == "ofa"
    assert config.model == OFAConfig(**SIZES)
    halves = [0.5] * 3
    assert config.processors["image"] == {"size": 480, "mean": halves, "std": halves}
    assert_writes_as_the_original(folder)
    assert "authors of OFA" in (folder / "MODEL_CARD.md").read_text()


def test_moving_average_of_the_weights_is_preferred(convert_ofa):
    tensors = {name: torch.zeros_like(tensor) for name, tensor in released().items()}

    folder = convert_ofa(tensors, ema=released())

    assert_writes_as_the_original(folder)
    assert "moving average" in (folder / "MODEL_CARD.md").read_text()


def test_names_of_the_released_base_model(tmp_path):
    shapes = {}
    for theirs, shape in NAMES["fairseq_base"].items():
        ours = to_ours(theirs)
        if ours:
            shapes[ours] = tuple(shape)

    config = infer_config(tmp_path, shapes, {})

    assert config.model == OFAConfig(**OFA_SIZES["base"])
    assert expected(config) == shapes


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("decoder.layers.1.cross_attn_ln.bias", None, r"lack 1 of .*decoder\.blocks\.1\.cross_attn_norm"),
        ("encoder.layers.0.w_resid", torch.ones(32), r"1 of \d+ tensors have no place here"),
        ("encoder.embed_tokens.weight", None, r"lacks decoder\.token_embed\.weight"),
    ],
)
def test_misplaced_tensor_is_named(convert_ofa, tmp_path, name, tensor, words):
    tensors = released()
    tensors[name] = tensor
    if tensor is None:
        del tensors[name]

    with pytest.raises(UserError, match=words):
        convert_ofa(tensors)

    assert not (tmp_path / "ofa").exists()


@pytest.mark.parametrize(
    ("switch", "value"),
    [("disable_entangle", False), ("attn_scale_factor", 1)],
)
def test_other_computation_is_refused(convert_ofa, switch, value):
    with pytest.raises(UserError, match=f"{switch} {value}"):
        convert_ofa(released(), **{switch: value})
