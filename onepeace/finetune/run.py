"""Fine-tuning on a user's data, from reading it to the report. Finished stages are kept: the same call resumes.

The stages are: read and split the data (split.py); measure the initial model (answers.py); make the recipe (recipe.py),
train, average the weights (average.py), measure and report (report.py).
"""

import dataclasses
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onepeace.config import to_plain
from onepeace.datasets.parquet import is_parquet
from onepeace.device import choose_device
from onepeace.embed.embedder import load
from onepeace.errors import UsageError, UserError
from onepeace.files.atomic import LOCK, locked, write_text_atomic
from onepeace.finetune.answers import Answers, answers, read_answers, write_answers
from onepeace.finetune.average import AVERAGE, average_weights, read_average
from onepeace.finetune.own_data import check_enough, folders_are_classes, read_own_data
from onepeace.finetune.recipe import FROZEN, auto_recipe, check_overrides, described, head_names, overridden
from onepeace.finetune.report import Result, write_report
from onepeace.finetune.split import SUMMARY, VAL, SplitSummary, divide, read_summary, write_shards
from onepeace.hub.folder import CONFIG, read_config
from onepeace.hub.resolve import fetch_model, fingerprint
from onepeace.train.checkpoint import folders, remove
from onepeace.train.logging import LOG_FILE, read_log
from onepeace.train.recipe import MAY_CHANGE, Recipe, model_folder
from onepeace.train.trainer import train

log = logging.getLogger(__name__)

