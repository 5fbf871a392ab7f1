"""The verb that opens shard sets to people: browse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from commands.options import Where
from commands.output import say
from shards.extras import extra, require


@extra("browse")
def browse(
    paths: Annotated[list[str], Argument(metavar="PATH", help="Shard sets, folders of sets, or patterns.")],
    port: Annotated[
        int | None, Option(min=1, max=65535, help="Port.  [default: the first free one from 8860 on]")
    ] = None,
    where: Where = None,
    predictions: Annotated[
        Path | None,
        Option(metavar="FILE", help="Predictions to show: of evaluate --predictions, or of benchmark."),
    ] = None,
    marks: Annotated[
        Path | None,
        Option(metavar="FILE", help="File of the marks of all sets.  [default: runs/browse/NAME.marks.jsonl for each]"),
    ] = None,
) -> None:
    """Look through shard sets on a page of this machine: a grid of samples, masks and texts.

    docs/BROWSING.md has the details.
    """
    from concurrent.futures import ThreadPoolExecutor
    from urllib.parse import urlencode

    require("browse", "starlette", "uvicorn", where="browse")
    from browsing.collection import Collection

    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(Collection.open, paths)  # the checksum of a large index takes as long as the imports
        from browsing.app import make_app
        from browsing.marks import Marks
        from browsing.server import HOST, listen, run
    collection = opening.result()
    with listen(port) as opened:
        shared = Marks(marks) if marks else None
        kept = {name: shared or Marks(Path("runs/browse", f"{name}.marks.jsonl")) for name in collection.sets}
        predicted = None
        if predictions:
            from browsing.predicted import PredictedFile

            predicted = PredictedFile(predictions, collection)
        start = {"where": where} if where else {}
        if where:
            for line in collection.explain(where):
                say(line)
        address = f"http://{HOST}:{opened.getsockname()[1]}/" + (f"?{urlencode(start)}" if start else "")
        say(f"{address}  (Ctrl-C stops)")
        run(make_app(collection, kept, start, predicted), opened, say)
