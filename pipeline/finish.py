"""The end of a set: when all its shards stand, its index, its ledger and, last, its manifest."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.plan import Outline, Plan, found_text, plan_digest
from pipeline.work import Work
from shards.archive import Entry
from shards.errors import UserError
from shards.format import INDEX, LEDGER, LOSSY, MANIFEST, VERSION
from shards.lossy import Psnr
from shards.manifest import LedgerLine, Manifest, pack_index, pack_ledger, sha256
from shards.program import command
from shards.storage.store import Store

_NAMED = 20


def finish(outline: Outline, work: Work, max_bad: float) -> Manifest:
    """Put down index, ledger and, last, the manifest: it says that the set is finished.

    Raises:
        UserError: too many bad inputs or no sample (the ledger is put down all the same), or shards are missing.
    """
    counts: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    shards, ledger, objects, missing = [], [], 0, set(outline.shards)
    first = ""  # input that was left out
    ratios = array("d")
    bad: list[LedgerLine] = []
    for shard, note in work.done(outline, outline.shards):
        missing.remove(shard)
        counts.update(note.notes)
        left_out.update(line.reason for line in note.ledger)
        bad += [line for line in note.ledger if line.bad]
        first = first or next((_told(line) for line in note.ledger), "")
        ledger.append(pack_ledger(note.ledger))
        shards += [note.shard] if note.entries else []
        objects += note.objects
        ratios.extend(ratio for entry in note.entries for ratio in entry.psnr)
    ledger_bytes = b"".join(ledger)
    if len(bad) > outline.allowed(max_bad):
        work.store.put(LEDGER, ledger_bytes)
        raise too_many_bad(outline, bad, max_bad, str(work.store))
    if missing:
        raise _shards_missing(outline, sorted(missing), str(work.store))

    if not shards:
        work.store.put(LEDGER, ledger_bytes)
        raise no_sample(left_out, str(work.store), first, outline.options, f"{work.store}/{LEDGER}")

    def entries() -> Iterator[list[Entry]]:
        return (note.entries for _, note in work.done(outline, outline.shards) if note.entries)

    index_bytes = pack_index(entries())
    manifest = Manifest(
        source=outline.source,
        recipe=outline.recipe,
        plan=outline.digest,
        options=outline.options,
        inputs=outline.inputs,
        samples=sum(shard.samples for shard in shards),
        objects=objects,
        left_out=dict(sorted(left_out.items())),
        notes=dict(sorted(counts.items())),
        shards=tuple(shards),
        index_sha256=sha256(index_bytes),
        ledger_sha256=sha256(ledger_bytes),
        codec=outline.codec,
        psnr=Psnr.of(ratios),
        version=outline.version,
    )
    for name, data in ((INDEX, index_bytes), (LEDGER, ledger_bytes), (MANIFEST, manifest.to_bytes())):
        work.store.put(name, data)
    work.remove()
    return manifest


def read_manifest(store: Store) -> Manifest:
    return Manifest.parse(store.read(MANIFEST), f"{store}/{MANIFEST}")


def finished_manifest(store: Store, plan: Plan) -> Manifest | None:
    """The manifest in `store`, if it is that of this plan, in any version of the format that is read.

    Raises `UserError` if one of its tars is gone.
    """
    try:
        manifest = read_manifest(store)
    except FileNotFoundError:
        return None
    old = manifest.version != VERSION
    digest = plan_digest(plan.job, plan.inputs, manifest.version) if old else plan.digest
    if manifest.plan != digest or manifest.codec != plan.job.codec or manifest.selection:
        return None
    if manifest.psnr and plan.job.codec not in LOSSY:  # recoded from a lossy one
        return None
    sizes = store.sizes()
    for shard in manifest.shards:
        if sizes.get(shard.name) != shard.bytes:
            met = f"{sizes[shard.name]} bytes" if shard.name in sizes else "missing"
            do = f"delete {MANIFEST} and give the same command with --overwrite"
            where, wanted = f"{store}/{shard.name}", f"{shard.bytes} bytes"
            raise UserError("shard of a finished set", where=where, met=met, wanted=wanted, do=do)
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
    met = f"{sum(left_out.values()):,} inputs left out: {reasons}; the first: {first}"
    if found := found_text(options.get("found", {})):
        met += f"; found: {found}"
    return UserError("not one sample", where=where, met=met, wanted="at least one", do=do)


def _told(line: LedgerLine) -> str:
    return f"{line.path}: {line.reason} ({line.detail})" if line.detail else f"{line.path}: {line.reason}"


def too_many_bad(outline: Outline, ledger: Sequence[LedgerLine], max_bad: float, place: str) -> UserError:
    bad = [line for line in ledger if line.bad]
    shown = " | ".join(map(_told, bad[:3]))
    return UserError(
        f"too many bad inputs, the first: {shown}",
        where=place,
        met=f"{len(bad)} of {outline.inputs}",
        wanted=f"at most {outline.allowed(max_bad)}",
        do=f"see {place}/{LEDGER}; raise --max-bad to go on",
    )


def _shards_missing(outline: Outline, missing: Sequence[int], place: str) -> UserError:
    names = ", ".join(outline.name(shard) for shard in missing[:_NAMED])
    names += f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    do = f"give its {command('shard')} command again"
    if outline.tasks > 1:
        tasks = sorted({shard % outline.tasks for shard in missing})
        do = f"run again of {outline.tasks} tasks: {','.join(map(str, tasks))}"
    met = f"{len(missing)} of {len(outline.shards)} missing: {names}"
    return UserError("shards are missing", where=place, met=met, do=f"{do}; then merge")
