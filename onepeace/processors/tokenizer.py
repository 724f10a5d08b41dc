"""Text vocabularies: five ways to create one, one format to store it.

Every model folder contains a `tokenizer.json` of the `tokenizers` package. Regardless of its source, its ids are
`<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, then the pieces; it appends `</s>` and prepends nothing. The four names are
entries of the vocabulary but not special tokens of the tokenizer, so the characters "<s>" in a caption are tokenised
like any others. `TextPieces` does the lower-casing, the prefix space and the length limit.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.errors import UserError, one_line
from onepeace.special_ids import BOS, EOS, PAD, UNK

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
ORIGINAL_FILES = ("encoder.json", "vocab.bpe", "dict.txt")
BART_FILES = ("vocab.json", "merges.txt")
FIRST_PRIVATE = 0xF0000
"""First character of Unicode's planes for private use, which have 131,000."""
# CLIP's rule: no space in front of a word, every digit alone. White space itself is dropped.
CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train_bpe(captions: Iterable[str], vocab_size: int) -> "Tokenizer":
    """Train byte-level BPE on captions, cleaned as the processor cleans them (lower case, with a prefix space).

    The result depends on how often words occur, not on the order of the captions. `vocab_size` includes the 4 specials
    and the 256 bytes; the vocabulary is smaller if the captions have nothing left to merge.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    smallest = len(SPECIALS) + 256
    if vocab_size < smallest:
        raise UserError(f"vocab_size {vocab_size} is too small: {len(SPECIALS)} specials and 256 bytes need {smallest}")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator((f" {clean_text(caption)}" for caption in captions), trainer)
    model = json.loads(trained.to_str())["model"]
    return _byte_level(model["vocab"], [tuple(pair) for pair in model["merges"]])


def extend_bpe(tokenizer: "Tokenizer", captions: Iterable[str], vocab_size: int) -> "Tokenizer":
    """Add pieces learned on captions, such as those of other languages, to a byte-level BPE.

    All pieces keep their ids, and new merges come after the old ones, so a text without a new piece has the same ids as
    before. Texts are also brought into one form of Unicode (NFKC). `vocab_size` includes the old pieces; the
    vocabulary is smaller if the captions have nothing left to merge.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    content = json.loads(tokenizer.to_str())
    vocab, merges = content["model"]["vocab"], content["model"]["merges"]
    if vocab_size < len(vocab):
        raise UserError(f"vocab_size {vocab_size} is less than the {len(vocab)} pieces that are to be extended")
    # A Turkish capital, of which lower() makes an i with a dot above that no composed letter stands for.
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("i\u0307", "i")])
    words: Counter[str] = Counter()
    for caption in captions:
        text = normalizer.normalize_str(f" {clean_text(caption)}")
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    # The trainer merges characters: every old piece is one, of the planes for private use.
    coded: Counter[str] = Counter()
    for word, count in words.items():
        coded["".join(chr(FIRST_PRIVATE + token.id) for token in tokenizer.model.tokenize(word))] += count
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=[chr(FIRST_PRIVATE + index) for index in range(len(SPECIALS), len(vocab))],
        show_progress=False,
    )
    trained.train_from_iterator(coded.elements(), trainer)
    pieces = {index: piece for piece, index in vocab.items()}
    for pair in json.loads(trained.to_str())["model"]["merges"]:
        old_pair = ["".join(pieces[ord(character) - FIRST_PRIVATE] for character in part) for part in pair]
        merged = "".join(old_pair)
        if merged not in vocab and len(vocab) == vocab_size:
            break
        vocab.setdefault(merged, len(vocab))
        merges.append(old_pair)
    content["normalizer"] = json.loads(normalizer.__getstate__())
    return Tokenizer.from_str(json.dumps(content))


def from_released(folder: str | Path) -> "Tokenizer":
    """The vocabulary of the released models (50,264 ids), from one of two sets of files:

    `encoder.json`, `vocab.bpe`, `dict.txt` of the original repository, where id = 4 + line number in dict.txt, or
    `vocab.json`, `merges.txt` of facebook/bart-base, whose ids are already in that order (its `<mask>` is dropped).
    """
    folder = Path(folder)
    if _has(folder, ORIGINAL_FILES):
        vocab = _original_vocabulary(folder)
        merges = _read_merges(folder / "vocab.bpe")
    elif _has(folder, BART_FILES):
        vocab = _read_json(folder / "vocab.json")
        vocab.pop("<mask>", None)
        merges = _read_merges(folder / "merges.txt")
    else:
        raise UserError(
            "no vocabulary found; it needs encoder.json, vocab.bpe and dict.txt (original repository) "
            "or vocab.json and merges.txt (facebook/bart-base)",
            where=folder,
        )
    _check(vocab, merges, folder)
    return _byte_level(vocab, merges)


def _has(folder: Path, names: Iterable[str]) -> bool:
    return all((folder / name).is_file() for name in names)


