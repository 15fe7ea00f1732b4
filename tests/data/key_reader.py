"""Computes cache keys with a copy of DTL: `python key_reader.py FOLDER`, where the copy and plugins lie.

For every line it is sent it computes them anew from the files as they are then, and answers a JSON line: kind -> key.
"""

import json
import sys
from typing import Any

PLUGINS = {"verses": "my_lab.verses", "poems": "poems"}  # kind of source -> module


def main(folder: str) -> None:
    sys.path[:0] = [folder]
    import dtl
    from dtl.data import code_key, collect, encode, pack
    from dtl.data.config import DataConfig, SourceConfig, TokenizerConfig
    from dtl.data.sources import SourcePlan
    from dtl.data.tokenizers import tokenizer
    from dtl.registry import SOURCES, load_plugins

    assert dtl.__file__.startswith(folder)
    load_plugins(PLUGINS.values())
    byte = tokenizer.build_tokenizer(TokenizerConfig(kind="byte"), lambda: ())
    classes: dict[str, Any] = {kind: SOURCES.get(kind) for kind in ("qa", "text", "wiki", "hub", *PLUGINS)}

    def of_text(kind: str) -> str | None:
        data = DataConfig(sources={"some": SourceConfig(kind)})
        plan = SourcePlan("some", data.sources["some"], classes[kind].__new__(classes[kind]), None)
        return collect.text_key(plan, data, "f", 1e6)

    for _ in sys.stdin:
        code_key.code_of.cache_clear()
        keys = {kind: of_text(kind) for kind in classes}
        keys["tokens"] = encode.tokens_key("t", byte, None)
        keys["tokenizer"] = encode.tokenizer_key({"some": "t"}, TokenizerConfig(kind="bpe"))
        keys["fingerprint"] = pack.fingerprint_key(["t"], (), [])
        print(json.dumps(keys), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
