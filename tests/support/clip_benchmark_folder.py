"""Folders of webdataset shards as CLIP_benchmark's export writes them."""

from support.small_shards import write_tar

PER_SHARD = 2


def write_folder(folder, samples, *, classes=(), templates=(), dataset_type=""):
    """Samples are dictionaries of content by file ending: {"jpg": ..., "cls": b"0"}."""
    shards = [samples[first : first + PER_SHARD] for first in range(0, len(samples), PER_SHARD)]
    for shard_index, shard in enumerate(shards):
        members = {}
        for row, sample in enumerate(shard):
            key = f"s{shard_index * PER_SHARD + row:07d}"
            for ending, content in sample.items():
                members[f"{key}.{ending}"] = content
        write_tar(folder / "test" / f"{shard_index}.tar", members)

    (folder / "test" / "nshards.txt").write_text(f"{len(shards)}\n")
    (folder / "classnames.txt").write_text("\n".join(classes))
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
    (folder / "dataset_type.txt").write_text(dataset_type)
    return folder
