"""The contract between `pipeline/` (writes) and `trainer/` (reads): what is on disk, written, read, checked, shown.

`docs/FORMAT.md` is its specification. Folders below this one hold users' data and are not part of the package.
"""
