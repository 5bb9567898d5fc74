"""Vocabularies of odd kinds, for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import mom


def renumbered(tokenizer: mom.Tokenizer, ids: Sequence[int], folder: Path) -> mom.Tokenizer:
    """The tokenizer with ``ids[i]`` in place of id i."""
    content = json.loads(tokenizer.to_json())
    content["model"]["vocab"] = {token: int(ids[i]) for token, i in content["model"]["vocab"].items()}
    for added in content["added_tokens"]:
        added["id"] = int(ids[added["id"]])
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return mom.Tokenizer.load(path)