def _original_vocabulary(folder: Path) -> dict[str, int]:
    """Ids by piece; the file dict.txt names a piece by its number in encoder.json."""
    piece_by_number = {str(number): piece for piece, number in _read_json(folder / "encoder.json").items()}
    pieces = [*SPECIALS]
    for line in (folder / "dict.txt").read_text(encoding="utf-8").splitlines():
        if line:
            number = line.split()[0]
            # The last rows of dict.txt ("madeupword0000") are not BPE pieces; they pad the table to a round size.
            pieces.append(piece_by_number.get(number, number))
    return {piece: index for index, piece in enumerate(pieces)}


def _check(vocab: dict[str, int], merges: list[tuple[str, str]], folder: Path) -> None:
    """UserError if these are files of another model, or do not belong together."""
    has_gaps = sorted(vocab.values()) != list(range(len(vocab)))
    special_ids = [vocab.get(special) for special in SPECIALS]
    if has_gaps or special_ids != [BOS, PAD, EOS, UNK]:
        raise UserError(
            f"ids must be 0..{len(vocab) - 1} without gaps and begin with {' '.join(SPECIALS)}; "
            "these are files of another model",
            where=folder,
        )
    missing = [pair for pair in merges if "".join(pair) not in vocab]
    if missing:
        raise UserError(f"{len(missing)} of {len(merges)} merges make no known piece; files do not match", where=folder)


def from_open_clip() -> "Tokenizer":
    """CLIP's BPE as open_clip ships it (49,406 pieces; its two own specials are replaced by our four)."""
    from open_clip.tokenizer import SimpleTokenizer
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    clip = SimpleTokenizer()
    pieces = [*SPECIALS]
    for piece, index in sorted(clip.encoder.items(), key=itemgetter(1)):
        if index < clip.sot_token_id:
            pieces.append(piece)
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = sorted(clip.bpe_ranks, key=clip.bpe_ranks.__getitem__)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=SPECIALS[UNK], end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.BPEDecoder()
    return _append_eos(tokenizer)


def from_transformers(name: str) -> "Tokenizer":
    """The vocabulary of a text encoder of transformers: its start, padding, end and unknown tokens become our four
    specials, and its other ids follow in order. Its further special tokens, such as "[MASK]", are never produced.

    Args:
        name: a repository on the Hub, or a folder.

    Raises:
        UserError: it cannot be loaded, has no fast tokenizer, or lacks one of the four.
    """
    import transformers
    from tokenizers import Tokenizer

    try:
        theirs = transformers.AutoTokenizer.from_pretrained(name)
        content = json.loads(theirs.backend_tokenizer.to_str())
    except Exception as error:  # a wrong name, no network, a slow tokenizer: many types
        raise UserError(
            f"the tokenizer of transformers {name} cannot be loaded ({one_line(error):.200}); check its name and the "
            "network, or give a folder with its files"
        ) from error
    specials = [theirs.cls_token, theirs.pad_token, theirs.sep_token, theirs.unk_token]
    old_ids = theirs.get_vocab()
    if any(token not in old_ids for token in specials):
        raise UserError(
            f"the tokenizer of transformers {name} has the start, padding, end and unknown tokens {specials}; a text "
            "encoder needs all four"
        )
    new_ids = _new_ids(old_ids, [old_ids[token] for token in specials])
    added = {token["content"] for token in content["added_tokens"]}
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = _renumbered(model["vocab"], new_ids, added)
        model["unk_token"] = SPECIALS[UNK]
    else:
        model["vocab"] = _reordered(model["vocab"], new_ids, added)
        model["unk_id"] = UNK
    content.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    return _append_eos(Tokenizer.from_str(json.dumps(content)))


def _new_ids(old_ids: Mapping[str, int], first: Sequence[int]) -> dict[int, int]:
    """New ids by old ones: those of our specials first, then the others in order."""
    num_ids = max(old_ids.values()) + 1
    other_ids = [old for old in range(num_ids) if old not in first]
    return {old: new for new, old in enumerate([*first, *other_ids])}


def _renumbered(vocab: Mapping[str, int], new_ids: Mapping[int, int], added: Container[str]) -> dict[str, int]:
    """A vocabulary by piece, with our specials in place of its own."""
    pieces = {piece: new_ids[old] for piece, old in vocab.items() if piece not in added}
    specials = {piece: index for index, piece in enumerate(SPECIALS)}
    return {**specials, **pieces}


def _reordered(
    vocab: Sequence[tuple[str, float]], new_ids: Mapping[int, int], added: Container[str]
) -> list[tuple[str, float]]:
    """A vocabulary of Unigram, pieces with their scores in the order of their ids, with our specials first."""
    never = min(score for _, score in vocab) - 100  # the characters "<pad>" in a text are not special
    rows = {}
    for old, (piece, score) in enumerate(vocab):
        rows[new_ids[old]] = (piece, never if piece in added else score)
    for index, piece in enumerate(SPECIALS):
        rows[index] = (piece, never)
    return [rows[index] for index in sorted(rows)]


