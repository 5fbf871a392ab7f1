"""Other ways to load the same samples: on the fly, and from the formats of other libraries.

Each yields batches of 8 as torch tensors: pictures, prompt cells and the mask of one object; `finished`: `pixel_values`
normalised to float32 and a byte a pixel of the mask, else both as they are stored. Those with a format of their own
write it first. What is stored is the same for all: uint8 pictures, packed bits of the mask (webdataset reads our own
tars).
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from pipeline.pictures import FORMATS
from shards import codec
from shards.reader import ShardSet

BATCH = 8
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
Epoch = Callable[[], Iterator[Any]]
NAMES = ("pixel_values", "g_pixel_values", "prompt_masks", "masks")
SHAPES = {"pixel_values": (3, 448, 448), "g_pixel_values": (3, 1024, 1024), "prompt_masks": (1, 16, 16)}
SHAPES["masks"] = (1, 1024, 128)  # packed


def samples(folder: Path) -> Iterator[dict[str, np.ndarray]]:
    """Stored arrays of the first object of each sample of a set: uint8 arrays of `SHAPES`."""
    shards = ShardSet(folder)
    for n in range(len(shards)):
        stored = shards.open(n).members
        sample = {field.name: data for field, data in stored.items()}
        yield {
            "pixel_values": codec.decode_picture(sample["pixel_values"], 448),
            "g_pixel_values": codec.decode_picture(sample["g_pixel_values"], 1024),
            "prompt_masks": codec.decode_prompts(sample["prompt_masks"], 16, [0]).view(np.uint8),
            "masks": codec.decode_masks(sample["masks"], 1024, [0], packed=True),
        }


def ready(sample: dict[str, np.ndarray], finished: bool) -> tuple[np.ndarray, ...]:
    """The four arrays as they are delivered."""
    small = sample["pixel_values"]
    masks = sample["masks"]
    if finished:
        small = codec.normalise(small, MEAN, STD)
        masks = np.unpackbits(masks, axis=-1).view(np.bool_)
    return small, sample["g_pixel_values"], np.asarray(sample["prompt_masks"]).view(np.bool_), masks


def _loader(dataset: Any, workers: int) -> Epoch:
    loader = DataLoader(dataset, BATCH, drop_last=True, num_workers=workers, persistent_workers=workers > 0)
    return lambda: iter(loader)


class Pictures(Dataset):
    """Photographs with masks as run lengths (SA-1B), or frame 1 of SAV's npz, as people write it."""

    def __init__(self, paths: list[Path], finished: bool) -> None:
        self.paths = paths
        last = [T.ToTensor(), T.Normalize(MEAN, STD)] if finished else [T.PILToTensor()]
        self.to_448 = T.Compose([T.Resize((448, 448)), *last])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
        if self.paths[i].suffix == ".npz":
            with np.load(self.paths[i]) as arrays:
                picture = Image.fromarray(np.rint(arrays["frame1"]).astype(np.uint8))
                mask = Image.fromarray((arrays["mask1"] > 127.5).astype(np.uint8))
        else:
            picture = Image.open(self.paths[i], formats=FORMATS).convert("RGB")
            meta = json.loads(self.paths[i].with_suffix(".json").read_text())
            mask = Image.fromarray(coco.decode(meta["annotations"][0]["segmentation"]))
        nearest = T.InterpolationMode.NEAREST
        masks = [TF.pil_to_tensor(TF.resize(mask, [side, side], nearest)).bool() for side in (16, 1024)]
        return self.to_448(picture), TF.pil_to_tensor(picture.resize((1024, 1024))), *masks


def on_the_fly(paths: list[Path], workers: int, finished: bool) -> Epoch:
    """Its masks are a byte a pixel in either way."""
    return _loader(Pictures(paths, finished), workers)


