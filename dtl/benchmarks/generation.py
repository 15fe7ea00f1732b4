"""suite=generation: tokens per second, compared with Hugging Face's `generate` on the same weights.

Both generate greedily in fp32, in one process. Weights are random, and the head is not tied to the embedding: tied, a
random model repeats its last token. Letters of shapes: b batch, t time.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dtl.benchmarks.config import SUITES, GenerationSuiteConfig
from dtl.benchmarks.measuring import MissingPeerError, Row, at_least, compared, in_turns, peer, skipped
from dtl.benchmarks.suite import TINY_VOCABULARY, VOCABULARY, Suite, Workplace
from dtl.errors import DTLError

if TYPE_CHECKING:
    from dtl.model.transformer import TransformerLM

Texts = list[list[int]]
Write = Callable[[int], Texts]  # number of new tokens -> the new tokens of each prompt
TINY = {"dim": 64, "n_heads": 2, "n_layers": 2}
NEVER = -1  # stop id that matches no token: every text reaches its full length


def continuing(place: Workplace, arch: str) -> Iterator[Row]:
    """Yield two rows: tokens per second, seconds to the first token. Raises DTLError when the tokens differ."""
    settings = place.settings.generation
    n_prompt, n_new = (7, 11) if place.settings.tiny else (settings.prompt_tokens, settings.new_tokens)
    row = Row(arch, f"continuing a text, {arch}", "tokens/s", peer_name="Hugging Face's generate, the same weights")
    first_row = replace(row, name=f"{arch}_first", what=f"first token of a text, {arch}", unit="s")
    row = replace(row, goal=at_least(1))  # 1.40 was measured (docs/results.md)
    try:
        transformers = peer("transformers", "pip install transformers")
    except MissingPeerError as error:
        yield from (skipped(missing, str(error)) for missing in (row, first_row))
        return
    ours, theirs, n_parameters = both_sides(place, transformers, arch, n_prompt, n_new)
    texts = ours(n_new)  # warm-up: the first call is slower
    check_same_tokens(arch, texts, theirs(n_new))

    n_tokens = settings.batch_size * n_new
    n_distinct = len({token for text in texts for token in text})
    note = (
        f"{n_parameters / 1e6:.1f} million parameters, fp32, {settings.batch_size} x {n_prompt} tokens continued by "
        f"{n_new}; the same {n_tokens} tokens, {n_distinct} distinct"
    )
    rounds = place.settings.rounds
    seconds = in_turns(lambda: ours(n_new), lambda: theirs(n_new), rounds)
    yield compared(replace(row, note=note), seconds, n_tokens)
    yield compared(first_row, in_turns(lambda: ours(1), lambda: theirs(1), rounds))


SUITES.register("generation")(Suite({arch: partial(continuing, arch=arch) for arch in ("modern", "classic")}))


def both_sides(place: Workplace, transformers: Any, arch: str, n_prompt: int, n_new: int) -> tuple[Write, Write, int]:
    """Return DTL's and Hugging Face's writer of the same random prompts, and the number of parameters."""
    import torch

    from dtl.base.runtime import choose_device, seed_everything
    from dtl.generation.decoder import transpose_for_decoding

    seed_everything(place.settings.seed)
    device, _ = choose_device(place.settings.device)
    transformers.utils.logging.set_verbosity_error()
    model = random_model(place.settings.generation, place.settings.tiny, arch, context=n_prompt + n_new).to(device)
    twin = twin_of(model, transformers)
    transpose_for_decoding(model)
    prompts = torch.randint(0, model.vocab_size, (place.settings.generation.batch_size, n_prompt)).tolist()
    return writer(model, prompts), twin_writer(twin, prompts), model.n_parameters()


def random_model(settings: GenerationSuiteConfig, tiny: bool, arch: str, context: int) -> "TransformerLM":
    """Return the preset with weights under which a text has many distinct tokens."""
    from torch import nn

    from dtl.model.presets import load_preset
    from dtl.model.transformer import TransformerLM

    size = TINY if tiny else {}
    config = load_preset(settings.model, arch=arch, tie_embeddings=False, max_seq_len=context, **size)
    model = TransformerLM(config, TINY_VOCABULARY if tiny else VOCABULARY)
    for module in model.modules():
        if isinstance(module, nn.Linear):  # initial weights: blocks without effect, a head of zeros
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    return model.eval()


def twin_of(model: "TransformerLM", transformers: Any) -> Any:
    """Return Hugging Face's model with the same weights, on the same device, without a stop token."""
    from dtl.model.hf import hf_config, to_hf

    settings = hf_config(model.config, model.vocab_size, eos_id=0, bos_id=0, pad_id=0)
    twin = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**settings)).eval()
    twin.load_state_dict(to_hf(model), strict=True)
    twin.generation_config.eos_token_id = None
    return twin.to(next(model.parameters()).device)


def writer(model: "TransformerLM", prompts: Texts) -> Write:
    """Return a function that continues the prompts greedily with DTL."""
    from dtl.generation.config import SamplingConfig
    from dtl.generation.engine import generate

    def write(n_new: int) -> Texts:
        return generate(model, prompts, SamplingConfig(temperature=0, top_k=None, max_new_tokens=n_new), NEVER)

    return write


def twin_writer(twin: Any, prompts: Texts) -> Write:
    """Return a function that continues the prompts greedily with Hugging Face's `generate`."""
    import torch

    ids_bt = torch.tensor(prompts, device=twin.device)
    mask_bt = torch.ones_like(ids_bt)

    def write(n_new: int) -> Texts:
        written_bt = twin.generate(ids_bt, attention_mask=mask_bt, max_new_tokens=n_new, do_sample=False)
        return written_bt[:, ids_bt.shape[1] :].tolist()

    return write


def check_same_tokens(name: str, ours: Texts, theirs: Texts) -> None:
    """Raise DTLError where the tokens differ: then their speeds cannot be compared."""
    for number, (text, other) in enumerate(zip(ours, theirs, strict=True), start=1):
        if text == other:
            continue
        both = min(len(text), len(other))
        first = next((at for at in range(both) if text[at] != other[at]), both)
        raise DTLError(
            f"{name}: DTL and Hugging Face generate different tokens for prompt {number}, from new token {first + 1} "
            "on. Rarely, rounding decides between two tokens of equal probability: try another seed=. If they differ "
            "again, this is a bug in one of them: please report it with the versions shown above."
        )
