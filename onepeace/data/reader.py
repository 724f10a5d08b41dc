"""Reader of training data: which samples a process has in a step, from any set of local or remote shards.

The shards of all sources of a name are dealt to lanes anew in each epoch, and a batch has the same number of samples
from each lane: row b of B is from lane b // (B / lanes), at a position that follows from the step. A process reads only
the lanes under its own rows, so that each machine fetches only its part of the shards; and the number of processes
changes neither a batch nor the order. The number of lanes is fixed when a run starts.
"""

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onepeace.data.broken import Broken
from onepeace.data.config import DataConfig
from onepeace.data.index import digest_of
from onepeace.data.lane import Cursor, Lane, Window
from onepeace.data.order import MASK, VARY, default_lanes
from onepeace.data.source import Source
from onepeace.errors import UserError

__all__ = ["Cursor", "Item", "Reader", "Source", "open_sources"]


def open_sources(data: DataConfig) -> list[Source]:
    """Sources of a recipe, in its order; UserError for missing shards."""
    return [Source(config, data, number) for number, config in enumerate(data.train)]


@dataclass(frozen=True, eq=False)
class Item:
    """A place in a batch, with random numbers of its own."""

    lane: Lane
    position: int
    """Position of its sample in the lane; a broken one is replaced by the next that is not."""
    rng: np.random.Generator
    """For caption and augmentation."""
    mask_seed: Sequence[int]
    """For the masks."""

    @property
    def window(self) -> Window:
        """The samples that may be mixed into this one."""
        return self.lane.window(self.position)


class Reader:
    """The samples of the sources of one name, for one process.

    Args:
        sources: all sources of the name.
        data: the recipe's data section.
        seed: seed of the run.
        batch_size: items of a batch over all processes.
        rows: the rows of this process in each batch.
        cursors: cursors of an earlier step, from `cursors`, of all processes.

    Raises:
        UserError: the batch cannot be shared evenly by the lanes, or there are fewer shards; see `Lane`.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        data: DataConfig,
        seed: int,
        batch_size: int,
        rows: range,
        cursors: Mapping[str, Cursor] | None = None,
    ) -> None:
        self.sources = list(sources)
        self.name = sources[0].config.name
        self.seed = [seed, _number_of(sources[0])]
        self.batch_size = batch_size
        self.rows = rows
        by_source = data.batches == "by_source"
        saved = self._saved(cursors or {})
        self.num_lanes = self._number_of_lanes(data.lanes, by_source, saved)
        """Number of all lanes."""
        self.share = batch_size // self.num_lanes
        """Items of a batch from each lane."""
        self._shards_digest = self._digest_of_shards()
        self.lanes: dict[int, Lane] = {}
        """The lanes of this process by number."""
        first_lane = rows[0] // self.share
        last_lane = rows[-1] // self.share
        for number in range(first_lane, last_lane + 1):
            self.lanes[number] = Lane(
                self.sources,
                self.seed,
                lane=number,
                lanes=self.num_lanes,
                buffer=-(-data.shuffle_buffer // self.num_lanes),
                run=batch_size if by_source else 1,
                cursor=saved.get(number),
            )

    def _digest_of_shards(self) -> int:
        """Digest of seed, lanes and names of the shards, without their folders."""
        names: list[str] = []
        for source in self.sources:
            names += map(os.path.basename, source.shards)
        return digest_of(repr([self.seed, self.num_lanes, names]).encode())

    def _saved(self, cursors: Mapping[str, Cursor]) -> dict[int, Cursor]:
        """The cursors of this name by lane."""
        saved: dict[int, Cursor] = {}
        for key, cursor in cursors.items():
            name, _, lane = key.rpartition("/")
            if name == self.name:
                saved[int(lane)] = cursor
        return saved

    def _number_of_lanes(
        self,
        wanted: int | None,
        by_source: bool,
        saved: Mapping[int, Cursor],
    ) -> int:
        shards = sum(len(source.shards) for source in self.sources)
        if saved:
            lanes = next(iter(saved.values()))["lanes"]
            if wanted not in (None, lanes):
                raise UserError(
                    f"data.lanes is {wanted}, and the checkpoint was written with {lanes}; leave it out, or start anew"
                )
            return lanes
        if by_source:  # all items of a batch are from one source, so that one lane decides for all
            return 1
        if wanted is None:
            return default_lanes(self.batch_size, shards)
        if self.batch_size % wanted or wanted > shards:
            raise UserError(
                f"data.lanes is {wanted}: {self.name} has batches of {self.batch_size} and {shards} shards; give a "
                "divisor of the batch that is at most the number of shards"
            )
        return wanted

    def items(self, step: int) -> list[Item]:
        """The items of this process in a step."""
        items: list[Item] = []
        for row in self.rows:
            number = step * self.batch_size + row
            item = Item(
                lane=self.lanes[row // self.share],
                position=step * self.share + row % self.share,
                rng=np.random.default_rng([*self.seed, VARY, number]),
                mask_seed=[*self.seed, MASK, number],
            )
            items.append(item)
        return items

    def open(self, step: int, lane: int) -> None:
        """Draw the window of a lane at the beginning of a step."""
        self.lanes[lane].window(step * self.share)

    def windows(self, step: int) -> Iterator[tuple[int, Window]]:
        """Number of each lane of this process, and its window at the beginning of a step.

        The window is the same for all processes that share the lane.
        """
        for number, lane in self.lanes.items():
            yield number, lane.window(step * self.share)

    def release(self, step: int) -> None:
        """Forget the windows before a step."""
        for lane in self.lanes.values():
            lane.release(step * self.share)

    def cursors(self, step: int) -> dict[str, Cursor]:
        """Cursors from which this and later steps are found, by "name/lane"."""
        return {f"{self.name}/{number}": window.cursor for number, window in self.windows(step)}

    def digests(self, step: int) -> NDArray[np.int64]:
        """(1 + lanes,): digest of the list of shards, and of each lane's window; 0 for lanes of other processes."""
        digests = np.zeros(1 + self.num_lanes, np.int64)
        digests[0] = self._shards_digest
        for number, window in self.windows(step):
            digests[1 + number] = window.digest
        return digests

    def digest_names(self) -> list[str]:
        """Name of the lane or list of shards behind each entry of `digests`."""
        return [f"the list of shards of {self.name}"] + [f"lane {i} of {self.name}" for i in range(self.num_lanes)]

    def take_broken(self) -> list[Broken]:
        """Shards that could not be opened, and damages of others, since the last call."""
        broken: list[Broken] = []
        for lane in self.lanes.values():
            broken += lane.broken
            lane.broken = []
        return broken

    def coming_shards(self) -> list[str]:
        """Addresses of the shards that are needed next."""
        addresses: list[str] = []
        for lane in self.lanes.values():
            addresses += lane.coming_shards
        return addresses


def _number_of(source: Source) -> int:
    """A number of the sources' modalities and name, the same in all runs."""
    label = "+".join(source.config.modalities)
    if label != source.config.name:
        label = f"{label}:{source.config.name}"
    return zlib.crc32(label.encode())