def webdataset(folder: Path, workers: int, finished: bool) -> Epoch:
    """On our own tars: npy members are decoded by the library, masks by our codec."""
    import webdataset as wds

    def four(sample: dict[str, Any]) -> tuple[np.ndarray, ...]:
        small = sample["pixel_values.npy"]
        small = codec.normalise(small, MEAN, STD) if finished else small
        masks = codec.decode_masks(sample["masks.bits"], 1024, [0], packed=not finished)
        return small, sample["g_pixel_values.npy"], sample["prompt_masks.npy"][:1], masks

    dataset = wds.WebDataset([str(tar) for tar in sorted(folder.glob("*.tar"))], shardshuffle=False, empty_check=False)
    return _loader(dataset.decode().map(four), workers)


def write_energon(source: Path, folder: Path) -> None:
    """Our tars with other keys, since it refuses repeated ones, and its files beside them."""
    from megatron.energon.cli.main import main as energon_command

    folder.mkdir(parents=True)
    shards = ShardSet(source)
    for start in range(0, len(shards), 16):
        with tarfile.open(folder / f"{start:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for n in range(start, min(start + 16, len(shards))):
                for field, data in shards.open(n).members.items():
                    info = tarfile.TarInfo(f"{n:06d}.{field.name}.{field.extension('raw')}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    options = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset"]
    energon_command(["prepare", str(folder), *options], standalone_mode=False)


def energon(folder: Path, workers: int, finished: bool) -> Epoch:
    """On our own tars: members are decoded by our codec."""
    from megatron import energon as lib

    @lib.stateless
    def cook(sample: dict[str, Any]) -> dict[str, Any]:
        stored = {
            "pixel_values": codec.decode_picture(sample["pixel_values.npy"], 448),
            "g_pixel_values": codec.decode_picture(sample["g_pixel_values.npy"], 1024),
            "prompt_masks": codec.decode_prompts(sample["prompt_masks.npy"], 16, [0]),
            "masks": codec.decode_masks(sample["masks.bits"], 1024, [0], packed=True),
        }
        arrays = map(torch.from_numpy, ready(stored, finished))
        return {**lib.basic_sample_keys(sample), **dict(zip(NAMES, arrays, strict=True))}

    class Encoder(lib.DefaultTaskEncoder):
        cookers = (lib.Cooker(cook),)
        decoder = None

    config = lib.WorkerConfig.default_worker_config(num_workers=workers)
    options = {"batch_size": BATCH, "batch_drop_last": True, "shuffle_buffer_size": None, "repeat": False}
    dataset = lib.get_train_dataset(
        str(folder), worker_config=config, task_encoder=Encoder(), max_samples_per_sequence=None, **options
    )
    loader = lib.get_loader(dataset, worker_config=config)
    return lambda: iter(loader)


def write_spdl(source: Path, folder: Path) -> None:
    import spdl.io  # noqa: F401  # to say at once where it is missing

    folder.mkdir(parents=True)
    for n, sample in enumerate(samples(source)):
        np.savez(folder / f"{n:06d}.npz", **sample)


def spdl(folder: Path, threads: int, finished: bool) -> Epoch:
    """Its threads, at least one, read npz files, one of each sample."""
    import spdl.io as spdl_io
    from spdl.pipeline import PipelineBuilder

    paths = sorted(folder.glob("*.npz"))

    def read(path: Path) -> tuple[np.ndarray, ...]:
        return ready(spdl_io.load_npz(path.read_bytes()), finished)

    def join(parts: list[tuple[np.ndarray, ...]]) -> list[torch.Tensor]:
        return [torch.from_numpy(np.stack(arrays)) for arrays in zip(*parts, strict=True)]

    def epoch() -> Iterator[Any]:
        builder = PipelineBuilder().add_source(paths).pipe(read, concurrency=max(1, threads))
        pipeline = builder.aggregate(BATCH, drop_last=True).pipe(join).add_sink(4).build(num_threads=threads + 1)
        with pipeline.auto_stop():
            yield from pipeline

    return epoch


def write_litdata(source: Path, folder: Path) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=64 << 20)
    for n, sample in enumerate(samples(source)):
        writer[n] = sample
    writer.done()
    writer.merge()


