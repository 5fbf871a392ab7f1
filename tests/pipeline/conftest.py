"""Raw data with faults, for several modules."""

import shutil
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def root_with_faults(sav_root: Path, tmp_path: Path) -> Path:
    """12 sound pairs and 3 bad ones between them."""
    root = tmp_path / "raw"
    shutil.copytree(sav_root, root)
    (root / "sav_coffee" / "masklet_data_00099.npz").write_bytes(b"PK\x03\x04 cut short")
    with np.load(sav_root / "sav_rocket" / "masklet_data_00000.npz") as stored:
        pair = {name: stored[name] for name in stored.files}
    np.savez(root / "sav_rocket" / "masklet_data_00001.npz", **{**pair, "mask2": np.zeros((512, 512), np.float32)})
    np.savez(root / "sav_rocket" / "masklet_data_00002.npz", frame1=pair["frame1"])
    return root