def read_tokenizer(path: str | Path) -> "Tokenizer":
    """Open a `tokenizer.json` and check that it is as this module describes; a `UserError` names the file."""
    from tokenizers import Tokenizer

    path = Path(path)
    if not path.is_file():
        raise UserError("no such file; a model that reads text has a tokenizer.json in its folder", where=path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"not a tokenizer file ({error})", where=path) from error
    ids = [tokenizer.token_to_id(special) for special in SPECIALS]
    if ids != [BOS, PAD, EOS, UNK]:
        raise UserError(f"{', '.join(SPECIALS)} have the ids {ids}, expected [0, 1, 2, 3]", where=path)
    # One probe checks both: only one eos is added, at the end; literal specials are ordinary text.
    probe = tokenizer.encode("<pad>").ids
    if probe[-1:] != [EOS] or len(probe) < 2 or min(probe[:-1]) <= UNK:
        raise UserError(
            f"must append </s> alone and read a literal '<pad>' as text, but gives the ids {probe}", where=path
        )
    return tokenizer


def _byte_level(vocab: dict[str, int], merges: list[tuple[str, str]]) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=SPECIALS[UNK]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _append_eos(tokenizer)


def _append_eos(tokenizer: "Tokenizer") -> "Tokenizer":
    from tokenizers import processors

    eos = SPECIALS[EOS]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, EOS)])
    return tokenizer


def _read_json(path: Path) -> dict[str, int]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not a JSON file ({error})", where=path) from error


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """Lines of two pieces, best first, after a "#version" line."""
    merges = []
    # split("\n"), not splitlines(): pieces may contain characters that Python treats as line ends.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise UserError(f"{path}:{number}: a merge has two pieces, this line has {len(parts)}")
        merges.append((parts[0], parts[1]))
    return merges


logger = logging.getLogger(__name__)

LEADING = ",.!?*#:;~"
SPACES = re.compile(r"\s{2,}|\t")
# Only the beginning of a huge text is tokenised; tokens of known vocabularies are less than half as long.
MAX_CHARS_PER_TOKEN = 256
# Lone surrogates: Python strings may contain them, UTF-8 may not.
SURROGATES = re.compile("[\ud800-\udfff]")


def clean_text(text: str, lower: bool = True) -> str:
    """Clean a text by the original's rule: lower case, no leading punctuation, runs of white space as one space."""
    text = text.lower() if lower else text
    return SPACES.sub(" ", text.lstrip(LEADING)).rstrip("\n").strip(" ")


def preparation(settings: Mapping[str, Any]) -> str:
    """Description of how texts are prepared under settings of `TextPieces`."""
    case = "lower case" if settings.get("lower", True) else "letters as they are"
    rule = "no punctuation in front, white space as one space" if settings.get("clean", True) else "not cleaned"
    return f"{case}, {rule}"


class TextPieces:
    """Splits strings into the tokens of a vocabulary, with eos at the end.

    max_tokens: ids kept before eos (None = all). lower, clean: see `clean_text`; models trained here clean texts as the
    original's data sets do, released ones only lower-case them (clean=False), as the original's API does. prefix_space:
    prepend a space, so that the first word has the same token as in the middle of a sentence; the released vocabulary
    then reads "" as that space.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
        *,
        max_tokens: int | None = 70,
        lower: bool = True,
        prefix_space: bool = True,
        clean: bool = True,
    ) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise UserError(f"processors.text.max_tokens is {max_tokens}; it must be at least 1")
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.lower = lower
        self.prefix_space = prefix_space
        self.clean = clean
        self.report_cut = True
        """Whether the next truncated text is reported; only the first one is."""

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments that create an equal instance."""
        return {name: getattr(self, name) for name in ("max_tokens", "lower", "prefix_space", "clean")}

    def prepare(self, text: str) -> str:
        """The text to be tokenised: cleaned, without the prefix space."""
        text = SURROGATES.sub("\ufffd", text)
        if self.clean:
            return clean_text(text, self.lower)
        return text.lower() if self.lower else text

    def cut(self, prepared: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids, eos last, and [start, end) of all but eos; these count the prefix space in front of `prepared`."""
        beginning = self._beginning(prepared)
        encoding = self.tokenizer.encode(" " + beginning if self.prefix_space else beginning)
        count = len(encoding) - 1  # without eos
        if self.max_tokens is None or count <= self.max_tokens:
            return encoding.ids, encoding.offsets[:-1]
        if self.report_cut:
            self.report_cut = False
            more_than = "more than " if len(beginning) < len(prepared) else ""
            logger.warning(
                "a text of %s%d tokens was cut to its first %d (said once): %s...",
                more_than,
                count,
                self.max_tokens,
                prepared[:40],
            )
        encoding.truncate(self.max_tokens)
        return [*encoding.ids, EOS], encoding.offsets

    def _beginning(self, prepared: str) -> str:
        """The part of a text that is tokenised: of a huge one only the beginning, up to a space."""
        if self.max_tokens is None:
            return prepared
        limit = self.max_tokens * MAX_CHARS_PER_TOKEN
        if len(prepared) <= limit:
            return prepared
        space = prepared.rfind(" ", limit // 2, limit)
        return prepared[:space] if space > 0 else prepared[:limit]
