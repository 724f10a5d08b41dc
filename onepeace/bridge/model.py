"""The bridge: an embedder, transformers' Llava model, and what leads from the one to the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import onepeace.plugins.transformers as plugin
from onepeace.api import Embedder, load
from onepeace.errors import UserError, expect
from onepeace.hub.fingerprint import fingerprint
from onepeace.hub.resolve import resolve
from onepeace.model import OnePeace

from .conversations import Conversation, placeholders

IMAGE = "<image>"
"""Llava's placeholder; features of all modalities stand in its place."""
BATCH = 32
"""Media of one modality that are encoded at once."""
TEMPLATE = ("USER: {} ASSISTANT:", " {}")
"""What stands around a question and around its answer, as in LLaVA 1.5."""


class Bridge(nn.Module):
    """Llava whose projector reads token features of all modalities of an embedder.

    Args:
        embedder: frozen; its picture part is the vision tower of ``llava``.
        llava: `LlavaForConditionalGeneration`.
        processor: its `LlavaProcessor`.
    """

    def __init__(self, embedder: Embedder, llava: Any, processor: Any, template: tuple[str, str] = TEMPLATE) -> None:
        super().__init__()
        self.embedder, self.llava, self.processor, self.template = embedder, llava.eval(), processor, template
        self.keys = tuple(key for key in embedder.modalities if key != "text")
        """The modalities whose features it reads; <KEY> is the placeholder of each."""

    @classmethod
    def new(cls, name: str, language_model: str | Path, *, layer: int = -1, **options: Any) -> "Bridge":
        """A bridge with an untrained projector.

        Args:
            name: of a model with pictures, as `onepeace.load` takes it.
            language_model: folder or Hub name of a causal language model of transformers, with its tokenizer.
                Its logits have to be a product with its last hidden state, as Llava's are.
            layer: hidden state that is read, counted from the end: -1 leaves the last block, before the final norm.

        Raises:
            UserError: no pictures in the model, no such layer, a bias on the output of the language model.
        """
        import transformers
        from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

        tower = plugin.OnePeaceVisionModel.from_onepeace(name)
        if not -tower.config.num_hidden_layers <= layer <= -1:
            raise UserError(f"layer is {layer}; {name} has -{tower.config.num_hidden_layers} to -1")
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(language_model)
        words: Any = transformers.AutoModelForCausalLM.from_pretrained(language_model)
        if getattr(words.get_output_embeddings(), "bias", None) is not None:
            raise UserError(f"{language_model}: its output layer has a bias, and Llava's has none; take another model")
        tokenizer.add_tokens([IMAGE], special_tokens=True)
        if len(tokenizer) > words.get_input_embeddings().num_embeddings:
            words.resize_token_embeddings(len(tokenizer))
        config: Any = transformers.LlavaConfig(
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
            vision_config=tower.config,
            text_config=words.config,
            vision_feature_layer=layer,
        )
        config.onepeace_hash = fingerprint(resolve(name))
        with torch.device("meta"):
            llava = transformers.LlavaForConditionalGeneration(config)
        llava.model.vision_tower, llava.model.language_model = tower, words.base_model
        llava.model.multi_modal_projector = LlavaMultiModalProjector(config)
        llava.lm_head, llava.generation_config = words.get_output_embeddings(), words.generation_config
        pictures = plugin.OnePeaceImageProcessor.from_onepeace(name)
        counting: dict[str, Any] = {"patch_size": tower.config.patch_size, "num_additional_image_tokens": 1}
        counting["vision_feature_select_strategy"] = config.vision_feature_select_strategy
        processor = transformers.LlavaProcessor(pictures, tokenizer, **counting)
        return cls(load(name), llava, processor, **options)

    @classmethod
    def load(cls, folder: str | Path, name: str) -> "Bridge":
        """One that was saved; ``name`` is the encoder it was made of. UserError for another."""
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        llava, here = LlavaForConditionalGeneration.from_pretrained(folder), fingerprint(resolve(name))
        if (made := getattr(llava.config, "onepeace_hash", here)) != here:
            raise UserError(f"{folder}: made of the encoder {made}, and {name} is {here}; name the one it was made of")
        template = getattr(llava.config, "onepeace_template", TEMPLATE)
        return cls(load(name), llava, AutoProcessor.from_pretrained(folder), template)

    def save(self, folder: str | Path) -> None:
        """Write a Llava folder."""
        self.llava.config.onepeace_template = self.template
        self.llava.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    @torch.no_grad()
    def features(self, key: str, items: Sequence[Any]) -> list[Tensor]:
        """Token features (n, D) of items of one modality, without CLS, as the vision tower makes them of pictures."""
        embedder, layer = self.embedder, self.llava.config.vision_feature_layer
        backbone = expect(embedder.module, OnePeace).backbone(key, (layer,), reshape=False, norm=False)
        found: list[Tensor] = []
        for start in range(0, len(items), BATCH):
            decoded = [embedder.processors[key].decode(item) for item in items[start : start + BATCH]]
            tokens, padding_mask, *_ = backbone.forward_features(embedder.inputs(key, decoded))[0]
            kept = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if padding_mask is None else ~padding_mask
            # On the CPU, as all of a batch is until the Trainer moves it.
            found += [row[is_kept][1:].float().cpu() for row, is_kept in zip(tokens, kept, strict=True)]
        return found

    def collate(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        """Arguments of `forward`; only answers have labels, the rest is -100."""
        flat = [medium for one in conversations for medium in one.media]
        features: list[Any] = [item for _, item in flat]
        for wanted in self.keys:
            rows = [i for i, (key, item) in enumerate(flat) if key == wanted and not isinstance(item, Tensor)]
            for i, found in zip(rows, self.features(wanted, [features[i] for i in rows]), strict=True):
                features[i] = found
        lengths = iter([len(one) for one in features])
        texts = [self._tokens(one, lengths) for one in conversations]
        columns = zip(("input_ids", "labels", "attention_mask"), (0, -100, 0), zip(*texts, strict=True), strict=True)
        pad = nn.utils.rnn.pad_sequence
        batch = {name: pad([*map(torch.tensor, rows)], True, fill) for name, fill, rows in columns}
        return {**batch, "features": features}

    def _tokens(self, one: Conversation, lengths: Any) -> tuple[list[int], list[int], list[int]]:
        """Ids, labels and mask; ``lengths`` are how many features take the place of each next placeholder."""
        tokenizer, (question, answer) = self.processor.tokenizer, self.template
        ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        labels = [-100] * len(ids)
        for asked, told in one.turns:
            text = placeholders(self.keys).sub(lambda _: IMAGE * next(lengths), question.format(asked))
            ids += (new := tokenizer(text, add_special_tokens=False).input_ids)
            labels += [-100] * len(new)
            if told is not None:
                new = [*tokenizer(answer.format(told), add_special_tokens=False).input_ids, tokenizer.eos_token_id]
                ids, labels = ids + new, labels + new
        return ids, labels, [1] * len(ids)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, features: Sequence[Tensor], labels: Tensor | None = None
    ) -> Any:
        """Loss and logits, as of Llava; ``features`` are (n, D) of each medium, in the order of their placeholders."""
        media = self._projected(features)
        return self.llava(input_ids=input_ids, attention_mask=attention_mask, labels=labels, mm_encoder_outputs=media)

    def _projected(self, features: Sequence[Tensor]) -> dict[str, Any]:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        project: Any = self.llava.model.multi_modal_projector
        projected: Any = [project(one.to(project.linear_1.weight)) for one in features]
        return {"image": BaseModelOutputWithPooling(pooler_output=projected)} if projected else {}

    @torch.no_grad()
    def generate(self, text: str, *, options: dict[str, Any] | None = None, **media: Any) -> str:
        """The answer to a text with placeholders.

        Args:
            options: of transformers' ``generate``.
            media: by modality what its processor decodes, or a list of it; ``image="a.jpg"``.
        """
        batch = self.collate([Conversation.placed([(text, None)], media, self.keys)])
        ids, mask = (batch[name].to(self.llava.device) for name in ("input_ids", "attention_mask"))
        outputs = self._projected(batch["features"])
        said = self.llava.generate(input_ids=ids, attention_mask=mask, mm_encoder_outputs=outputs, **(options or {}))
        return self.processor.decode(said[0, ids.shape[1] :], skip_special_tokens=True).strip()
