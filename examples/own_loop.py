"""A training loop of your own over a shard set, with PyTorch's DataLoader.

    python examples/own_loop.py shards/sav

The set is map-style and picklable: workers open it themselves, spawned ones too, and samplers work as usual. Only the
fields that are asked for are decoded.
"""

import sys

from torch.utils.data import DataLoader, Dataset

import shards


class FirstFrames(Dataset):
    """The first frame of each sample, with the masks of all objects."""

    def __init__(self, path: str) -> None:
        self.samples = shards.open_set(path)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> dict:
        k = 1 if len(self.samples.meta(position)["frames"]) > 1 else ""
        sample = self.samples.read(position, fields=[f"pixel_values{k}", f"prompt_masks{k}", f"masks{k}"])
        return {name.removesuffix("1"): value for name, value in sample.items()}


def main(path: str) -> None:
    loader = DataLoader(
        FirstFrames(path),
        batch_size=2,
        shuffle=True,
        num_workers=2,
        multiprocessing_context="spawn",
        collate_fn=shards.collate,
    )
    for batch in loader:
        pictures = batch["pixel_values"]  # (B, 3, 448, 448) float32, normalised
        masks = batch["masks"]  # (M, 1024, 1024) bool, of all B samples
        owner = batch["image_of_object"]  # (M,): the sample that each mask belongs to
        print(tuple(pictures.shape), tuple(masks.shape), owner.tolist(), batch["keys"])


if __name__ == "__main__":
    main(sys.argv[1])
