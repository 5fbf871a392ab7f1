"""How fast shards at a URL are read, as ratios to the same shards in a folder.

    python -m benchmarks.remote [--pairs 48] [--latency 20] [--threads 2] [--rounds 3]

A server on this machine answers each request after --latency ms. In each round the three take turns:
  local  the folder
  cold   the URL with an empty cache: opening the set, and an epoch
  warm   the URL with the cache that `cold` filled
The server is a process of its own and shares the processor.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from benchmarks.loading import BATCH, FIELDS
from demo.make_sav import write
from pipeline.request import make_request
from pipeline.run import run
from shards.storage.cache import Cache
from trainer.data.loader import Loader, LoaderOptions

SHARD_BYTES = 16_000_000


class DelayedHandler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: object, latency: float, **named: object) -> None:
        self.latency = latency
        super().__init__(*arguments, **named)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        time.sleep(self.latency)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


def serve(folder: str, latency: float) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(DelayedHandler, directory=folder, latency=latency))
    print(server.server_port, flush=True)
    server.serve_forever()


def epoch(path: str, threads: int, cache: Path | None = None) -> float:
    """Return the samples per second of an epoch, with the opening of the set."""
    started = time.perf_counter()
    opened = Cache(cache, 10**12) if cache else None
    options = LoaderOptions(fields=FIELDS, batch_size=BATCH, seed=0, threads=threads, cache=opened)
    loader = Loader([path], options)
    samples = sum(len(batch.keys) for batch in loader.epoch(0))
    return samples / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description="Rates of remote shards, as ratios to local ones.")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--latency", type=float, default=20.0, help="ms before each answer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "raw")
        out = Path(folder, "sav")
        write(raw, arguments.pairs)
        run(make_request("sav", raw, shard_bytes=SHARD_BYTES), out, 1, 0.0)
        size = sum(path.stat().st_size for path in out.glob("*.tar")) / arguments.pairs
        code = f"from benchmarks.remote import serve; serve({folder!r}, {arguments.latency / 1000})"
        server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/sav"
            rates: dict[str, list[float]] = {"local": [], "cold": [], "warm": []}
            epoch(str(out), arguments.threads)
            for number in range(arguments.rounds):
                cache = Path(folder, f"cache{number}")
                rates["local"].append(epoch(str(out), arguments.threads))
                rates["cold"].append(epoch(url, arguments.threads, cache))
                rates["warm"].append(epoch(url, arguments.threads, cache))
        finally:
            server.kill()
            server.wait()
        tars = len(list(out.glob("*.tar")))
        print(f"{arguments.pairs} samples of {size / 1e6:.2f} MB in {tars} tars, {arguments.latency:g} ms an answer")
        for name, values in rates.items():
            ratios = [rate / local for rate, local in zip(values, rates["local"], strict=True)]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"{name:6} {statistics.median(values):7.1f} samples/s  {statistics.median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    main()