def litdata(folder: Path, workers: int, finished: bool) -> Epoch:
    from litdata import StreamingDataLoader, StreamingDataset

    class Ready(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            return ready(super().__getitem__(index), finished)

    loader = StreamingDataLoader(
        Ready(str(folder)), batch_size=BATCH, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    return lambda: iter(loader)


def write_streaming(source: Path, folder: Path) -> None:
    from streaming import MDSWriter

    columns = {name: f"ndarray:uint8:{','.join(map(str, shape))}" for name, shape in SHAPES.items()}
    with MDSWriter(out=str(folder), columns=columns, size_limit=64 << 20) as writer:
        for sample in samples(source):
            writer.write(sample)


def streaming(folder: Path, workers: int, finished: bool) -> Epoch:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    class Ready(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            return ready(super().__getitem__(index), finished)

    clean_stale_shared_memory()
    return _loader(Ready(local=str(folder), batch_size=BATCH, shuffle=False), workers)


def write_grain(source: Path, folder: Path) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir(parents=True)
    writer = ArrayRecordWriter(str(folder / "samples.array_record"), "group_size:1,uncompressed")
    for sample in samples(source):
        writer.write(b"".join(sample[name].tobytes() for name in NAMES))
    writer.close()


def grain(folder: Path, threads: int, finished: bool) -> Epoch:
    import grain.python as pygrain

    ends = np.cumsum([np.prod(SHAPES[name]) for name in NAMES])

    def decode(record: bytes) -> tuple[np.ndarray, ...]:
        parts = np.split(np.frombuffer(record, np.uint8), ends[:-1])
        return ready({n: part.reshape(SHAPES[n]) for n, part in zip(NAMES, parts, strict=True)}, finished)

    source = pygrain.ArrayRecordDataSource([str(folder / "samples.array_record")])
    batches = pygrain.MapDataset.source(source).map(decode).batch(BATCH, drop_remainder=True)
    options = pygrain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)

    def epoch() -> Iterator[Any]:
        for batch in batches.to_iter_dataset(options):
            yield [torch.from_numpy(array) for array in batch]

    return epoch


class _Stored(Dataset):
    """Samples as tuples, for a writer that asks by number."""

    def __init__(self, folder: Path) -> None:
        self.samples = [tuple(np.asarray(sample[name]) for name in NAMES) for sample in samples(folder)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[np.ndarray, ...]:
        return self.samples[i]


def write_ffcv(source: Path, folder: Path) -> None:
    from ffcv.fields import NDArrayField
    from ffcv.writer import DatasetWriter

    folder.mkdir(parents=True, exist_ok=True)
    fields = {name: NDArrayField(np.dtype(np.uint8), SHAPES[name]) for name in NAMES}
    DatasetWriter(str(folder / "samples.beton"), fields, num_workers=1).from_indexed_dataset(_Stored(source))


def ffcv(folder: Path, threads: int, finished: bool) -> Epoch:
    """Its threads, at least one, fill the batches. Masks are unpacked and pixels normalised a batch at a time."""
    from ffcv.fields.decoders import NDArrayDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    loader = Loader(
        str(folder / "samples.beton"),
        batch_size=BATCH,
        num_workers=threads,
        order=OrderOption.SEQUENTIAL,
        drop_last=True,
        pipelines={name: [NDArrayDecoder(), ToTensor()] for name in NAMES},
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    def epoch() -> Iterator[Any]:
        for small, large, cells, packed in loader:
            if not finished:
                yield small, large, cells.bool(), packed
                continue
            masks = torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1).view(np.bool_))
            yield (small / 255 - mean) / std, large, cells.bool(), masks

    return epoch


Write = Callable[[Path, Path], None]
Read = Callable[[Path, int, bool], Epoch]
PEERS: dict[str, tuple[Write | None, Read]] = {
    "webdataset": (None, webdataset),
    "energon": (write_energon, energon),
    "spdl": (write_spdl, spdl),
    "litdata": (write_litdata, litdata),
    "streaming": (write_streaming, streaming),
    "grain": (write_grain, grain),
    "ffcv": (write_ffcv, ffcv),
}


def installed(write: Write, source: Path, folder: Path) -> bool:
    """Write a peer's own format; False, with a line, where its library is missing."""
    try:
        write(source, folder)
    except ImportError as error:
        print(f"left out: {error}")
        return False
    return True
