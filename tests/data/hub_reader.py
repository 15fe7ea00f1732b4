"""Reads what it is told to read from the hub at HF_ENDPOINT: `python hub_reader.py`, a JSON request a line.

A process of its own, since the hub's libraries take the address from the environment when they are imported.
Answers a JSON line: the texts by split, notes and tokens; or the error for people.
"""

import hashlib
import json
import sys
import time
from typing import Any

from dtl.data import collect
from dtl.data.cache import Cache, cache_folder
from dtl.data.config import DataConfig, SourceConfig, TokenizerConfig
from dtl.data.encode import encode_sources
from dtl.data.hub import stream as hub_stream
from dtl.data.sources import plan_sources
from dtl.errors import DTLError


def answer(request: dict[str, Any]) -> dict[str, Any]:
    hub_stream.STALL_S = request.get("stall_s", 60)
    hub_stream.READ_ATTEMPTS = request.get("attempts", 3)
    hub_stream.PAUSE_S = 0.1
    collect.MIN_CHARACTERS = 1_000
    settings = {"cache_dir": request["cache"], "validation_fraction": 0.1, **request.get("data", {})}
    data = DataConfig(sources={"some": SourceConfig(**{"kind": "hub", **request["source"]})}, **settings)
    data.validate()
    seed = request.get("seed", 1)
    began = time.monotonic()
    try:
        if request.get("open_only"):
            kept = collect.pinned(data, plan_sources(data, seed))
            seconds = time.monotonic() - began
            return {"commits": kept.commits, "revision": kept.sources["some"].revision, "seconds": seconds}
        cache = Cache(cache_folder(request["cache"]))
        _, sources = encode_sources(
            data, plan_sources(data, seed), TokenizerConfig(kind="byte"), 16, seed, cache, lambda line: None
        )
    except DTLError as error:
        return {"error": str(error), "seconds": time.monotonic() - began}
    source = sources["some"]
    tokens = {split: hashlib.sha256(of_split.tokens.tobytes()).hexdigest() for split, of_split in source.tokens.items()}
    return {
        "texts": {split: [document.text for document in texts] for split, texts in source.texts.splits.items()},
        "notes": [*source.texts.facts.get("read", []), *source.texts.facts["notes"]],
        "read": source.texts.facts["counts"]["train"]["read"],
        "tokens": tokens,
        "key": source.key,
        "seconds": time.monotonic() - began,
    }


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
