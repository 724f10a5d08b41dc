"""Options that every term of an objective has, and the parts of a recipe that they are checked against."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from onepeace.config import Config
from onepeace.config.reader import Finite, nearest
from onepeace.data.augment import make_augments
from onepeace.data.batch import Batch, Inputs
from onepeace.data.config import DataConfig, SourceConfig
from onepeace.data.masking import MaskRates
from onepeace.data.sample import Sample
from onepeace.data.source import Source
from onepeace.errors import UserError
from onepeace.model import Trained
from onepeace.processors import AudioProcessor, ImageProcessor
from onepeace.processors.registry import processor_class
from onepeace.train.frozen import by_name
from onepeace.train.passes import Passes
from onepeace.train.sections import OptimConfig, RunConfig
from onepeace.train.teachers import SAMPLE_RATE, TeacherOptions, TeacherTable, teacher_table

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TermOptions:
    """Options of an entry of a recipe's ``objective``, to which terms add their own."""

    term: str
    """Key of TERMS."""
    name: str = ""
    """Name in the log and in messages; default: from the modalities or sources, as "denoising/image+text"."""
    on: tuple[str, ...] = ()
    """Modalities; empty = all of the batch."""
    sources: tuple[str, ...] = ()
    """Names of the sources to learn from; empty = all that have the modalities."""
    weight: Finite = 1.0

    def __post_init__(self) -> None:
        if not self.name:
            subject = "+".join(self.on or self.sources)
            object.__setattr__(self, "name", f"{self.term}/{subject}" if subject else self.term)
        if "." in self.name:
            raise UserError(f"name {self.name!r} contains a dot; use another character")

    @property
    def where(self) -> str:
        """Path in the recipe, for messages."""
        return f"objective.{self.name}"

    def reads(self, source: str, present: Sequence[str]) -> bool:
        """Whether the term is computed for batches of a source with this name and these modalities."""
        if self.sources and source not in self.sources:
            return False
        return set(self.on) <= set(present)

    def one_modality(self) -> str:
        """The only modality of ``on``; UserError if it lists none or several."""
        if len(self.on) != 1:
            raise UserError(f"{self.where}.on is {list(self.on)}; give one modality, such as on: [image]")
        return self.on[0]


@dataclass(frozen=True)
class TermContext:
    """What a term's options are checked against."""

    config: Config
    """Configuration of the model and its processors."""
    data: DataConfig
    sources: Sequence[SourceConfig]
    """Sources of ``data`` that feed the term, at least one."""
    mask: Mapping[str, MaskRates]
    """Rates of the masked passes by modality."""
    start_folder: Path | None
    """Folder of the model that training starts from; None = random weights."""
    optim: OptimConfig
    run: RunConfig


def sources_of(options: TermOptions, data: DataConfig) -> list[SourceConfig]:
    """Sources that a term learns from.

    Raises:
        UserError: there is no such source, or the term names one that does not exist.
    """
    modalities = data.modalities
    for name in options.sources:
        if name not in modalities:
            raise UserError(f"{options.where}.sources: no source is named {name!r}; {nearest(name, modalities)}")
    present = dict.fromkeys(key for keys in modalities.values() for key in keys)
    for key in options.on:
        if key not in present:
            raise UserError(f"{options.where}.on: no source has {key!r}; {nearest(key, present)}")
    sources = [source for source in data.train if options.reads(source.name, source.modalities)]
    if not sources:
        raise UserError(f"no source of data.train can feed {options.where}; there are {', '.join(modalities)}")
    return sources


class TrainingData:
    """Sources and processors of a recipe, for `Term.prepare`.

    Args:
        config: the recipe's data section.
        sources: its sources, in its order.
        processors: processors by modality.
        frozen_folder: folder of the outputs of teachers.
        start_folder: folder of the model that training starts from; None = random weights.
    """

    def __init__(
        self,
        config: DataConfig,
        sources: Sequence[Source],
        processors: Mapping[str, Any],
        frozen_folder: Path,
        start_folder: Path | None,
    ) -> None:
        self.config = config
        self.sources = sources
        self.processors = processors
        self.frozen_folder = frozen_folder
        self.start_folder = start_folder
        self.tasks: dict[str, Any] = {}
        """Tasks of a generative model by name; see `keep_task`."""

    @property
    def tokenizer(self) -> "Tokenizer":
        """The model's tokenizer."""
        return self.processors["text"].tokenizer

    def samples(self, options: TermOptions) -> Iterator[Sample]:
        """Samples of the sources of a term."""
        names = {source.name for source in sources_of(options, self.config)}
        for source in self.sources:
            if source.config.name in names:
                yield from source.samples

    def texts(self, texts: Sequence[str]) -> Inputs:
        """Model input of texts."""
        processor = self.processors["text"]
        return processor.collate([processor.decode(text) for text in texts])

    def features(self, teacher: TeacherOptions, modality: str, output: str = "features") -> TeacherTable:
        """Table of a teacher's outputs for all items or captions of the sources, computed once and kept on disk.

        Args:
            modality: "text" for the captions, another one for the items.
            output: "features" or "scores".

        Raises:
            UserError: the teacher cannot be loaded, or two items of one name differ.
        """
        items: dict[str, Any]
        if modality == "text" and teacher.reads == "captions":
            items = dict.fromkeys(self._captions())
        else:
            items = self._items(modality, f"a teacher's {output}")
        load = self._loader(modality)

        def read(name: str) -> Any:
            sample = items[name]
            if sample is None:
                return name
            return sample.captions[0] if teacher.reads == "first" else load(sample.read(modality))

        return teacher_table(teacher, items, read, self.frozen_folder, modality, output)

    def _captions(self) -> list[str]:
        """All captions, sorted by length, as a teacher pads to the longest of a batch."""
        captions: set[str] = set()
        for source in self.sources:
            captions.update(captions_of(self.config, source.samples))
        return sorted(captions, key=lambda text: (len(text), text))

    def _items(self, modality: str, what: str) -> dict[str, Sample]:
        """Samples of a modality by key."""
        samples = []
        for source in self.sources:
            samples += [sample for sample in source.samples if modality in sample.inputs]
        return by_name(samples, modality, what)

    def _loader(self, modality: str) -> Callable[[Any], Any]:
        """Function from a file to a teacher's input: sounds at the teachers' rate, cut to the model's limit."""
        processor = self.processors[modality]
        if modality != "audio":
            return processor.load
        sounds = AudioProcessor(sample_rate=SAMPLE_RATE)
        return partial(sounds.load, seconds=processor.max_seconds)

    def keep_task(self, options: TermOptions, name: str, task: Any) -> None:
        """Add a task to store with the weights; UserError if another term has a different one of this name."""
        if self.tasks.setdefault(name, task) != task:
            raise UserError(f"its task {name} differs from another term's; make them the same", where=options.where)


