"""Tokenizers of released folders, with the tokens that Sa2VA adds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from shards.errors import UserError
from trainer.released.files import read_json

_CONFIG = "tokenizer_config.json"
_FAST = "tokenizer.json"
_SPM = "tokenizer.model"
_FILES = (_CONFIG, _FAST, _SPM, "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a released folder. None of the folder's code is run.

    Raises:
        UserError: its files are missing or broken, or it is of a kind that only its own code could read.
    """
    config = read_json(folder / _CONFIG)
    try:
        if str(config.get("tokenizer_class")).startswith("InternLM2"):
            return _internlm2_tokenizer(folder, config)
        # Not AutoTokenizer, which needs a model's type and asks whether it may run the folder's code.
        kind = getattr(transformers, str(config.get("tokenizer_class")), None)
        if not (isinstance(kind, type) and issubclass(kind, PreTrainedTokenizerBase)):
            kind = PreTrainedTokenizerFast
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(str(folder), local_files_only=True)
        return tokenizer
    except UserError:
        raise
    except BaseException as error:  # a tokenizer's files have many ways to be broken
        if not is_fault(error):
            raise
        reason = f"{config.get('tokenizer_class')}: {(str(error).splitlines() or [''])[0]}"
        expected = "a tokenizer that transformers knows, or InternLM2's"
        raise UserError("cannot be read as a tokenizer", where=str(folder), met=reason, wanted=expected) from None


def is_fault(error: BaseException) -> bool:
    """Whether an exception is about the content of a file. tokenizers' Rust panics are no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, source: Path | None, folder: Path) -> None:
    """Write a tokenizer's files: those of the folder `source`, with the added tokens; new ones where it is None."""
    if source is None:
        tokenizer.save_pretrained(str(folder))
        return
    for name in (*_FILES, "chat_template.jinja"):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    known = load_tokenizer(source).get_vocab()
    new = {
        i: token for token, i in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]) if token not in known
    }
    if not new:
        return
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}

    def edit(name: str, change: Any) -> None:
        if (folder / name).exists():
            content = read_json(folder / name)
            change(content)
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def list_special(content: dict[str, Any]) -> None:
        content["additional_special_tokens"] = [*content.get("additional_special_tokens", []), *new.values()]

    def describe(content: dict[str, Any]) -> None:
        content.setdefault("added_tokens_decoder", {}).update(
            {str(i): {"content": token, **plain} for i, token in new.items()}
        )
        list_special(content)

    edit(_CONFIG, describe)
    edit("special_tokens_map.json", list_special)
    edit("added_tokens.json", lambda content: content.update({token: i for i, token in new.items()}))
    edit(_FAST, lambda c: c["added_tokens"].extend({"id": i, "content": t, **plain} for i, t in new.items()))


def _internlm2_tokenizer(folder: Path, config: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Build InternLM2's SentencePiece model as BPE with byte fallback: pieces of high score are merged first."""
    from sentencepiece import sentencepiece_model_pb2

    protocol: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    model = protocol.ModelProto()
    model.ParseFromString((folder / _SPM).read_bytes())
    spec = model.normalizer_spec
    if (
        model.trainer_spec.model_type != model.trainer_spec.BPE
        or spec.precompiled_charsmap
        or spec.remove_extra_whitespaces
    ):
        expected = "BPE without normalisation, as InternLM2's"
        raise UserError("another kind of SentencePiece model", where=str(folder / _SPM), wanted=expected)
    added = {int(i): AddedToken(**token) for i, token in (config.get("added_tokens_decoder") or {}).items()}
    pieces = [added[i].content if i in added else piece.piece for i, piece in enumerate(model.pieces)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    scored = [(p.score, p.piece) for p in model.pieces if p.type == p.NORMAL]
    merges = [
        (piece[:cut], piece[cut:])
        for _, piece in sorted(scored, key=lambda pair: -pair[0])
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=model.trainer_spec.unk_piece, fuse_unk=True, byte_fallback=True)
    )
    spaces = [normalizers.Replace(" ", _SPACE)]
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), *spaces] if spec.add_dummy_prefix else spaces
    )
    parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else parts)
    tokenizer.add_special_tokens([token for _, token in sorted(added.items())])
    wrong = [token.content for i, token in added.items() if tokenizer.token_to_id(token.content) != i]
    if wrong:
        raise UserError("added tokens are not where they should be", where=str(folder / _CONFIG), met=", ".join(wrong))
    marks = {f"{name}_token": _text(config.get(f"{name}_token")) for name in ("bos", "eos", "unk", "pad")}
    if config.get("add_bos_token", True) and marks["bos_token"]:
        bos = marks["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in marks.items() if v})


def _text(token: Any) -> str | None:
    return token["content"] if isinstance(token, dict) else token
