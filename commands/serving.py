"""The verb that opens a model to people: serve."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from typer import Option

from commands.options import Device, MaxNewTokens, ModelDtype, Propagate, Sam2, Tiles, VideoFrames
from commands.output import say
from shards.extras import extra, require


@extra("serve")
def serve(
    model: Annotated[
        str,
        Option(metavar="DIR", help="Folder of a Sa2VA, released or exported, or of a run; or OWNER/NAME on the hub."),
    ],
    host: Annotated[
        str, Option(help="Address to listen on. 0.0.0.0 lets other machines in; the page has no passwords.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, Option(min=1, max=65535, help="Port.  [default: the first free one from 7860 on]")
    ] = None,
    max_upload: Annotated[str, Option(metavar="SIZE", help="Largest picture or video that is taken.")] = "100MB",
    sessions: Annotated[
        int, Option(min=1, help="Conversations that are kept; the one idle longest ends for a new one.")
    ] = 8,
    tiles: Tiles = 1,
    max_new_tokens: MaxNewTokens = 2048,
    dtype: ModelDtype = None,
    device: Device = None,
    video_frames: VideoFrames = None,
    propagate: Propagate = None,
    sam2: Sam2 = None,
) -> None:
    """Open a page, and its API, on which people ask a Sa2VA about pictures and videos.

    Answers stream, masks lie over the picture, and regions are painted or pointed at. docs/SERVING.md has the details.
    """
    from shards.size import parse_size

    require("serve", "gradio", where="serve")
    upload = parse_size(max_upload, "--max-upload")
    from inference.loading import load
    from inference.predictor import Predictor
    from inference.recipes import explain
    from serving.limits import Limits
    from serving.server import check_address, serving, wait
    from trainer.released.folder import load_original_decoder

    check_address(host, port)
    loaded = load(model, device, dtype)
    say(explain(loaded, None), file=sys.stderr)
    if sam2 is not None:
        load_original_decoder(loaded.model, sam2)
    predictor = Predictor(
        loaded, most_tiles=tiles, max_new_tokens=max_new_tokens, video_frames=video_frames, propagate=propagate
    )
    limits = Limits(upload=upload, sessions=sessions)
    with serving(predictor, host=host, port=port, limits=limits, title=f"Ask {Path(model).name}", say=say) as address:
        say(f"{address}  (pictures and videos of at most {max_upload}; Ctrl-C stops)")
        wait()
    say("stopped")
