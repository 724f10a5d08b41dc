"""One model of another library, loaded and fed by the library's own code."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from onepeace.errors import UserError, need, one_line, reason_at
from onepeace.hub.download import is_hub_reachable

if TYPE_CHECKING:
    from PIL import Image


class Tower(nn.Module):
    """A model of another library, with what the library does to a picture, a sound or a text before.

    Args:
        name: its name in the library.

    Attributes:
        modalities: what it reads.
        logit_scale: scale from cosines to logits; None if it has none.
        sample_rate, max_seconds: of the sounds that it reads.
    """

    modalities: tuple[str, ...]
    logit_scale: float | None = None
    sample_rate: int
    max_seconds: float

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def read_picture(self, picture: "Image.Image") -> Tensor:
        """(3, height, width) float32 of an RGB picture."""
        raise NotImplementedError

    def read_sound(self, samples: Tensor) -> Tensor:
        """Features of (n,) float32 samples of at most `max_seconds`."""
        raise NotImplementedError

    def embed(self, modality: str, items: Any) -> Tensor:
        """(B, E) vectors of items of a modality; see the methods below."""
        methods: dict[str, Callable[[Any], Tensor]] = {
            "text": self.embed_texts,
            "image": self.embed_pictures,
            "audio": self.embed_sounds,
        }
        return methods[modality](items)

    def embed_texts(self, texts: list[str]) -> Tensor:
        """(B, E) vectors of any length."""
        raise NotImplementedError

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        """(B, E) vectors of what `read_picture` returns, stacked."""
        raise NotImplementedError

    def embed_sounds(self, features: Tensor) -> Tensor:
        """(B, E) vectors of what `read_sound` returns, stacked."""
        raise NotImplementedError


class OpenClip(Tower):
    """A model of open_clip: "ViT-B-16/openai", "hf-hub:OWNER/NAME" or "local-dir:FOLDER"."""

    modalities = ("text", "image")

    def __init__(self, name: str) -> None:
        super().__init__()
        import open_clip

        model_name, weights = name, None
        if not name.startswith(("hf-hub:", "local-dir:")):
            model_name, _, weights = name.rpartition("/") if "/" in name else (name, "", "")
            weight_names = open_clip.list_pretrained_tags_by_model(model_name.replace("/", "-"))
            if weights not in weight_names:
                raise UserError(_no_weights(model_name, weight_names))
        model, _, self.transform = open_clip.create_model_and_transforms(
            model_name, pretrained=weights, require_pretrained=True
        )
        self.model = model
        self.tokenizer = open_clip.get_tokenizer(model_name)
        self.logit_scale = model.logit_scale.exp().item()

    def read_picture(self, picture: "Image.Image") -> Tensor:
        return self.transform(picture)

    def embed_texts(self, texts: list[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(texts).to(self.device))

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)


def _no_weights(model_name: str, weight_names: list[str]) -> str:
    if weight_names:
        return f"give the name of its weights too, {model_name}/WEIGHTS; there are {', '.join(weight_names)}"
    return f"open_clip has no weights of {model_name}; see open_clip.list_pretrained(), or give hf-hub:OWNER/NAME"


class Transformers(Tower):
    """A model of transformers with `get_text_features` and those of pictures or sounds (CLIP, SigLIP, CLAP)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        from transformers import AutoModel, AutoProcessor

        repository, revision = _with_revision(name)
        model, loading = AutoModel.from_pretrained(repository, revision=revision, output_loading_info=True)
        missing = sorted(loading["missing_keys"])
        if missing:  # the library gives them random numbers
            raise UserError(f"its files lack {len(missing)} of its weights, such as {missing[0]}")
        self.model: Any = model
        self.processor: Any = AutoProcessor.from_pretrained(repository, revision=revision)
        methods = {"text": "get_text_features", "image": "get_image_features", "audio": "get_audio_features"}
        self.modalities = tuple(key for key, method in methods.items() if hasattr(self.model, method))
        if len(self.modalities) < 2:
            raise UserError("it does not compare texts with pictures or sounds; such models are CLIP, SigLIP and CLAP")
        if "image" in self.modalities and len(self.processor.image_processor.model_input_names) > 1:
            raise UserError("it reads pictures of several sizes (NaFlex); take one of a fixed size")
        scale = getattr(self.model, "logit_scale_a" if "audio" in self.modalities else "logit_scale")
        self.logit_scale = scale.exp().item()
        if "audio" in self.modalities:
            extractor = self.processor.feature_extractor
            self.sample_rate = extractor.sampling_rate
            self.max_seconds = extractor.nb_max_samples / extractor.sampling_rate

    def read_picture(self, picture: "Image.Image") -> Tensor:
        return self.processor.image_processor(images=[picture], return_tensors="pt")["pixel_values"][0]

    def read_sound(self, samples: Tensor) -> Tensor:
        extractor = self.processor.feature_extractor
        inputs = extractor(samples.numpy(), sampling_rate=self.sample_rate, return_tensors="pt")
        return inputs["input_features"][0].float()

    def embed_texts(self, texts: list[str]) -> Tensor:
        # As the pipelines of the library do: SigLIP was trained on texts padded to its limit.
        padding: dict[str, Any] = {"padding": True}
        if "siglip" in self.model.config.model_type:
            limit = self.model.config.text_config.max_position_embeddings
            padding = {"padding": "max_length", "max_length": limit}
        tokens = self.processor.tokenizer(texts, truncation=True, return_tensors="pt", **padding)
        return self.model.get_text_features(**tokens.to(self.device)).pooler_output

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def embed_sounds(self, features: Tensor) -> Tensor:
        # The library calls one sound of a batch longer than the limit at random; none is, as they are cut.
        is_longer = torch.zeros(len(features), 1, dtype=torch.bool, device=self.device)
        return self.model.get_audio_features(input_features=features, is_longer=is_longer).pooler_output


