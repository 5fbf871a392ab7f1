"""Similarity of texts, by a text model in a local folder, such as bert-base-uncased."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from evaluation.published.measures import Float
from shards.errors import UserError

_MOST_TOKENS = 512


class TextModel:
    """Embeds texts as GLaMM's `get_bert_embedding`: the mean of the last hidden states of all tokens.

    Args:
        folder: a model of `transformers` and its tokenizer. Nothing is downloaded, and no code in it is run.

    Raises:
        UserError: there is no such model.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError("no text model", where=str(folder), wanted="a folder with a model and its tokenizer")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise UserError("no text model", where=str(folder), met=(str(error).splitlines() or [""])[0]) from None
        self._model = model.float().eval()
        self._embed = lru_cache(maxsize=1 << 16)(self._embedding)

    def similarity(self, texts: Sequence[str], others: Sequence[str]) -> Float:
        """Return the cosine of the embeddings of each of T texts and each of A others: (T, A)."""
        found = np.zeros((len(texts), len(others)))
        for i, text in enumerate(texts):
            for j, other in enumerate(others):
                found[i, j] = self._embed(text) @ self._embed(other)
        return found

    @torch.no_grad()
    def _embedding(self, text: str) -> Float:
        tokens = self._tokenizer(text, return_tensors="pt", max_length=_MOST_TOKENS, truncation=True)
        states = self._model(**tokens).last_hidden_state[0]
        values = states.mean(dim=0).numpy().astype(np.float64)
        return values / max(float(np.linalg.norm(values)), np.finfo(np.float64).tiny)
