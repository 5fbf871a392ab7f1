"""Publishing a finished set: its tars, index, ledger, tables and manifest, and a card, in a folder, bucket or hub.

What stands there with the right size and checksum is not sent again. The manifest goes last, once all else has been
compared, so that a set that is half there is never read as finished. A run that is killed goes on with the same
command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote

from tqdm import tqdm

from shards.card import CARD, MARK, SHEET, write_card
from shards.checksum import file_sha256
from shards.errors import BadShard, UserError
from shards.format import INDEX, LEDGER, MANIFEST
from shards.licences import check_licence, licence_of
from shards.manifest import Manifest
from shards.preview import contact_sheet
from shards.printable import printable
from shards.program import check_set, command, copy_changed
from shards.reader import ShardSet
from shards.storage.destination import Bucket, Destination, Folder, Item
from shards.storage.hub import Hub
from shards.storage.protocols import PROTOCOLS, is_hub, is_url, without_secrets
from shards.table_list import LIST, OBJECTS, check_file, read_tables

_SHEET_SAMPLES = 4
_SHEET_FRAMES = 2


@dataclass(frozen=True)
class Published:
    """Result of a run of `publish`."""

    place: str
    manifest: Manifest
    sent: int
    """Files that were sent."""
    stood: int
    """Files that stood there already, and were right."""
    bytes_sent: int
    kept_card: bool
    """A card that somebody else wrote stands there and was kept."""
    compared: str
    """How all of them were compared, such as by SHA-256."""


def publish(
    folder: Path,
    to: str,
    *,
    i_may: bool = False,
    private: bool = False,
    licence: str | None = None,
    overwrite: bool = False,
    threads: int = 1,
) -> Published:
    """Publish the set in `folder` at `to`, and compare each file there with its checksum.

    Args:
        to: a folder, a URL of an object store, or hf://datasets/OWNER/NAME, then @BRANCH and /FOLDER.
        i_may: the user has the right to pass the set on, whatever is known of its source.
        private: a repository that is made on the hub is private.
        licence: identifier for the card, such as "cc-by-4.0"; None: that of the source.
        overwrite: replace another set that stands there.
        threads: files to read at a time, before anything is sent.

    Raises:
        UserError: the set may not be passed on, or is damaged, or another one stands there; or the place refuses it.
    """
    shards = ShardSet(folder)
    manifest = shards.manifest
    if not i_may:
        check_licence(manifest.source, str(folder))
    if manifest.version == 1:
        do = f"write it again with {command(f'recode {folder} --codec {manifest.codec} --out NEW')}"
        raise UserError("a set of format version 1 is not published", where=str(folder), do=do)
    place = _destination(to, private)
    if isinstance(place, Folder) and place.path.resolve() == folder.resolve():
        raise UserError("the set is there already", where=to, do="give another --to")
    *files, last = _files_of(folder, manifest, threads)
    place.prepare()
    sizes = place.sizes()
    _make_way(place, sizes, [*files, last], overwrite)
    made = _made(shards, place, licence, [item.name for item in files])
    kept_card = CARD in sizes and MARK.encode() not in place.read(CARD)
    items = [*files, *(item for item in made if not (kept_card and item.name == CARD)), last]
    right = place.right(items)
    missing = [item for item in items if item.name not in right]
    size = sum(item.size for item in missing)
    bar_options = {"unit": "B", "unit_scale": True, "mininterval": 0.5, "disable": not missing}
    with tqdm(total=size, desc=printable(str(place)), **bar_options) as bar:
        _send(place, [item for item in missing if item is not last], bar)
        _send(place, [item for item in missing if item is last], bar)
    return Published(str(place), manifest, len(missing), len(right), size, kept_card, place.compared)


def _destination(to: str, private: bool) -> Destination:
    """Return the destination that a user named; raises `UserError`."""
    if is_hub(to):
        return Hub(to, private)
    if private:
        raise UserError(
            "--private is for a dataset of the hub", met=without_secrets(to), wanted="hf://datasets/OWNER/NAME"
        )
    if to.startswith("file:///"):
        return Folder(Path(unquote(to.removeprefix("file://"))))
    if not is_url(to):
        return Folder(Path(to))
    writable = [name for name, protocol in PROTOCOLS.items() if protocol.can_write]
    if to.partition(":")[0] not in writable:
        wanted = f"a folder, or {', '.join(f'{name}://' for name in ('hf', 'file', *writable))}"
        raise UserError("not a place to publish at", where=without_secrets(to), wanted=wanted)
    return Bucket(to)


def _files_of(folder: Path, manifest: Manifest, threads: int) -> list[Item]:
    """Return the files of a set in the order in which they are sent, the manifest last.

    Raises:
        UserError: a file is missing, or differs from its checksum.
    """
    expected = [(info.name, info.sha256) for info in manifest.shards]
    expected += [(INDEX, manifest.index_sha256), (LEDGER, manifest.ledger_sha256)]
    tables = read_tables(folder, manifest)
    for name in tables:
        check_file(folder / name, tables)
    expected += [(name, info.sha256) for name, info in sorted(tables.items())]
    unlisted = [LIST] if tables else [OBJECTS] if (folder / OBJECTS).exists() else []
    total = sum((folder / name).stat().st_size for name, _ in expected if (folder / name).is_file())
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc="checking", mininterval=0.5) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        waiting = [pool.submit(_checked, folder / name, checksum, bar.update) for name, checksum in expected]
        try:
            items = [one.result() for one in waiting]
        finally:
            pool.shutdown(cancel_futures=True)
    return items + [_checked(folder / name, None, lambda size: None) for name in (*unlisted, MANIFEST)]


def _checked(path: Path, checksum: str | None, tick: Callable[[int], object]) -> Item:
    """Return a file of the set as an item; raises `UserError` where it differs from its checksum."""
    try:
        size = path.stat().st_size
        digest = file_sha256(path)
    except OSError as error:
        raise UserError("cannot be read", where=str(path), met=str(error.strerror), do=check_set()) from None
    if checksum not in (None, digest):
        raise BadShard("SHA-256", where=str(path), met=digest, wanted=str(checksum), do=copy_changed())
    tick(size)
    return Item(path.name, size, digest, path)


def _make_way(place: Destination, sizes: Mapping[str, int], items: Sequence[Item], overwrite: bool) -> None:
    """Remove what stands there of another set, its manifest first; raises `UserError` where that was not asked for.

    Args:
        sizes: bytes of the files there, by name.
        items: files of this set, the manifest last.
    """
    names = {item.name for item in items}
    others = sorted(name for name in sizes if name.endswith((".tar", ".parquet")) and name not in names)
    manifest_of_another = MANIFEST in sizes and not place.right(items[-1:])
    if not manifest_of_another and not any(name.endswith(".tar") for name in others):
        return
    if not overwrite:
        met = MANIFEST if manifest_of_another else others[0]
        do = "give another --to, or --overwrite to replace it"
        raise UserError("another set stands there", where=str(place), met=met, do=do)
    place.remove([MANIFEST] if manifest_of_another else [])
    place.remove(others)


def _made(shards: ShardSet, place: Destination, licence: str | None, names: Sequence[str]) -> list[Item]:
    """Return the contact sheet, if the set has pictures, and the card; they follow from the set and the arguments."""
    known = licence_of(shards.manifest.source)
    sheet = contact_sheet(shards, _SHEET_SAMPLES, _SHEET_FRAMES)
    tables = [name for name in names if name.endswith(".parquet")]
    where = str(place) if is_url(str(place)) else ""
    name = shards.folder.resolve().name
    card = write_card(shards, name, where, known, licence or known.hub or "other", tables, sheet is not None)
    return [*([Item.of_bytes(SHEET, sheet)] if sheet else []), Item.of_bytes(CARD, card)]


def _send(place: Destination, items: Sequence[Item], bar: tqdm[NoReturn]) -> None:
    """Send the items and compare them; raises `UserError` where one is not right there."""
    if not items:
        return
    place.send(items, bar.update)
    right = place.right(items)
    if wrong := [item.name for item in items if item.name not in right]:
        more = f" and {len(wrong) - 1} more files" if len(wrong) > 1 else ""
        do = "the same command sends it again"
        raise BadShard(
            "not there as it was sent", where=str(place), met=f"{wrong[0]}{more}", wanted=place.compared, do=do
        )
