"""Uses hostile model folders, each in a forked process with bounds: `python hostile_models.py FOLDER STRIDE`.

Prints a line of JSON for each: name, exit code or signal, what was said. FOLDER is empty; of the cases every STRIDE-th.
"""

import json
import os
import resource
import shutil
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from checkpoint_examples import save

from dtl.checkpoints.load import load_model, load_tokenizer
from dtl.errors import DTLError
from dtl.generation.config import SamplingConfig
from dtl.generation.conversation import Continuation

PATIENCE_S = 30  # of processor time; only a reader that hangs takes it
MEMORY = 200 * 2**20  # in addition to twice the files
LOADED, REFUSED, TRACEBACK = 0, 3, 4
DIGITS = int("9" * 4299)

Case = tuple[str, Callable[[Path], object]]


def edited(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change a JSON file of a folder in place."""

    def write(folder: Path) -> None:
        contents = json.loads((folder / name).read_text())
        change(contents)
        (folder / name).write_text(json.dumps(contents))

    return write


def set_at(place: str, value: object) -> Callable[[dict[str, Any]], object]:
    """Set the value at a dotted place."""

    def change(contents: dict[str, Any]) -> None:
        *above, last = place.split(".")
        for key in above:
            contents = contents[key] if isinstance(contents.get(key), dict) else contents.setdefault(key, {})
        contents[last] = value

    return change


VALUES: dict[str, object] = {
    "true": True, "5": 5, "0": 0, "-1": -1, "1e12": 10**12, "digits": DIGITS, "1.5": 1.5,
    "inf": float("inf"), "nan": float("nan"), "text": "x", "null": None, "list": [5], "object": {"a": 1},
    "negative digits": -DIGITS,
}  # fmt: skip
CONFIG_KEYS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("intermediate_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_parameters", "rope_scaling"),
    *("layer_types", "tie_word_embeddings", "attention_dropout", "hidden_act", "use_sliding_window", "model_type"),
    *("eos_token_id", "bos_token_id", "pad_token_id", "dtl", "dtl.dropout"),
)
PRE_TOKENIZERS: list[object] = [
    {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": ""}, "behavior": "Removed", "invert": False},
    {"type": "FixedLength", "length": 0},
    {"type": "Sequence", "pretokenizers": []},
    {"type": "Punctuation", "behavior": 5},
    {"type": "Metaspace", "replacement": "", "prepend_scheme": "always", "split": True},
]
NORMALIZERS: list[object] = [
    {"type": "Precompiled", "precompiled_charsmap": ""},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Precompiled", "precompiled_charsmap": "/////w=="},
    {"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 1000},
    {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
    {"type": "Prepend", "prepend": "x" * 10**6},
    {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}] * 10_000},
]
DECODERS: list[object] = [
    {"type": "Replace", "pattern": {"Regex": ""}, "content": "y" * 1000},
    {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9},
    {"type": "Strip", "content": " ", "start": 1, "stop": 1},
    {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True},
    {"type": "ByteFallback"},
    {"type": "WordPiece", "prefix": "", "cleanup": True},
    {"type": "BPEDecoder", "suffix": ""},
    {"type": "Metaspace", "replacement": "", "prepend_scheme": "always"},
]
MODELS: list[object] = [
    {"type": "BPE", "vocab": {}, "merges": []},
    {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": ["a b"]},
    {"type": "BPE", "vocab": {"a": 0, "ab": 2}, "merges": ["a b"]},
    {"type": "BPE", "vocab": {"a": 4294967295}, "merges": []},
    {"type": "BPE", "vocab": {"a": 10**12}, "merges": []},
    {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 5.0},
    {"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "missing", "fuse_unk": True},
    {"type": "BPE", "vocab": {"a": 0}, "merges": [], "byte_fallback": True},
    {
        "type": "WordPiece",
        "unk_token": "missing",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 0,
        "vocab": {"a": 0},
    },
    {
        "type": "WordPiece",
        "unk_token": "a",
        "continuing_subword_prefix": "",
        "max_input_chars_per_word": 10**18,
        "vocab": {"a": 0, "": 1},
    },
    {"type": "WordLevel", "vocab": {}, "unk_token": "missing"},
    {"type": "Unigram", "unk_id": 5, "vocab": [["a", 0.0]], "byte_fallback": False},
    {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]], "byte_fallback": True},
    {"type": "Unigram", "unk_id": 0, "vocab": [], "byte_fallback": False},
    {"type": "Unigram", "unk_id": 0, "vocab": [["", 0.0], ["a", -1e300]], "byte_fallback": False},
    {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 1e308], ["a", -1e308]], "byte_fallback": False},
]
PADDINGS: list[object] = [
    {
        "strategy": {"Fixed": size},
        "direction": "Right",
        "pad_to_multiple_of": multiple,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    for size, multiple in ((10**13, None), (2**63, None), (0, 0), (1, 2**62), (10**9, None))
]
TRUNCATIONS: list[object] = [
    {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": stride}
    for length, stride in ((0, 0), (1, 1), (1, 2**63), (2**63, 5), (2, 9))
]
POST: list[object] = [
    {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "missing", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    },
    {
        "type": "TemplateProcessing",
        "single": [],
        "pair": [],
        "special_tokens": {"a": {"id": "a", "ids": [10**9], "tokens": ["b"]}},
    },
    {"type": "ByteLevel", "add_prefix_space": 5, "trim_offsets": True, "use_regex": True},
    {"type": "Sequence", "processors": [{"type": "ByteLevel"}] * 100_000},
]


def added(tokens: list[dict[str, Any]]) -> Callable[[dict[str, Any]], object]:
    plain = {"special": False, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return lambda contents: contents["added_tokens"].extend(plain | token for token in tokens)


ADDED: dict[str, list[dict[str, Any]]] = {
    "beyond the model": [{"id": 300, "content": "zebra"}],
    "far beyond": [{"id": 4294967295, "content": "zebra"}],
    "too large": [{"id": 10**15, "content": "zebra"}],
    "empty": [{"id": 300, "content": ""}],
    "normalized empty": [{"id": 300, "content": " ", "normalized": True, "lstrip": True, "rstrip": True}],
    "duplicates": [{"id": 300, "content": "zebra"}, {"id": 300, "content": "gnu"}],
    "of a letter": [{"id": 5, "content": "a"}],
    "many": [{"id": 300 + n, "content": f"zebra{n}"} for n in range(20_000)],
    "a long one": [{"id": 300, "content": "z" * 10**6}],
}


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change the header of the weights, without a change of their bytes."""

    def write(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        contents = json.loads(data[8 : 8 + size])
        change(contents)
        text = json.dumps(contents).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return write


def first_tensor(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda contents: next(entry for name, entry in contents.items() if name != "__metadata__").update(
        {key: value}
    )


def raw(name: str, contents: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(contents)


def sharded(index: bytes) -> Callable[[Path], object]:
    """Replace the weights by an index of shards."""
    name = "model.safetensors"
    return lambda folder: (folder / name).rename(folder / f"{name}.index.json").write_bytes(index)


def filled(value: float, tensor: str = "") -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        for name in tensors:
            if tensor in name:
                tensors[name].fill_(value)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return write


HEADERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a million dimensions": first_tensor("shape", [1] * 1_300_000),
    "doubling dimensions": first_tensor("shape", [2] * 1_300_000),
    "dimensions of zero": first_tensor("shape", [0] * 100_000),
    "shape digits": first_tensor("shape", [DIGITS]),
    "shape negative": first_tensor("shape", [-1, -1]),
    "shape float": first_tensor("shape", [1.5]),
    "shape true": first_tensor("shape", [True]),
    "shape text": first_tensor("shape", "12"),
    "shape 2^63": first_tensor("shape", [2**32, 2**31]),
    "shape null": first_tensor("shape", None),
    "shape nested": first_tensor("shape", [[1]]),
    "dtype": first_tensor("dtype", "F8_E8M0"),
    "dtype I64": first_tensor("dtype", "I64"),
    "dtype text": first_tensor("dtype", "\x1b[2J"),
    "offsets": first_tensor("data_offsets", [5, 1]),
    "offsets digits": first_tensor("data_offsets", [0, DIGITS]),
    "offsets overlap": first_tensor("data_offsets", [0, 10]),
    "many tensors": lambda contents: contents.update(
        {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(50_000)}
    ),
    "metadata": lambda contents: contents.update({"__metadata__": {"a": "x" * 3_000_000}}),
    "metadata list": lambda contents: contents.update({"__metadata__": [1]}),
}
OTHER: dict[str, Callable[[Path], object]] = {
    "weights empty": raw("model.safetensors", b""),
    "weights huge header": raw("model.safetensors", struct.pack("<Q", 2**62) + b"{}"),
    "weights list": raw("model.safetensors", struct.pack("<Q", 2) + b"[]"),
    "weights nested": raw("model.safetensors", struct.pack("<Q", 100_000) + b"[" * 100_000),
    "weights digits": raw("model.safetensors", struct.pack("<Q", 5010) + b'{"a": ' + b"9" * 5003 + b"}"),
    "weights duplicate": raw("model.safetensors", struct.pack("<Q", 13) + b'{"a":1,"a":1}'),
    "weights nan": filled(float("nan")),
    "weights inf": filled(float("inf"), "norm"),
    "weights 3e38": filled(3e38),
    "weights nan in the embedding": filled(float("nan"), "embed"),
    "index": sharded(b'{"weight_map": {"a": "../x.safetensors"}}'),
    "index nested": sharded(b"[" * 100_000),
    "tokenizer nested": raw("tokenizer.json", b"[" * 100_000),
    "tokenizer objects": raw("tokenizer.json", b'{"a":' * 100_000),
    "tokenizer empty": raw("tokenizer.json", b""),
    "tokenizer nul": raw("tokenizer.json", b"\0" * 100),
    "settings nested": raw("tokenizer_config.json", b"[" * 100_000),
    "settings digits": edited("tokenizer_config.json", set_at("eos_token", DIGITS)),
    "settings surrogate": edited("tokenizer_config.json", set_at("eos_token", "\ud800")),
    "settings kind": edited("tokenizer_config.json", set_at("dtl_kind", "\x1b[2J")),
    "config nested": raw("config.json", b"[" * 100_000),
    "config nan": raw("config.json", b'{"model_type": NaN}'),
    "config twice": raw("config.json", b'{"model_type": "qwen3", "model_type": "gpt2"}'),
    "generation": edited("generation_config.json", set_at("eos_token_id", DIGITS)),
}  # fmt: skip


def cases() -> Iterator[Case]:
    for key in CONFIG_KEYS:
        for name, value in VALUES.items():
            yield f"config {key}={name}", edited("config.json", set_at(key, value))
    for section, entries in (
        ("pre_tokenizer", PRE_TOKENIZERS), ("normalizer", NORMALIZERS), ("decoder", DECODERS), ("model", MODELS),
        ("padding", PADDINGS), ("truncation", TRUNCATIONS), ("post_processor", POST),
    ):  # fmt: skip
        for n, entry in enumerate(entries):
            yield f"{section} {n}", edited("tokenizer.json", set_at(section, entry))
        yield f"{section} true", edited("tokenizer.json", set_at(section, True))
    for n, (model, decoder) in enumerate((m, d) for m in MODELS for d in DECODERS[:2]):
        yield (
            f"model and decoder {n}",
            edited("tokenizer.json", lambda c, m=model, d=decoder: c.update(model=m, decoder=d)),
        )
    for name, tokens in ADDED.items():
        yield f"added {name}", edited("tokenizer.json", added(tokens))
    for name, change in HEADERS.items():
        yield f"header {name}", header(change)
    yield from OTHER.items()


def use(folder: Path) -> None:
    """Everything that chat and generate do with a folder."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    ids = tokenizer.encode("a b zebra \u65e5\u672c 12\n\n" + "a" * 40 + "!")
    tokenizer.decode(list(range(min(300, tokenizer.vocab_size))))
    "".join(Continuation(model, tokenizer, ids, SamplingConfig(max_new_tokens=5), 0))


def outcome(folder: Path, n_bytes: int) -> tuple[int, str]:
    """Use the folder in a forked process; its exit code (a signal as negative) and what it wrote to standard error."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(writing, 2)
        pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (pages + 2 * n_bytes + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE_S, PATIENCE_S))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = TRACEBACK
        try:
            use(folder)
            code = LOADED
        except DTLError as error:
            code = REFUSED
            os.write(2, str(error).encode(errors="replace")[:4000])
        except BaseException:
            os.write(2, traceback.format_exc().encode(errors="replace")[-2000:])
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status), said.decode(errors="replace")


def main() -> None:
    root, stride = Path(sys.argv[1]), int(sys.argv[2])
    whole = save(root / "run", 1)
    for name in ("manifest.json", "state.json", "optimizer.safetensors", "config.yaml"):
        (whole / name).unlink()
    use(whole)  # warm: what is imported late is imported before the forks
    for number, (name, damage) in enumerate([("nothing", lambda folder: None), *cases()]):
        if number % stride and name not in sys.argv[3:]:
            continue
        folder = root / "damaged"
        shutil.copytree(whole, folder)
        damage(folder)
        n_bytes = sum(file.stat().st_size for file in folder.iterdir())
        before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        code, said = outcome(folder, n_bytes)
        seconds = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before
        print(json.dumps({"name": name, "code": code, "said": said, "seconds": round(seconds, 2)}), flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    main()
