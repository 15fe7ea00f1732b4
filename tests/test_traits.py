"""Nobody asks for the name of a part: what depends on it is answered by the part, also by one from a plugin."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers
from torch import nn

import dtl
from dtl.data.cache import Cache
from dtl.data.config import DataConfig, SourceConfig, SourceTraits, TokenizerConfig, TokenizerTraits
from dtl.data.encode import encode_sources
from dtl.data.sources import plan_sources
from dtl.data.tokenizers.tokenizer import PIECE_CHARS, Tokenizer, build_tokenizer
from dtl.errors import ConfigError
from dtl.evaluation.detection import unanswerable_questions
from dtl.notebook.records import source_name
from dtl.registry import OPTIMIZERS, SOURCES, TOKENIZERS
from dtl.runner.screens import checkpoint_bytes
from dtl.terminal.loading import read_facts
from dtl.training.config import OptimizerConfig
from dtl.training.optimizer import build_optimizers

PACKAGE = Path(dtl.__file__).parent
FILES = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "hydra_plugins").rglob("*.py")]
# The objects whose `kind` or `name` chooses a part, as they are called here: `source.kind`, `config.optimizer.name`.
CHOOSERS = {"kind": {"self", "config", "source", "it", "tokenizer"}, "name": {"optimizer", "schedule"}}
OTHER_KINDS = {"tracker.py"}  # of trackers, which are no parts


@pytest.fixture(autouse=True)
def forget_what_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (OPTIMIZERS, SOURCES, TOKENIZERS):
        for name in registry.names():
            registry.get(name)  # a module registers its parts when it is imported, which happens once
        monkeypatch.setattr(registry, "_parts", dict(registry._parts))
        monkeypatch.setattr(registry, "_traits", dict(registry._traits))


def asks_for_a_name(tree: ast.Module) -> Iterator[ast.Compare]:
    """Comparisons of a part's name with literals, or with a constant of them."""
    constants = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and any(literals(node.value))
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            said = [*(one for side in sides for one in literals(side)), *(s for s in sides if is_in(s, constants))]
            if said and any(chooses(inner) for side in sides for inner in ast.walk(side)):
                yield node


def literals(node: ast.AST) -> list[ast.Constant]:
    return [one for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)]


def is_in(node: ast.AST, names: set[str]) -> bool:
    return isinstance(node, ast.Name) and node.id in names


def chooses(node: ast.AST) -> bool:
    if not isinstance(node, ast.Attribute):
        return False
    owner = getattr(node.value, "id", getattr(node.value, "attr", ""))
    return node.attr == "block" or owner in CHOOSERS.get(node.attr, ())


