"""A loop over the tars of a shard set with webdataset: sequential reads, for example straight from object storage.

    python examples/webdataset_loop.py shards/sav

`decode_sample` compares every member with its checksum; `.decode(shards.decoder)` in its place decodes member by member
and compares nothing.
"""

import sys
from glob import glob

import webdataset as wds

import shards


def main(folder: str) -> None:
    tars = sorted(glob(f"{folder}/*.tar"))
    for sample in wds.WebDataset(tars, shardshuffle=False).map(shards.decode_sample).shuffle(16):
        shapes = {name: value.shape for name, value in sample.items() if name not in ("__key__", "meta")}
        print(sample["__key__"], len(sample["meta"]["objects"]), "objects", shapes)


if __name__ == "__main__":
    main(sys.argv[1])
