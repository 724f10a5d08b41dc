"""Tokenizer of transformers with the ids of our `TextProcessor`."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerFast

from onepeace.errors import UserError
from onepeace.hub.folder import TOKENIZER, read_config
from onepeace.hub.resolve import resolve
from onepeace.processors import TextProcessor
from onepeace.processors.tokenizer import BOS, EOS, PAD, SPECIALS, UNK, TextPieces

SETTINGS = ("lower", "clean", "prefix_space")


class OnePeaceTokenizer(PreTrainedTokenizerFast):
    """Tokenizer that cleans a text as our processor does and ends it with </s>.

    Texts are truncated at the model's length unless ``truncation=False`` is given; "</s>" in a text is plain text.
    Offsets refer to the cleaned text.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    @classmethod
    def from_onepeace(cls, name: str = "tiny") -> "OnePeaceTokenizer":
        """Tokenizer of a model by name, see `onepeace.load`."""
        folder = resolve(name)
        processor: Any = TextProcessor.from_config(read_config(folder).processors.get("text", {}), folder)
        settings = processor.settings
        max_tokens = settings.pop("max_tokens")
        if max_tokens is not None:
            settings["model_max_length"] = max_tokens + 1
        return cls(
            tokenizer_object=processor.tokenizer,
            bos_token=SPECIALS[BOS],
            pad_token=SPECIALS[PAD],
            eos_token=SPECIALS[EOS],
            unk_token=SPECIALS[UNK],
            split_special_tokens=True,
            **settings,
        )

    @cached_property
    def _pieces(self) -> TextPieces:
        settings = {name: self.init_kwargs[name] for name in SETTINGS if name in self.init_kwargs}
        return TextPieces(self.backend_tokenizer, max_tokens=None, **settings)

    def _encode_plus(  # type: ignore[override]
        self, text: Any, text_pair: Any = None, **kwargs: Any
    ) -> BatchEncoding:
        is_batch = isinstance(text, list | tuple)
        texts = text if is_batch else [text]
        are_texts = all(isinstance(item, str) for item in texts)
        if not are_texts or text_pair is not None or kwargs.get("is_split_into_words"):
            raise UserError("this tokenizer takes a text or a list of texts, not pairs or pre-split words")
        space = " " if self._pieces.prefix_space else ""
        prepared = [space + self._pieces.prepare(item) for item in texts]
        return super()._encode_plus(prepared if is_batch else prepared[0], **kwargs)

    def _get_padding_truncation_strategies(  # type: ignore[override]
        self, padding: Any = False, truncation: Any = None, **kwargs: Any
    ) -> Any:
        if truncation is None:
            truncation = True
        return super()._get_padding_truncation_strategies(padding=padding, truncation=truncation, **kwargs)

    def _save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        files = super()._save_pretrained(*args, **kwargs)
        # In a model folder the four special tokens are plain text, and the settings of the last call are not kept.
        path = next(Path(file) for file in files if file.endswith(TOKENIZER))
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**content, "added_tokens": [], "truncation": None, "padding": None}), "utf-8")
        return files