def test_nobody_asks_for_a_name():
    found = {
        f"{file.name}:{node.lineno}: {ast.unparse(node)}"
        for file in FILES
        if file.name not in OTHER_KINDS
        for node in asks_for_a_name(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert found == set()


@pytest.mark.parametrize(
    "code",
    [
        "if self.arch.block == 'classic': pass",
        "x = config.arch.block in ('classic', 'modern')",
        "KINDS = ('bpe', 'char')\nx = config.kind not in KINDS",
        "x = [source for source in sources if source.kind != 'qa']",
        "x = [(source.kind, source.path)] == [('qa', None)]",
        "x = parts.config.optimizer.name != 'muon'",
        "x = self.schedule.name == 'wsd'",
    ],
)
def test_asking_for_a_name_is_found(code):
    assert list(asks_for_a_name(ast.parse(code)))


# --- sources ----------------------------------------------------------------------------------------------------------


class Poems:
    origin = "poems"

    def __init__(self, name, source, data, seed):
        pass


def data_of(traits: SourceTraits | None, **settings) -> DataConfig:
    SOURCES.register(f"poems of {traits}", traits)(Poems)
    return DataConfig(sources={"mine": SourceConfig(f"poems of {traits}", **settings)})


def test_a_source_of_ones_own_says_what_it_needs():
    data_of(None).validate()
    with pytest.raises(ConfigError, match="needs a file or folder"):
        data_of(SourceTraits(needs_files=True)).validate()
    data_of(SourceTraits(needs_files=True), path="here").validate()


def test_a_source_of_ones_own_says_whether_tasks_may_ask():
    for questions in ("some", "all"):
        data = data_of(SourceTraits(questions))
        data.tasks = ["f1"]
        data.validate()
    data = data_of(SourceTraits("none"))
    data.tasks = ["f1"]
    with pytest.raises(ConfigError, match="this data has none"):
        data.validate()


def test_a_source_of_ones_own_says_whether_it_takes_settings_of_the_hub():
    data_of(None, column="verse").validate()
    data_of(SourceTraits(hub="always", own_settings=False), path="a/b", column="verse").validate()
    with pytest.raises(ConfigError, match=r"mine\.column=verse: is for datasets"):
        data_of(SourceTraits(own_settings=False), column="verse").validate()


def test_a_source_of_ones_own_is_named_by_what_it_reads():
    data = data_of(SourceTraits(hub="always"), path="lab/poems")
    data.commits = {"mine": f"lab/poems@{'a' * 40}"}
    assert source_name("mine", data) == "lab/poems @aaaaaaaaaaaa"
    assert source_name("mine", data_of(None, path="lab/poems")) == "poems"


def test_a_source_of_ones_own_may_read_the_facts_that_ship():
    assert unanswerable_questions(None, data_of(SourceTraits(ships=True)))
    assert not unanswerable_questions(None, data_of(SourceTraits(ships=True), path="others"))
    assert not unanswerable_questions(None, data_of(None))


@pytest.mark.parametrize(("questions", "is_plain"), [("none", True), ("some", False), ("all", False)])
def test_a_source_of_ones_own_says_whether_its_text_is_plain(tmp_path, questions, is_plain):
    SOURCES.register("verses", SourceTraits(questions))(Poems)
    (tmp_path / "config.json").write_text('{"dtl": {}}')
    (tmp_path / "config.yaml").write_text("data: {sources: {a: {kind: verses}, b: {kind: hub, path: a/b}}}")
    assert read_facts(tmp_path).learned_plain_text is is_plain


# --- tokenizers -------------------------------------------------------------------------------------------------------


def words(config: TokenizerConfig, training_texts) -> tokenizers.Tokenizer:
    learnt.append(config)
    vocab = {word: i for i, word in enumerate(sorted({w for text in training_texts() for w in text.split()}))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab=vocab, unk_token=next(iter(vocab))))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


learnt: list[TokenizerConfig] = []


@pytest.mark.parametrize(("traits", "times"), [(None, 2), (TokenizerTraits(learnt=True), 1)])
def test_a_tokenizer_of_ones_own_that_is_learnt_from_text_is_cached_with_it(tmp_path, traits, times):
    TOKENIZERS.register("words", traits)(words)
    texts = tmp_path / "texts"
    texts.mkdir()
    for split in ("train", "validation"):
        (texts / f"{split}.txt").write_text("One fish, two fish. " * 100_000)
    data = DataConfig(sources={"text": SourceConfig("text", str(texts))})
    learnt.clear()
    for _ in range(2):
        encode_sources(
            data, plan_sources(data, 0), TokenizerConfig("words"), 8, 0, Cache(tmp_path / "cache"), lambda text: None
        )
    assert len(learnt) == times


@pytest.mark.parametrize(("traits", "n_pieces"), [(None, 1), (TokenizerTraits(cuts_at_spaces=True), 2)])
def test_a_tokenizer_of_ones_own_says_whether_long_texts_may_be_cut(monkeypatch, traits, n_pieces):
    TOKENIZERS.register("words", traits)(words)
    tokenizer = build_tokenizer(TokenizerConfig("words"), lambda: ["a fish"])
    pieces = []
    encode = Tokenizer._encode
    monkeypatch.setattr(Tokenizer, "_encode", lambda self, texts: pieces.extend(texts) or encode(self, texts))
    text = "fish " * (PIECE_CHARS // 5 + 10)
    assert len(tokenizer.encode(text)) == PIECE_CHARS // 5 + 10
    assert len(pieces) == n_pieces


def test_a_tokenizer_of_ones_own_says_how_small_it_may_be():
    TOKENIZERS.register("words", TokenizerTraits(min_vocab_size=7))(words)
    TokenizerConfig("words", vocab_size=7).validate()
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size=6: .*words needs at least 7"):
        TokenizerConfig("words", vocab_size=6).validate()


# --- optimizers -------------------------------------------------------------------------------------------------------


class Lion(torch.optim.AdamW):
    numbers_per_weight = 1


@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (torch.optim.Adam, 2),
        (torch.optim.RMSprop, 2),
        (lambda parameters: torch.optim.SGD(parameters, momentum=0.9), 1),
        (torch.optim.Muon, 1),
        (Lion, 1),
    ],
)
def test_an_optimizer_says_how_much_it_keeps(make, numbers):
    OPTIMIZERS.register("mine")(lambda model, config: [make(model.parameters())])
    model = nn.Linear(3, 5, bias=False)
    assert (
        checkpoint_bytes(model, build_optimizers(model, OptimizerConfig("mine"))) == (1 + numbers) * model.weight.nbytes
    )


def test_what_is_asked_of_dtls_own_parts_imports_none_of_them():
    program = """
import sys
from dtl.config import RunConfig
from dtl.data.config import DataConfig, SourceConfig
from dtl.model.config import ArchConfig, ModelConfig
for block in ("modern", "classic"):
    config = ModelConfig(ArchConfig(block))
    config.validate(), config.resolved_ffn_dim, config.block_rules.min_parameters(config)
DataConfig(sources={"a": SourceConfig("wiki"), "b": SourceConfig("qa")}, tasks=["f1"]).validate()
print({"torch", "tokenizers", "datasets", "pyarrow", "dtl.data.sources", "dtl.model.transformer"} & {*sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