IDENTITY = "finetune.json"
"""What the fine-tuning is of; the mark by which --force knows a folder that it may replace."""
FIELDS = {
    "source": "SOURCE",
    "columns": "--column",
    "split": "--split",
    "model": "--model",
    "set": "a.b=value",
    "group": "--group",
}
"""Fields of `IDENTITY` that must be the same for a call to resume, and the options that set them. An option that a
version did not have was not given."""
FREE = MAY_CHANGE - {"schedule.steps"}
"""Fields of the recipe that a call may change which resumes, as the result does not depend on them."""
RECIPE = "settings.json"
BEFORE = "before.jsonl"
AFTER = "after.jsonl"
TUNED = "tuned"
"""Folder of the trained model before the averaging."""
CLASSES_SHOWN = 20
FAILURES_SHOWN = 3


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning, and the folder that holds all its files:

    * finetune.json: the source, model and options, by which a later call knows that it may resume.
    * data/: the shards of the parts, and parts.json, their summary.
    * settings.json: the recipe, as the first call chose it.
    * before.jsonl: answers of the initial model to the held-out part.
    * frozen/: outputs of frozen stems, computed once.
    * recipe.yaml, log.jsonl, step-N/: files of the training run (train/).
    * tuned/: the trained model, until its weights are averaged.
    * average.json, model/: the choice of the weights, and the new model.
    * after.jsonl, report.html: answers of the new model, and the report.

    Args:
        source: the user's folder or table.
        out: folder of the fine-tuning.
        model: initial model: a name or a folder.
        overrides: fields of the recipe, such as "optim.lr=1e-4".
        group: regular expression for the common part of the paths of files that belong together (split.py).
        say: called with a line for the user at each stage; by default a warning, which logging shows without set-up.
        columns: the table's names of columns, by the names used here, such as {"text": "sentence"}.
        split: split of a data set that has several.
    """

    source: Path
    out: Path
    model: str = "tiny"
    overrides: tuple[str, ...] = ()
    group: str | None = None
    say: Callable[[str], None] = log.warning
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    split: str | None = None

    @property
    def data(self) -> Path:
        return self.out / "data"

    @property
    def start(self) -> Path:
        """Folder of the model to start from."""
        return model_folder(self.model) if Path(self.model).is_dir() else fetch_model(self.model).folder

    def run(self, overwrite: bool = False) -> Result:
        """Run all stages that are not done yet.

        Raises:
            UserError: nothing can be learned from the data; the folder has something else in it, or another run is
                writing to it.
        """
        read_identity(self.out)  # before the lock adds a file to a folder of something else
        with locked(self.out):
            summary, recipe = self._prepare(overwrite)
            before = self._answers(BEFORE, self.model, self.start, summary, {})
            result = self._result(recipe, summary, before)
            write_report(result, self.source, self.model)
            return result

    def _prepare(self, overwrite: bool) -> tuple[SplitSummary, Recipe]:
        """Summary of the parts of the data, and the recipe.

        Both are read from the folder if an earlier call has written them, unless ``overwrite``; else they are made.
        """
        identity = self._identity()
        earlier = read_identity(self.out)
        if overwrite:
            self._check_needs_nothing_inside()
        elif earlier is not None:
            check_same(self.out, earlier, identity)
        is_split = (self.data / SUMMARY).exists()  # written last, so that all shards are there
        if is_split and not overwrite:
            return self._resume(identity)
        return self._start_new(identity, overwrite)

    def _identity(self) -> dict[str, object]:
        """Content of finetune.json: everything that the result depends on."""
        return {
            "source": os.path.abspath(self.source),
            "columns": dict(self.columns),
            "split": self.split,
            "model": fingerprint(self.start),
            "set": list(self.overrides),
            "group": self.group,
            "name": self.model,  # for messages; the fingerprint says whether it is the same model
        }

    def _check_needs_nothing_inside(self) -> None:
        """Raise an error if --force would delete the source or the initial model."""
        for needed in (self.start, self.source):
            if needed.resolve().is_relative_to(self.out.resolve()):
                raise UserError(f"{needed} is needed, and --force would remove it; give -o another folder")

    def _resume(self, identity: Mapping[str, object]) -> tuple[SplitSummary, Recipe]:
        """Read the summary and the recipe; a recipe that is not there yet (the call was killed) is made."""
        summary = read_summary(self.data)
        self.say(f"{self.out}: the parts of an earlier call are used; --force reads {self.source} again")
        recipe = self._stored_recipe() or self._new_recipe(summary)
        self._write_identity_and_recipe(identity, recipe)
        return summary, recipe

    def _start_new(self, identity: Mapping[str, object], overwrite: bool) -> tuple[SplitSummary, Recipe]:
        """Read and split the data and make the recipe; only when all that went well, clear and write the folder."""
        check_overrides(self.overrides)
        with self._folder_of_embedded_files() as unpacked:
            data = read_own_data(
                self.source,
                list(read_config(self.start).model.adapters),
                columns=self.columns,
                split=self.split,
                unpacked=unpacked,
            )
            self.say(f"{self.source}: {data.kinds}{_left_out(data.left_out)}")
            check_enough(self.source, data)
            parts, summary = divide(data, self.source, self.group)
            self._say_division(summary, num_known=len(data.left_out))
            recipe = self._new_recipe(summary)
            if overwrite:
                clear(self.out)
            self._write_identity_and_recipe(identity, recipe)
            write_shards(parts, summary, self.data)
        return summary, recipe

    @contextmanager
    def _folder_of_embedded_files(self) -> Iterator[Path | None]:
        """A temporary folder for the files of a data set that holds them as bytes in its table; None for others.

        It is beside the output, as that disk has room for the files: the shards are written there too.
        """
        if not is_parquet(self.source):
            yield None
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.out.parent, prefix=f".{self.out.name}-") as folder:
            yield Path(folder)

    def _say_division(self, summary: SplitSummary, num_known: int) -> None:
        """Say what is learned, and name the classes, as a folder of albums is taken for one of classes.

        Args:
            num_known: number of the samples that the user knows to be left out.
        """
        self.say(f"{summary.files}{_left_out(summary.left_out[num_known:])}; {summary.described()}")
        if summary.labels:
            names = ", ".join(summary.labels[:CLASSES_SHOWN])
            if len(summary.labels) > CLASSES_SHOWN:
                names += f" and {len(summary.labels) - CLASSES_SHOWN} more"
            self.say(f"the classes to learn are {names}{folders_are_classes(self.source)}")

    def _write_identity_and_recipe(self, identity: Mapping[str, object], recipe: Recipe) -> None:
        write_text_atomic(self.out / IDENTITY, json.dumps(identity, indent=1) + "\n")
        write_text_atomic(self.out / RECIPE, json.dumps(to_plain(recipe), indent=1) + "\n")
        self.say(described(recipe))

    def _new_recipe(self, summary: SplitSummary) -> Recipe:
        content = auto_recipe(self.start.absolute(), self.data, self.out, summary)
        return overridden(content, self.overrides)

    def _stored_recipe(self) -> Recipe | None:
        """The recipe that the first call stored, with what this call may change (`FREE`).

        Its paths become those of this call: the folder may have been moved since, or its path may have been relative
        to another working directory.
        """
        path = self.out / RECIPE
        if not path.exists():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        recipe = overridden(content, [override for override in self.overrides if _is_free(override)])
        data = replace(recipe.data, root=str(self.data))
        if data.frozen_folder == str(Path(recipe.run.out, FROZEN)):  # else the user chose it, and it stays
            data = replace(data, frozen_folder=str(self.out / FROZEN))
        return replace(recipe, data=data, run=replace(recipe.run, out=str(self.out)))

    def _trained_model(self, recipe: Recipe) -> Path:
        """Folder of the trained model before the averaging; trains it first if necessary.

        Raises:
            UserError: stopped by SIGTERM.
        """
        tuned = self.out / TUNED
        model = self.out / "model"
        if tuned.exists():
            return tuned
        if not (model / CONFIG).exists():
            self.say(f"training {recipe.schedule.steps} steps")
            result = train(recipe)
            if not (result / CONFIG).exists():
                raise UserError("stopped; run the same command again to resume", where=self.out)
        os.replace(model, tuned)
        return tuned

    def _answers(
        self, file: str, name: str, model: Path, summary: SplitSummary, heads: Mapping[str, str]
    ) -> list[Answers]:
        """Answers of a model, with these heads by modality, to the held-out part: read from a file, or measured."""
        path = self.out / file
        if path.exists():
            with suppress(UserError):  # written by another version
                return read_answers(path)
        self.say(f"measuring {name}")
        embedder = load(model, device=str(choose_device()))
        results = answers(embedder, self.data, summary.combinations(VAL), summary.labels, heads)
        write_answers(path, results)
        return results

    def _result(self, recipe: Recipe, summary: SplitSummary, before: list[Answers]) -> Result:
        """Train, average and measure, skipping finished stages."""
        heads = head_names(summary)
        if not (self.out / AVERAGE).exists():
            tuned = self._trained_model(recipe)
            self.say("averaging the weights")
            average_weights(tuned, recipe, self.data, summary, heads)
        average = read_average(self.out)
        self.say(f"weights {average.described()}")
        after = self._answers(AFTER, "the new model", self.out / "model", summary, heads)
        for checkpoint in folders(self.out):  # the training is over: nothing resumes from them
            remove(checkpoint)
        return Result(
            folder=self.out,
            summary=summary,
            recipe=recipe,
            average=average,
            seconds=sum(line.get("seconds", 0.0) for line in read_log(self.out / LOG_FILE)),
            before=before,
            after=after,
        )


def _left_out(left_out: Sequence[Sequence[str]]) -> str:
    """Number of samples that cannot be used, and the first of them, as text."""
    if not left_out:
        return ""
    first = "; ".join(f"{where}: {reason}" for where, reason in left_out[:FAILURES_SHOWN])
    more = f" and {len(left_out) - FAILURES_SHOWN} more" if len(left_out) > FAILURES_SHOWN else ""
    return f"; {len(left_out)} left out: {first}{more}"


def read_identity(out: Path) -> dict[str, Any] | None:
    """What the fine-tuning in a folder is of; None if the folder is new or empty.

    Raises:
        UsageError: there is something else in the folder.
    """
    if out.exists() and not out.is_dir():
        raise UsageError("is a file; name a folder", where=out)
    if not out.exists() or set(os.listdir(out)) <= {LOCK}:
        return None
    try:
        identity = json.loads((out / IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        identity = None
    if not isinstance(identity, dict) or not {"source", "model"} <= identity.keys():
        raise UsageError(
            f"holds no {IDENTITY} of a fine-tuning, so it will not be replaced; name another folder", where=out
        )
    return identity


def check_same(out: Path, earlier: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raise `UsageError` if the fine-tuning in a folder has another source, model or option than this call."""
    for field, option in FIELDS.items():
        if _what_counts(field, earlier) != _what_counts(field, identity):
            name = "name" if field == "model" else field  # whose fingerprint says nothing to a user
            raise UsageError(
                f"holds a fine-tuning with another {option} ({json.dumps(earlier.get(name))}); give the same, choose "
                "another name, or overwrite it with --force",
                where=out,
            )


def _what_counts(field: str, identity: Mapping[str, Any]) -> object:
    """The value of a field by which calls are told apart."""
    value = identity.get(field) or None
    if field == "set" and value:
        value = [override for override in value if not _is_free(override)]
    return value or None


def _is_free(override: str) -> bool:
    return override.partition("=")[0] in FREE


def clear(out: Path) -> None:
    """Delete all that is in the folder of a fine-tuning, but its lock."""
    for path in [path for path in out.iterdir() if path.name != LOCK]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
