"""How fast DTL continues a text, beside Hugging Face's `generate` on the very same weights.

    python benchmarks/generation.py                      width 512, 10 layers, GPT-2's vocabulary, fp32, batch 1
    python benchmarks/generation.py --arch=classic       the same size of GPT-2
    python benchmarks/generation.py --as-trained         without `lay_out_for_decoding`, which the commands call
    python benchmarks/generation.py --tiny               two seconds, to see that it runs

Both write greedily, in one process, in rounds that take turns to begin: what slows the machine slows both. Weights are
random, and the head is apart from the embedding: tied, a random model repeats its last token. Fails when the two do
not write the same tokens.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from dtl.generation.config import SamplingConfig
from dtl.generation.engine import generate
from dtl.generation.layout import lay_out_for_decoding
from dtl.model.config import ArchConfig, ModelConfig
from dtl.model.hf import hf_config, to_hf
from dtl.model.transformer import TransformerLM

Write = Callable[[int], list[list[int]]]  # how many new tokens, to the new tokens of each row
NEVER = -1  # a stop id that no token has


def main() -> int:
    arguments = parse_arguments()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    transformers.utils.logging.set_verbosity_error()
    model = random_model(arguments)
    twin = twin_of(model)
    if not arguments.as_trained:
        lay_out_for_decoding(model)
    prompts = torch.randint(0, model.vocab_size, (arguments.batch, arguments.prompt), device=arguments.device).tolist()
    ours, theirs = writer(model, prompts), twin_writer(twin, prompts)
    print(
        f"{arguments.arch}, width {arguments.width}, {arguments.layers} layers, vocabulary {model.vocab_size}, "
        f"{model.n_parameters() / 1e6:.1f} million parameters, fp32, batch {arguments.batch}, "
        f"{arguments.prompt} + {arguments.new} tokens, {arguments.rounds} rounds"
    )
    print(
        f"{arguments.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}"
    )

    texts, twin_texts = ours(arguments.new), theirs(arguments.new)  # the first time is slower: not counted
    if texts != twin_texts:
        first = next(
            i for i in range(arguments.new) if any(a[i] != b[i] for a, b in zip(texts, twin_texts, strict=True))
        )
        print(f"The two write different tokens, from new token {first + 1} on.")
        return 1
    n_distinct = len({token for text in texts for token in text})
    print(f"Both wrote the same {arguments.batch * arguments.new} tokens, {n_distinct} different ones.")

    report("Tokens a second", *in_turns(ours, theirs, arguments.new, arguments.rounds), arguments.batch * arguments.new)
    report("Time to the first token", *in_turns(ours, theirs, 1, arguments.rounds))
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=("modern", "classic"), default="modern")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--width", type=int, default=512, help="heads are 64 wide")
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--new", type=int, default=256, help="tokens")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6, help="of both, in turns")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of torch on the CPU; default: torch's own choice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--as-trained", action="store_true", help="leave the weights as they lie in memory")
    parser.add_argument("--tiny", action="store_true", help="two layers, 64 wide, a few tokens: says nothing of speed")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.layers, arguments.width, arguments.vocabulary = 2, 64, 257
        arguments.prompt, arguments.new, arguments.rounds = 7, 11, 2
    return arguments


def random_model(arguments: argparse.Namespace) -> TransformerLM:
    config = ModelConfig(
        arch=ArchConfig(arguments.arch),
        dim=arguments.width,
        n_layers=arguments.layers,
        n_heads=arguments.width // 64,
        max_seq_len=arguments.prompt + arguments.new,
        tie_embeddings=False,
    )
    model = TransformerLM(config, arguments.vocabulary)
    for module in model.modules():
        if isinstance(module, nn.Linear):  # fresh weights have blocks that do nothing, and a head of zeros
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    return model.eval().to(arguments.device)


def twin_of(model: TransformerLM) -> Any:
    settings = hf_config(model.config, model.vocab_size, eos_id=0, bos_id=0, pad_id=0)
    config = transformers.AutoConfig.for_model(**settings)
    twin = transformers.AutoModelForCausalLM.from_config(config).eval()
    twin.load_state_dict(to_hf(model), strict=True)
    twin.generation_config.eos_token_id = None  # nothing stops it
    return twin.to(next(model.parameters()).device)


def writer(model: TransformerLM, prompts: list[list[int]]) -> Write:
    def write(n_new: int) -> list[list[int]]:
        return generate(model, prompts, SamplingConfig(temperature=0, top_k=None, max_new_tokens=n_new), NEVER)

    return write


def twin_writer(twin: Any, prompts: list[list[int]]) -> Write:
    ids_bt = torch.tensor(prompts, device=twin.device)
    mask_bt = torch.ones_like(ids_bt)

    def write(n_new: int) -> list[list[int]]:
        written_bt = twin.generate(ids_bt, attention_mask=mask_bt, max_new_tokens=n_new, do_sample=False)
        return written_bt[:, ids_bt.shape[1] :].tolist()

    return write


def in_turns(ours: Write, theirs: Write, n_new: int, n_rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each round, of both: A B, B A, A B, ..."""
    seconds: dict[Write, list[float]] = {ours: [], theirs: []}
    for i in range(n_rounds):
        for write in (ours, theirs) if i % 2 == 0 else (theirs, ours):
            start = time.perf_counter()
            write(n_new)
            seconds[write].append(time.perf_counter() - start)
    return seconds[ours], seconds[theirs]


def report(title: str, ours: list[float], theirs: list[float], n_tokens: int | None = None) -> None:
    """Medians, and how many times faster DTL was: in the median round, and from the worst to the best."""
    if n_tokens is not None:
        shown = [f"{n_tokens / statistics.median(seconds):.1f}" for seconds in (ours, theirs)]
    else:
        shown = [f"{1000 * statistics.median(seconds):.1f} ms" for seconds in (ours, theirs)]
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    print(
        f"{title}: DTL {shown[0]}, Hugging Face {shown[1]}; "
        f"DTL is {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    sys.exit(main())