class SentenceTransformers(Tower):
    """A model of sentence-transformers, for texts: its name on the Hub, or a folder."""

    modalities = ("text",)

    def __init__(self, name: str) -> None:
        super().__init__()
        library: Any = need("sentence_transformers", "sbert", name)
        repository, revision = _with_revision(name)
        self.model = library.SentenceTransformer(repository, revision=revision, device="cpu")

    def embed_texts(self, texts: list[str]) -> Tensor:
        return self.model.encode(texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)


def _with_revision(name: str) -> tuple[str, str | None]:
    """A name on the Hub, and the branch, tag or commit after its "@"; a folder as it is."""
    repository, _, revision = name.partition("@")
    return (name, None) if os.path.isdir(name) or not revision else (repository, revision)


KINDS: dict[str, Callable[[str], Tower]] = {
    "open_clip": OpenClip,
    "clap": Transformers,
    "transformers": Transformers,
    "sentence-transformers": SentenceTransformers,
}


def open_tower(name: str) -> Tower:
    """Load a tower, on the CPU and in the precision of its files, from the cache of the Hugging Face Hub if it is
    there, else from the network.

    Args:
        name: with its library, as from `onepeace.hub.towers.config.tower_names`.

    Raises:
        UserError: no such model, no network, a missing package; the message begins with `name`.
    """
    library, _, name_there = name.partition(":")
    make = KINDS[library]
    try:
        try:
            with from_cache():
                return make(name_there).eval()
        except UserError:
            raise
        except Exception as error:  # the libraries raise many types
            if not is_hub_reachable():
                raise UserError(
                    f"cannot be loaded from this machine ({one_line(error):.200}), and the Hugging Face "
                    "Hub cannot be reached; check the name, or fetch it where there is a network and copy the cache "
                    "(~/.cache/huggingface)",
                    where=name_there,
                ) from error
        return make(name_there).eval()
    except UserError as error:
        raise UserError(reason_at(name_there, error), where=name) from error
    except Exception as error:
        raise UserError(f"cannot be loaded ({one_line(error):.200}); check the name", where=name) from error


@contextmanager
def from_cache() -> Iterator[None]:
    """Context in which the Hub's files are read from its cache, without progress bars.

    Without it, each file of a model is first asked for on the network, which takes seconds if there is no network. What
    open_clip logs about files that are not in the cache is dropped: they are downloaded next.
    """
    from huggingface_hub import constants
    from transformers.utils import logging as bars

    was_offline = constants.HF_HUB_OFFLINE
    had_bars = bars.is_progress_bar_enabled()
    root = logging.getLogger()
    constants.HF_HUB_OFFLINE = True
    bars.disable_progress_bar()
    root.addFilter(_is_silent)
    try:
        yield
    finally:
        root.removeFilter(_is_silent)
        constants.HF_HUB_OFFLINE = was_offline
        if had_bars:
            bars.enable_progress_bar()


def _is_silent(record: logging.LogRecord) -> bool:
    """Filter of records logged to the root logger itself, as open_clip does: none is shown."""
    return False
