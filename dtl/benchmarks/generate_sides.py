"""One side of suite=generate, a program of its own: texts continued greedily by one library, timed on one thread.

python -m dtl.benchmarks.generate_sides '{"side": "dtl", "batch_size": 1, ...}'

Prints one line of JSON: seconds, new tokens, the numbers that the matrices hold. On a CPU the seconds are those of the
processor, which a wait for other programs does not lengthen. All sides have the same random weights and prompts.
"""

import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dtl.base.runtime import choose_device, seed_everything
from dtl.benchmarks.measuring import MissingPeerError, peer
from dtl.errors import DTLError
from dtl.generation.config import SamplingConfig
from dtl.generation.decoder import Decoder, choose_weights, transpose_for_decoding
from dtl.generation.engine import generate
from dtl.model.presets import load_preset
from dtl.model.transformer import TransformerLM

if TYPE_CHECKING:
    import numpy as np

Texts = list[list[int]]
Write = Callable[[int], Texts]  # number of new tokens -> the new tokens of each prompt
NEVER = -1  # stop id that matches no token: every text reaches its full length
WARM_UP = 4  # new tokens before the timed ones


@dataclass(frozen=True)
class Continuing:
    """What a side is to do."""

    side: str  # dtl | hf | llamacpp_f16
    arch: str
    model: str  # preset
    size: dict[str, Any]  # in addition to the preset, or instead of it
    vocab_size: int
    batch_size: int
    n_prompt: int
    n_new: int
    weights: str  # generation.weights of DTL; the peers have those of their name
    seed: int
    device: str


@dataclass(frozen=True)
class Written:
    """What a side did."""

    seconds: float  # for all new tokens, the prompts included
    texts: Texts
    numbers: str


def written(work: Continuing) -> Written:
    """Do the work in this process."""
    torch.set_num_threads(1)
    seed_everything(work.seed)
    device, _ = choose_device(work.device)
    model = random_model(work).to(device)
    prompts = torch.randint(0, model.vocab_size, (work.batch_size, work.n_prompt)).tolist()
    with tempfile.TemporaryDirectory(prefix="dtl-bench-") as folder:
        write, numbers = SIDES[work.side](work, model, prompts, Path(folder))
        write(min(WARM_UP, work.n_new))
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        began = clock()
        texts = write(work.n_new)
        return Written(clock() - began, texts, numbers)


def random_model(work: Continuing) -> TransformerLM:
    """Return the preset with weights under which a text has many distinct tokens."""
    context = work.n_prompt + work.n_new
    config = load_preset(work.model, arch=work.arch, tie_embeddings=False, max_seq_len=context, **work.size)
    model = TransformerLM(config, work.vocab_size)
    for module in model.modules():
        if isinstance(module, nn.Linear):  # initial weights: blocks without effect, a head of zeros
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    return model.eval()


# --- DTL ----------------------------------------------------------------------------------------------------------


def dtl(work: Continuing, model: TransformerLM, prompts: Texts, folder: Path) -> tuple[Write, str]:
    """DTL as chat and generate load a model."""
    weights = choose_weights(model, work.weights)
    if weights.form == "fp32":
        transpose_for_decoding(model)
    decoder = Decoder(model, weights, share=True)

    def write(n_new: int) -> Texts:
        greedy = SamplingConfig(temperature=0, top_k=None, max_new_tokens=n_new)
        return generate(model, prompts, greedy, NEVER, decoder=decoder)

    return write, str(weights)


# --- Hugging Face -------------------------------------------------------------------------------------------------


def hf(work: Continuing, model: TransformerLM, prompts: Texts, folder: Path) -> tuple[Write, str]:
    """Hugging Face's `generate` on the same weights in fp32."""
    transformers = peer("transformers", "pip install transformers")
    transformers.utils.logging.set_verbosity_error()
    return twin_writer(twin_of(model, transformers), prompts), "fp32"


def twin_of(model: TransformerLM, transformers: Any) -> Any:
    """Return Hugging Face's model with the same weights, on the same device, without a stop token."""
    from dtl.model.hf import hf_config, to_hf

    settings = hf_config(model.config, model.vocab_size, eos_id=0, bos_id=0, pad_id=0)
    twin = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**settings)).eval()
    twin.load_state_dict(to_hf(model), strict=True)
    twin.generation_config.eos_token_id = None
    return twin.to(next(model.parameters()).device)


def twin_writer(twin: Any, prompts: Texts) -> Write:
    """Return a function that continues the prompts greedily with Hugging Face's `generate`."""
    ids_bt = torch.tensor(prompts, device=twin.device)
    mask_bt = torch.ones_like(ids_bt)

    def write(n_new: int) -> Texts:
        written_bt = twin.generate(ids_bt, attention_mask=mask_bt, max_new_tokens=n_new, do_sample=False)
        return written_bt[:, ids_bt.shape[1] :].tolist()

    return write


# --- llama.cpp ----------------------------------------------------------------------------------------------------
# Wheels of llama.cpp need a newer C library than Debian 12's, so its libraries are loaded from a folder.