def captions_of(config: DataConfig, samples: Iterable[Sample]) -> list[str]:
    """Captions of the samples, and the templates filled with their labels; samples are read once, one at a time."""
    texts: list[str] = []
    labels: set[str] = set()
    for sample in samples:
        texts += sample.captions
        if sample.label:
            labels.add(sample.label)
    for label in sorted(labels):
        for templates in config.templates.values():
            texts += [template.format(label) for template in templates]
    return texts


O = TypeVar("O", bound=TermOptions)  # noqa: E741


class Logged(NamedTuple):
    """Number that is logged but not minimised."""

    value: Tensor


class Term(nn.Module, Generic[O]):
    """Loss of an objective, computed in two steps.

    ``outputs`` runs passes over a part of the batch and keeps the few tensors that the loss needs; ``loss`` is computed
    from those of the whole batch. A batch larger than memory therefore has the same loss, part by part (gradient
    caching). Parameters of the term itself train without weight decay.

    Args:
        options: options from the recipe.
        model: the model to train; a term keeps no reference to it.
        prepared: result of `prepare`.
    """

    Options: ClassVar[type[TermOptions]]
    """Class of the options, equal to the type argument of Term."""
    uses_masks: ClassVar[bool] = False
    """Whether the term needs masked passes and the model's masked decoder."""
    needs_whole_model: ClassVar[bool] = False
    """Whether the term runs parts of the model outside its passes, which a sharded model does not allow."""

    def __init__(self, options: O, model: Trained, prepared: Any = None):
        super().__init__()
        self.options = options
        self.step = 0
        """Number of the current step, from 1 on; set by the training loop."""

    @classmethod
    def check(cls, options: O, context: TermContext) -> None:
        """UserError for options that do not fit the rest of the recipe, before data is read."""

    @classmethod
    def prepare(cls, options: O, data: TrainingData) -> Any:
        """Data computed once before training, in the first process before the others."""
        return None

    def outputs(self, passes: Passes) -> Any:
        """Tensors of a part of the batch, with items or tokens as first axis, in tuples and dictionaries."""
        raise NotImplementedError

    def loss(self, outputs: Any, batch: Batch, model: Trained) -> Mapping[str, Tensor | Logged]:
        """Losses by name from the joined outputs of all parts; each is multiplied by the weight and added."""
        raise NotImplementedError


def check_projections(options: TermOptions, modalities: Sequence[str], config: Config) -> None:
    """UserError if the model has no projection of one of the modalities."""
    for key in modalities:
        if key not in config.model.projections:
            raise UserError(f"{options.where} needs a projection of {key}; add it to model.projections")


def check_targets(options: TermOptions, targets: Sequence[str], sources: Sequence[SourceConfig]) -> None:
    """UserError if a source lacks one of the targets."""
    for source in sources:
        for target in targets:
            if target not in source.targets:
                raise UserError(f"{options.where} reads the target {target}; add it to targets of {source.shards}")


def check_places(options: TermOptions, target: str, data: DataConfig, config: Config) -> None:
    """UserError if an augmentation or the processor would move the picture relative to a target such as boxes."""
    for key, settings in config.processors.items():
        maker = processor_class(key)
        if issubclass(maker, ImageProcessor) and not maker.from_config(settings).shows_whole_pictures:
            raise UserError(
                f"processors.{key}: the model would not see the whole picture and nothing else, and places in the "
                f"target {target} would be wrong; set resize to squash",
                where=options.where,
            )
    for key, augment in make_augments(data.augment).items():
        if augment.moves_pixels:
            raise UserError(
                f"data.augment.{key} would move the picture against its target {target}; set "
                "crop_scale to [1, 1], and no flip or rand_augment",
                where=options.where,
            )
