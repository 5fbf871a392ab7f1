"""The end of a set: when all its shards stand, its index, its ledger, its tables and, last, its manifest."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.dataset import RawDataset, found_text
from pipeline.plan import Plan
from pipeline.set_tables import write_tables
from pipeline.task import PartInfo, ShardNote
from pipeline.workspace import PLAN, Workspace
from shards.errors import UserError
from shards.format import INDEX, LEDGER, LOSSY, MANIFEST, VERSION, VERSION_WITHOUT_OBJECTS, Codec
from shards.lossy import Psnr
from shards.manifest import LedgerLine, Manifest, ShardInfo, pack_index, pack_ledger, sha256
from shards.program import command
from shards.storage.store import Store

_NAMED = 20  # missing shards in an error


class _Totals:
    """Sums over the notes of all shards. The notes themselves are not kept: those of a large set take much memory."""

    def __init__(self) -> None:
        self.shards: list[ShardInfo] = []
        self.parts: list[dict[str, PartInfo]] = []
        """Parts of the tables of each of them."""
        self.ledger = bytearray()
        self.bad: list[LedgerLine] = []
        self.left_out: Counter[str] = Counter()
        self.first = ""
        """The first input that was left out, and why."""
        self.notes: Counter[str] = Counter()
        self.objects = 0
        self.without_objects = 0
        """Number of samples without objects."""
        self.psnr = array("d")
        """PSNR in dB of each picture of a lossy set."""

    def add(self, note: ShardNote) -> None:
        if note.entries:
            self.shards.append(note.shard)
            self.parts.append(note.parts)
        self.ledger += pack_ledger(note.ledger)
        self.bad += [line for line in note.ledger if line.bad]
        self.left_out.update(line.reason for line in note.ledger)
        self.first = self.first or next((_ledger_text(line) for line in note.ledger), "")
        self.notes.update(note.notes)
        self.objects += note.objects
        self.without_objects += note.without_objects
        self.psnr.extend(psnr for entry in note.entries for psnr in entry.psnr)


def finish(plan: Plan, workspace: Workspace, max_bad: float) -> Manifest:
    """Write index, ledger, tables and, last, the manifest: it says that the set is finished.

    Raises:
        UserError: too many bad inputs or no sample (the ledger is written all the same), or shards are missing.
    """
    store = workspace.store
    totals = _Totals()
    missing = set(plan.shards)
    for shard, note in workspace.notes(plan, plan.shards):
        missing.remove(shard)
        totals.add(note)
    ledger = bytes(totals.ledger)
    if len(totals.bad) > plan.most_bad(max_bad):
        store.put(LEDGER, ledger)
        raise too_many_bad(plan, totals.bad, max_bad, str(store))
    if missing:
        raise _shards_missing(plan, sorted(missing), str(store))
    if not totals.shards:
        store.put(LEDGER, ledger)
        raise no_sample(totals.left_out, str(store), totals.first, plan.options, f"{store}/{LEDGER}")
    index = pack_index(note.entries for _, note in workspace.notes(plan, plan.shards) if note.entries)
    manifest = _manifest(plan, totals, sha256(index), sha256(ledger))
    store.put(INDEX, index)
    store.put(LEDGER, ledger)
    write_tables(workspace, manifest, totals.parts)
    store.put(MANIFEST, manifest.to_bytes())
    workspace.remove()
    return manifest


def _manifest(plan: Plan, totals: _Totals, index_sha256: str, ledger_sha256: str) -> Manifest:
    return Manifest(
        source=plan.source,
        recipe=plan.recipe,
        plan=plan.digest,
        options=plan.options,
        inputs=plan.inputs,
        samples=sum(shard.samples for shard in totals.shards),
        objects=totals.objects,
        left_out=dict(sorted(totals.left_out.items())),
        notes=dict(sorted(totals.notes.items())),
        shards=tuple(totals.shards),
        index_sha256=index_sha256,
        ledger_sha256=ledger_sha256,
        codec=plan.codec,
        psnr=Psnr.summarise(totals.psnr),
        version=VERSION_WITHOUT_OBJECTS if totals.without_objects else plan.version,
    )


def read_manifest(store: Store) -> Manifest:
    return Manifest.parse(store.read(MANIFEST), f"{store}/{MANIFEST}")


def codec_in_use(store: Store) -> Codec | None:
    """Return the codec of the set, finished or begun, in `store`; None where there is none."""
    for name in (MANIFEST, PLAN):
        try:
            data = store.read(name)
        except FileNotFoundError:
            continue
        where = f"{store}/{name}"
        return Manifest.parse(data, where).codec if name == MANIFEST else Plan.from_bytes(data, where).codec
    return None


def finished_manifest(store: Store, dataset: RawDataset) -> Manifest | None:
    """Return the manifest in `store`, if its set was made of this dataset, in any version of the format that is read.

    Raises:
        UserError: one of its tars is gone.
    """
    try:
        manifest = read_manifest(store)
    except FileNotFoundError:
        return None
    codec = dataset.job.codec
    digest = dataset.digest if manifest.version >= VERSION else dataset.digest_of(manifest.version)
    if manifest.plan != digest or manifest.codec != codec or manifest.selection:
        return None
    if manifest.psnr and codec not in LOSSY:  # recoded from a lossy one
        return None
    sizes = store.sizes()
    for shard in manifest.shards:
        if sizes.get(shard.name) != shard.bytes:
            raise UserError(
                "shard of a finished set",
                where=f"{store}/{shard.name}",
                met=f"{sizes[shard.name]} bytes" if shard.name in sizes else "missing",
                wanted=f"{shard.bytes} bytes",
                do=f"delete {MANIFEST} and give the same command with --overwrite",
            )
    return manifest


def no_sample(
    left_out: Mapping[str, int], where: str, first: str, options: Mapping[str, Any], ledger: str = ""
) -> UserError:
    """The error that no input becomes a sample.

    Args:
        left_out: number of inputs by reason.
        first: one of them, with its reason.
        options: of the source, with what it counted while it found the inputs.
        ledger: that names all of them.
    """
    reasons = ", ".join(
        f"{count:,} x {reason}" for reason, count in sorted(left_out.items(), key=lambda item: -item[1])
    )
    do = f"see {ledger}" if ledger else "see the source's page in docs/datasets/"
    summary = f"{sum(left_out.values()):,} inputs left out: {reasons}; the first: {first}"
    if found := found_text(options.get("found", {})):
        summary += f"; found: {found}"
    return UserError("not one sample", where=where, met=summary, wanted="at least one", do=do)


def _ledger_text(line: LedgerLine) -> str:
    return f"{line.path}: {line.reason} ({line.detail})" if line.detail else f"{line.path}: {line.reason}"


def too_many_bad(plan: Plan, ledger: Sequence[LedgerLine], max_bad: float, place: str) -> UserError:
    bad = [line for line in ledger if line.bad]
    shown = " | ".join(map(_ledger_text, bad[:3]))
    return UserError(
        f"too many bad inputs, the first: {shown}",
        where=place,
        met=f"{len(bad)} of {plan.inputs}",
        wanted=f"at most {plan.most_bad(max_bad)}",
        do=f"see {place}/{LEDGER}; raise --max-bad to go on",
    )


def _shards_missing(plan: Plan, missing: Sequence[int], place: str) -> UserError:
    names = ", ".join(plan.shard_name(shard) for shard in missing[:_NAMED])
    names += f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    do = f"give its {command('shard')} command again"
    if plan.tasks > 1:
        tasks = sorted({shard % plan.tasks for shard in missing})
        do = f"run again of {plan.tasks} tasks: {','.join(map(str, tasks))}"
    summary = f"{len(missing)} of {len(plan.shards)} missing: {names}"
    return UserError("shards are missing", where=place, met=summary, do=f"{do}; then merge")