LLAMA_CPP_LIB = "LLAMA_CPP_LIB"  # environment variable: folder of libllama*.so and libggml*.so
LIBRARIES = ("libggml-base", "libggml", "libllama")  # in the order in which they need each other
LLAMA_CPP_HINT = (
    "npm install --ignore-scripts @node-llama-cpp/linux-x64@3.22.1 && pip install gguf==0.19.0 "
    f"llama_cpp_py_sync==0.11739, and {LLAMA_CPP_LIB}=node_modules/@node-llama-cpp/linux-x64/bins/linux-x64"
)


def llama_cpp() -> tuple[Any, Any, Any]:
    """Return cffi's interface, llama.cpp's library and gguf. Raises MissingPeerError."""
    folder = Path(os.environ.get(LLAMA_CPP_LIB, "/nowhere"))
    names = [next(iter(sorted(folder.glob(f"{name}.*so*"))), None) for name in LIBRARIES]
    if None in names:
        raise MissingPeerError(f"install llama.cpp: {LLAMA_CPP_HINT}")
    gguf = peer("gguf", LLAMA_CPP_HINT)
    ffi = peer("llama_cpp_py_sync._cffi_bindings", LLAMA_CPP_HINT).get_ffi()
    ctypes = importlib.import_module("ctypes")
    base, ggml, llama = names
    for file in (base, ggml, llama):
        ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(ggml)).ggml_backend_load_all_from_path(str(folder).encode())  # else it has no CPU backend
    return ffi, ffi.dlopen(str(llama)), gguf


def llamacpp_f16(work: Continuing, model: TransformerLM, prompts: Texts, folder: Path) -> tuple[Write, str]:
    """llama.cpp on the same weights in f16, through its C interface; the most likely token by NumPy."""
    ffi, lib, gguf = llama_cpp()
    file = folder / "model.gguf"
    write_gguf(model, gguf, file)
    silent = ffi.callback("void(int, const char *, void *)", lambda *_: None)
    lib.llama_log_set(ffi.cast("ggml_log_callback", silent), ffi.NULL)
    lib.llama_backend_init()
    loaded = lib.llama_model_load_from_file(str(file).encode(), lib.llama_model_default_params())
    settings = lib.llama_context_default_params()
    n_slots = work.batch_size * (work.n_prompt + work.n_new)
    settings.n_ctx, settings.n_batch, settings.n_ubatch = n_slots, max(512, work.batch_size * work.n_prompt), 512
    settings.n_seq_max, settings.n_threads, settings.n_threads_batch = work.batch_size, 1, 1
    settings.kv_unified = True
    context = lib.llama_init_from_model(loaded, settings)
    if context == ffi.NULL:
        raise DTLError("llama.cpp did not load the exported model.")
    batch = lib.llama_batch_init(work.batch_size * work.n_prompt, 0, 1)

    def decode(texts: Texts, at: int) -> "list[np.ndarray]":
        """Feed each text's tokens, the first at position `at`; logits after each text."""
        last = []
        batch.n_tokens = 0
        for number, text in enumerate(texts):
            for offset, token in enumerate(text):
                i = batch.n_tokens
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, at + offset, 1
                batch.seq_id[i][0], batch.logits[i] = number, int(offset == len(text) - 1)
                batch.n_tokens += 1
            last.append(batch.n_tokens - 1)
        if lib.llama_decode(context, batch):
            raise DTLError("llama.cpp did not decode.")
        size = 4 * model.vocab_size
        numpy = importlib.import_module("numpy")
        return [numpy.frombuffer(ffi.buffer(lib.llama_get_logits_ith(context, i), size), numpy.float32) for i in last]

    def write(n_new: int) -> Texts:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        texts: Texts = [[] for _ in prompts]
        logits = decode(prompts, 0)
        for step in range(n_new):
            for text, logits_v in zip(texts, logits, strict=True):
                text.append(int(logits_v.argmax()))
            if step + 1 < n_new:
                logits = decode([text[-1:] for text in texts], work.n_prompt + step)
        return texts

    return write, "f16"


def write_gguf(model: TransformerLM, gguf: Any, file: Path) -> None:
    """Write a model of arch=modern as Qwen3 with matrices in f16, and tokens that are numbers."""
    from dtl.model.hf import to_hf

    config = model.config
    writer = gguf.GGUFWriter(str(file), "qwen3")
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.resolved_ffn_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.resolved_n_kv_heads)
    writer.add_key_length(config.resolved_head_dim)
    writer.add_value_length(config.resolved_head_dim)
    writer.add_rope_dimension_count(config.resolved_head_dim)
    writer.add_rope_freq_base(config.arch.rope_theta)
    writer.add_layer_norm_rms_eps(config.arch.norm_eps)
    writer.add_vocab_size(model.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{number}" for number in range(model.vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * model.vocab_size)
    writer.add_token_merges(["Ā Ā"])  # none would be an empty list, which is not written
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.n_layers)
    for name, tensor in to_hf(model).items():
        values = tensor.detach().contiguous().numpy()
        values = values.astype("float16") if values.ndim == 2 else values
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


Side = Callable[[Continuing, TransformerLM, Texts, Path], tuple[Write, str]]
SIDES: dict[str, Side] = {"dtl": dtl, "hf": hf, "llamacpp_f16": llamacpp_f16}


if __name__ == "__main__":
    print(json.dumps(asdict(written(Continuing(**json.loads(sys.argv[1]))))))
