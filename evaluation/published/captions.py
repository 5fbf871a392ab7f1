"""METEOR and CIDEr of captions, by pycocoevalcap where it and Java are installed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import shutil
from collections.abc import Mapping


def missing() -> str:
    """Return what captions cannot be measured without; "" where all of it is there."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "pycocoevalcap is not installed"
    return "" if shutil.which("java") else "Java is not installed"


def caption_scores(answers: Mapping[str, str], truths: Mapping[str, str]) -> dict[str, float]:
    """Return METEOR and CIDEr of N answers, as `COCOEvalCap` makes them.

    CIDEr depends on all true captions: it weighs words by how many of them hold them.

    Args:
        answers: texts by the id of their item.
        truths: of the same items.
    """
    tokenizer = importlib.import_module("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    scorers = {
        "METEOR": importlib.import_module("pycocoevalcap.meteor.meteor").Meteor(),
        "CIDEr": importlib.import_module("pycocoevalcap.cider.cider").Cider(),
    }
    found = {}
    with contextlib.redirect_stdout(io.StringIO()):
        pairs = [tokenizer.tokenize({key: [{"caption": texts[key]}] for key in truths}) for texts in (truths, answers)]
        for name, scorer in scorers.items():
            found[name] = float(scorer.compute_score(*pairs)[0])
    return found
