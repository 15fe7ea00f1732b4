"""Keys of the cache: whatever shapes what is kept changes them, code too, and nothing else does.

The settings in them are committed, in golden_cache_keys.json. After a change that should move them, look at the
difference, then write them with `DTL_UPDATE_GOLDEN=1 python -m pytest tests/data/test_cache_keys.py`.
"""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dtl
from dtl.data import code_key, collect
from dtl.data.cache import Cache, key_of
from dtl.data.code_key import code_of
from dtl.data.collect import pinned, sample_settings, text_settings
from dtl.data.config import DataConfig, SourceConfig, TokenizerConfig
from dtl.data.documents import Document
from dtl.data.encode import tokenizer_key, tokenizer_settings, tokens_settings
from dtl.data.hub import texts as hub_texts
from dtl.data.hub.texts import HubSource
from dtl.data.local.source import TextSource
from dtl.data.pack import fingerprint_settings, pack_stream
from dtl.data.prepare import PreparedData, prepare_data
from dtl.data.qa.source import QuestionSource
from dtl.data.sources import SourcePlan, plan_sources
from dtl.data.wikipedia.source import WikiSource
from dtl.errors import DataError
from dtl.registry import SOURCES, TOKENIZERS

PACKAGE = Path(dtl.__file__).parent
READER = Path(__file__).with_name("key_reader.py")
GOLDEN = Path(__file__).with_name("golden_cache_keys.json")
UPDATE = "DTL_UPDATE_GOLDEN"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

Keys = dict[str, str]  # by kind: of text by the source's, tokens, tokenizer, fingerprint
OWN = {"qa", "text", "wiki", "hub"}
PLUGINS = {"verses", "poems"}
LEARNT = {"tokens", "tokenizer"}
ALL_TEXTS = OWN | PLUGINS
EVERY = ALL_TEXTS | LEARNT | {"fingerprint"}

PLUGIN_FILES = {
    # A package, without and with relative imports, and a script that it would start.
    "my_lab/verses.py": """
        import json
        import mwparserfromhell
        from dtl.data.documents import Document
        from dtl.registry import SOURCES
        from my_lab.parsing import parsed
        from . import marks
        from .deep.tables import TABLE

        SCRIPT = "worker.py"

        @SOURCES.register("verses")
        class Verses:
            def splits(self):
                return {"train": [Document(parsed("a") + marks.END)]}
    """,
    "my_lab/parsing.py": "def parsed(text):\n    return text.lower()\n",
    "my_lab/marks.py": "import importlib\nEND = '.'\nLATE = importlib.import_module('my_lab.late')\n",
    "my_lab/deep/__init__.py": "",
    "my_lab/deep/tables.py": "from ..inner import *\nTABLE = {'a': 1}\n",
    "my_lab/inner.py": "INNER = 1\n",
    "my_lab/worker.py": "WORKER = 1\n",
    "my_lab/late.py": "LATE = 1\n",
    "my_lab/unrelated.py": "UNRELATED = 1\n",
    # A file alone, with a helper that it imports when it needs it.
    "poems.py": """
        from typing import TYPE_CHECKING
        from dtl.registry import SOURCES
        if TYPE_CHECKING:
            import only_types

        @SOURCES.register("poems")
        class Poems:
            def splits(self):
                import poem_helper
                return poem_helper.splits()
    """,
    "poem_helper.py": "import poems\n\ndef splits():\n    return {}\n",
    "only_types.py": "TYPES = 1\n",
    "other.py": "OTHER = 1\n",
}


class Lab:
    """A copy of DTL with plugins beside it, and the keys that it has."""

    def __init__(self, folder: Path, child: "subprocess.Popen[str]") -> None:
        self.folder = folder
        self._child = child
        self.before = self.keys()

    def keys(self) -> Keys:
        assert self._child.stdin is not None and self._child.stdout is not None
        print(file=self._child.stdin, flush=True)
        return json.loads(self._child.stdout.readline())

    def after(self, file: str, edit: Callable[[str], str]) -> Keys:
        """The keys after an edit, which is then undone."""
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        edited = edit(text)
        assert edited != text
        try:
            path.write_text(edited, encoding="utf-8")
            return self.keys()
        finally:
            path.write_text(text, encoding="utf-8")

    def changed(self, file: str, edit: Callable[[str], str]) -> set[str]:
        """The kinds of keys that are others after an edit."""
        return {kind for kind, key in self.after(file, edit).items() if key != self.before[kind]}


def made_lab(folder: Path) -> Path:
    shutil.copytree(PACKAGE, folder / "dtl", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in PLUGIN_FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    return folder


def started(folder: Path) -> "subprocess.Popen[str]":
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-B", str(READER), str(folder)], cwd=folder, **pipes)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = made_lab(tmp_path_factory.mktemp("lab"))
    with started(folder) as child:
        yield Lab(folder, child)
        assert child.stdin is not None
        child.stdin.close()


def with_another_statement(function: str) -> Callable[[str], str]:
    """Another first statement, after the docstring, in the function or method of this name."""

    def edit(text: str) -> str:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name == function:
                docstring = isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
                first = node.body[1 if docstring and len(node.body) > 1 else 0]
                lines = text.split("\n")
                lines.insert(first.lineno - 1, " " * first.col_offset + "edited = 1")
                return "\n".join(lines)
        raise AssertionError(f"no function {function}")

    return edit


# --- code ---------------------------------------------------------------------------------------------------------

SHAPING: list[tuple[str, str, set[str]]] = [  # file in dtl/data: functions: the keys that they are part of
    ("documents", "document", EVERY),
    ("tokenizers/prompt", "of text without_context space_after", EVERY),
    ("qa/source", "_by_split _from_named_file", {"qa"}),
    ("qa/records", "pairs _read _innermost _first_name _questions _answers _texts", {"qa"}),
    ("local/source", "_documents", {"text"}),
    ("wikipedia/source", "_from_files _from_dumps", {"wiki"}),
    ("local/files", "text_of field split_of records", OWN),
    ("local/readers", "__iter__ _unfinished __next__", OWN),
    ("local/readers", "read_txt read_jsonl read_json read_csv read_parquet _decoded", OWN),
    ("local/reading", "lines _wide_lines _decode", OWN),
    ("local/formats", "recognise encoding_of", OWN),
    ("local/unpacking", "readinto open_decompressed", OWN),
    ("wikipedia/wikitext", "to_prose _without_files _wikilink", {"wiki"}),
    ("wikipedia/prose", "lines_to_prose clean_line", {"wiki"}),
    ("wikipedia/templates", "_measure _value template_text", {"wiki"}),
    ("wikipedia/templates", "tex_to_text", {"wiki"}),
    ("wikipedia/names", "is_redirect is_disambiguation", {"wiki"}),
    ("wikipedia/pages", "_pages _unwanted", {"wiki"}),
    ("wikipedia/dump", "read_dump _parse_chunk _in_order", {"wiki"}),
    ("hub/texts", "articles natural", {"hub", "wiki"}),
    ("hub/texts", "_documents shuffled _chosen", {"hub", "wiki"}),
    ("hub/stream", "rows", {"hub", "wiki"}),
    ("hub/child", "_load _read _plain", {"hub", "wiki"}),
    ("documents", "article", EVERY),
    ("read", "read_source read", ALL_TEXTS),
    ("cleaning", "clean cleaned", ALL_TEXTS),
    ("split", "split_hash finalize _cut", ALL_TEXTS),
    ("stored", "_to_line _from_line sample write_tokens", EVERY),
    ("stored", "token_dtype", EVERY),
    ("encode", "encode_chunks fit_questions", LEARNT),
    ("fit", "documents parts_of cut_context", LEARNT),
    ("documents", "in_chunks", EVERY),
    ("encode", "_encode", LEARNT),
    ("tokenizers/tokenizer", "_bpe _char pieces _well_formed encode_batch _encode save", LEARNT),
    ("tokenizers/files", "read_backend", LEARNT),
    ("tokenizers/gpt2", "byte_level_bpe", LEARNT),
    ("tokenizers/gpt2", "fast_encoder __call__", LEARNT),
    ("pack", "data_fingerprint _update", {"fingerprint"}),
]


@pytest.mark.parametrize(
    ("file", "function", "kinds"),
    [(file, function, kinds) for file, functions, kinds in SHAPING for function in functions.split()],
)
def test_code_that_shapes_what_is_kept_is_part_of_its_key(lab, file, function, kinds):
    assert lab.changed(f"dtl/data/{file}.py", with_another_statement(function)) == kinds


@pytest.mark.parametrize(
    ("file", "old", "new", "kinds"),
    [
        ("tokenizers/prompt", "Question: {question}", "Q: {question}", EVERY),
        ("qa/records", '("answer", "output"', '("output", "answer"', {"qa"}),
        ("wikipedia/templates", '"to": " to "', '"to": " until "', {"wiki"}),
        ("wikipedia/wikitext", "import lines_to_prose", "import clean_line as lines_to_prose", {"wiki"}),
        ("cleaning", r'"\n{3,}"', r'"\n{4,}"', ALL_TEXTS),
        ("split", "digest_size=6", "digest_size=5", ALL_TEXTS),
        ("tokenizers/tokenizer", "min_frequency=2", "min_frequency=3", LEARNT),
    ],
)  # fmt: skip
def test_so_are_its_constants_and_imports(lab, file, old, new, kinds):
    def edit(text: str) -> str:
        assert old in text.replace("CUT, HARD_BREAK, ", "")
        return text.replace("CUT, HARD_BREAK, ", "").replace(old, new)

    assert lab.changed(f"dtl/data/{file}.py", edit) == kinds


# Rows are made anew at every start; tasks and baselines score, the report tells. The others: `code_key.SHAPE_NOTHING`.
NOT_KEPT = {"batches", "prepare", "text_report"}


def test_modules_that_are_part_of_no_key_are_known(lab):
    """A new module that shapes what is kept, and is reached in a way that is not followed, shows up here."""
    files = [file for file in sorted(lab.folder.glob("dtl/data/**/*.py")) if file.stem != "__init__"]
    unseen = {
        file.relative_to(lab.folder / "dtl/data").with_suffix("").as_posix()
        for file in files
        if not lab.changed(file.relative_to(lab.folder).as_posix(), lambda text: f"{text}\nedited = 1\n")
    }
    assert unseen == NOT_KEPT | {name.removeprefix("dtl.data.") for name in code_key.SHAPE_NOTHING}


@pytest.mark.parametrize(
    ("file", "function"),
    [
        ("data/text_report", "report_lines"),
        ("data/batches", "collate"),
        ("data/config", "validate"),
        ("base/network", "require_hub"),
        ("data/cache", "_build"),
        ("registry", "register"),
        ("base/files", "sha256_of"),
        ("errors", "did_you_mean"),
        ("model/transformer", "forward"),
    ],
)
def test_code_that_shapes_nothing_is_part_of_no_key(lab, file, function):
    assert lab.changed(f"dtl/{file}.py", with_another_statement(function)) == set()


@pytest.mark.parametrize("file", ["dtl/data/qa/source.py", "dtl/data/cleaning.py", "my_lab/verses.py", "poems.py"])
@pytest.mark.parametrize(
    "edit",
    [
        lambda text: f"# A remark.\n{text}",
        lambda text: f'"""Another docstring."""\n{text}',
        lambda text: re.sub(r"(?m)^(\s+)(return .*)", r"\1\2  # as it is\n", text),
        lambda text: re.sub(r"(?m)^(\s*)(def \w+\(.*:)$", r'\1\2\n\1    """Other words."""', text),
        lambda text: ast.unparse(ast.parse(text)),  # another layout of everything
        lambda text: text.replace("\n", "\r\n"),
    ],
    ids=["comment", "module docstring", "line comments", "docstrings", "layout", "line ends"],
)
def test_comments_docstrings_and_layout_are_part_of_no_key(lab, file, edit):
    assert lab.changed(file, edit) == set()


@pytest.mark.parametrize(
    ("file", "kinds"),
    [
        ("my_lab/verses.py", {"verses"}),
        ("my_lab/parsing.py", {"verses"}),
        ("my_lab/marks.py", {"verses"}),
        ("my_lab/deep/tables.py", {"verses"}),
        ("my_lab/inner.py", {"verses"}),
        ("my_lab/worker.py", {"verses"}),
        ("my_lab/late.py", {"verses"}),
        ("my_lab/unrelated.py", set()),
        ("poems.py", {"poems"}),
        ("poem_helper.py", {"poems"}),
        ("only_types.py", set()),
        ("other.py", set()),
    ],
)
def test_of_a_plugin_counts_what_it_imports_of_its_own(lab, file, kinds):
    assert lab.changed(file, lambda text: f"{text}\nEDITED = 1\n") == kinds


def test_names_and_places_of_modules_are_part_of_no_key(lab, tmp_path):
    moved = made_lab(tmp_path / "elsewhere")
    names = {"records": "pair_reading", "cleaning": "washing", "child": "hub_process", "readers": "tables"}
    for old, new in names.items():
        (file,) = moved.glob(f"dtl/data/**/{old}.py")
        file.rename(file.with_stem(new))
    (moved / "dtl/data/wikipedia/templates.py").rename(moved / "dtl/data/formulas.py")
    (moved / "my_lab/parsing.py").rename(moved / "my_lab/deep/read.py")
    for file in moved.rglob("*.py"):
        text = file.read_text(encoding="utf-8").replace("dtl.data.wikipedia.templates ", "dtl.data.formulas ")
        for old, new in {**names, "my_lab.parsing": "my_lab.deep.read"}.items():
            text = re.sub(rf"(?<=[.\"]){old}(?= import|\.py)|(?<=from ){re.escape(old)}", new, text)
        file.write_text(text, encoding="utf-8")
    with started(moved) as child:
        assert Lab(moved, child).before == lab.before
        assert child.stdin is not None
        child.stdin.close()


def test_the_same_name_out_of_another_module_is_other_code(lab):
    """Both modules are part of the key before and after."""

    def key_with(first: str, second: str) -> str:
        imports = f"from my_lab.{first} import x\nfrom my_lab.{second} import x as y\n"
        return lab.after("my_lab/verses.py", lambda text: imports + text)["verses"]

    assert key_with("parsing", "marks") == key_with("parsing", "marks") != key_with("marks", "parsing")


@pytest.mark.parametrize(
    ("library", "parts", "counts"),
    [
        ("mwparserfromhell", [WikiSource], True),
        ("pyarrow", [TextSource], True),
        ("datasets", [HubSource], True),
        ("numpy", [WikiSource], False),  # the reading itself has it: `text_code`
        ("torch", [HubSource], False),
        ("omegaconf", [QuestionSource], False),  # of settings
    ],
)
def test_versions_of_libraries_count(monkeypatch, library, parts, counts):
    before = code_of.__wrapped__(*parts)
    of_installed = code_key._version
    monkeypatch.setattr(code_key, "_version", lambda name: "0" if name == library else of_installed(name))
    assert (code_of.__wrapped__(*parts) != before) == counts


def test_a_library_under_another_name_than_its_packages_has_a_version():
    assert code_key._version("yaml").lower().startswith("pyyaml 6")
    assert code_key._version("no_such_library_at_all") == ""


# --- classes ------------------------------------------------------------------------------------------------------


class Base:
    """Some texts; how often they were read."""

    read = 0

    def __init__(self, name: str, source: SourceConfig, data: DataConfig, seed: int) -> None:
        self.origin = "some texts"

    def fingerprint(self) -> str:
        return "always the same"

    def splits(self) -> dict[str, list[Document]]:
        Base.read += 1
        return {"train": [Document(f"text {number}") for number in range(30)]}

    def notes(self) -> list[str]:
        return []


def prepare(kind: str, cache: Path, path: str | None = None) -> PreparedData:
    data = DataConfig(sources={"some": SourceConfig(kind, path)}, cache_dir=str(cache), validation_fraction=0.2)
    return prepare_data(data, TokenizerConfig(kind="byte"), 16, 3)


def text_of(prepared: PreparedData) -> str:
    return prepared.tokenizer.decode(prepared.rows["some"]["train"].tokens.tolist())


def registered(kind: str, part: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(SOURCES._parts, kind, part)
    return kind


def test_what_is_made_by_a_class_without_source_is_not_kept(tmp_path, monkeypatch):
    """In a notebook a class is edited and defined again, and nobody can say as what."""
    for number, name in enumerate(("nowhere", __name__)):  # exec inside a module, too, is not in its file
        scope: dict[str, Any] = {"__name__": name, "Base": Base}
        exec("class Unwritten(Base):\n    pass", scope)
        kind = registered(f"unwritten {number}", scope["Unwritten"], monkeypatch)
        monkeypatch.setattr(Base, "read", 0)
        assert text_of(prepare(kind, tmp_path)) == text_of(prepare(kind, tmp_path))
        assert Base.read == 2 and not list(tmp_path.iterdir())
    kind = registered("written", Base, monkeypatch)
    assert text_of(prepare(kind, tmp_path)) == text_of(prepare(kind, tmp_path))
    assert Base.read == 3


def test_a_function_that_makes_sources_counts_with_their_class(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    keys = []
    for number in (1, 2):
        (tmp_path / "makers.py").write_text(f"def made(*arguments):\n    return Base(*arguments, {10**number})")
        made = importlib.reload(importlib.import_module("makers")).made
        keys.append(collect.text_code(registered("made", made, monkeypatch), Base))
    assert keys[0] != keys[1] and None not in keys
    assert collect.text_code(registered("made", lambda *arguments: Base(*arguments), monkeypatch), Base) is None


def test_a_learnt_tokenizer_of_unknown_code_is_not_kept(monkeypatch):
    config = TokenizerConfig(kind="char")
    assert tokenizer_key({"some": "t"}, config) is not None
    monkeypatch.setitem(TOKENIZERS._parts, "char", lambda config, texts: None)
    assert tokenizer_key({"some": "t"}, config) is None


def test_a_version_of_a_source_counts(monkeypatch):
    data = DataConfig(sources={"some": SourceConfig(registered("some", Base, monkeypatch))})
    plan = SourcePlan("some", data.sources["some"], Base.__new__(Base), None)
    before = collect.text_key(plan, data, "f", 1.0)
    monkeypatch.setattr(Base, "version", 2, raising=False)
    assert collect.text_key(plan, data, "f", 1.0) != before


PLUGIN = """
from dtl.data.documents import Document
from dtl.registry import SOURCES
from pathlib import Path
import edited_helper

@SOURCES.register("edited")
class Edited:
    def __init__(self, name, source, data, seed):
        self.origin = source.path
        self.path = Path(source.path)

    def fingerprint(self):
        return [self.path]

    def splits(self):
        lines = self.path.read_text().splitlines()
        return {"train": [Document(edited_helper.ending(line.PARSED())) for line in lines]}

    def notes(self):
        return []
"""


def test_an_edited_plugin_reads_anew(tmp_path, monkeypatch):
    """As two starts do it: what is imported is what lies there."""
    monkeypatch.setattr(collect, "SMALL_BYTES", 0)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lines.txt").write_text("".join(f"Line {number}\n" for number in range(40)))

    def text_with(parsed: str, ending: str) -> str:
        (tmp_path / "edited_plugin.py").write_text(PLUGIN.replace("PARSED", parsed))
        (tmp_path / "edited_helper.py").write_text(f"def ending(line):\n    return line + {ending!r}\n")
        for name in ("edited_plugin", "edited_helper"):
            sys.modules.pop(name, None)
        importlib.import_module("edited_plugin")
        return text_of(prepare("edited", tmp_path / "cache", str(tmp_path / "lines.txt")))

    assert "LINE 7." in text_with("upper", ".")
    assert "LINE 7." in text_with("upper", ".")
    assert len(list((tmp_path / "cache" / "dtl-cache").glob("text-*/manifest.json"))) == 1
    assert "line 7." in text_with("lower", ".")
    assert "line 7!" in text_with("lower", "!")
    assert len(list((tmp_path / "cache" / "dtl-cache").glob("text-*/manifest.json"))) == 3


# --- the hub: is it needed? ---------------------------------------------------------------------------------------


class Stream:
    """A stand-in for the hub's rows."""

    def __init__(self, *dataset: object) -> None:
        self.columns = {"train": ["text"]}

    def rows(self, split: str, columns: list[str], seed: int | None, buffer_size: int) -> Iterator[list[str]]:
        yield from ([f"Story {number}."] for number in range(50))

    def end(self) -> None: ...


def test_text_that_other_code_made_does_not_do_without_the_hub(tmp_path, monkeypatch):
    """Opening a source and keeping its commit agree with the key under which it is looked for."""

    def unreachable(what: str, ways_on: str) -> None:
        raise DataError("cannot be reached")

    data = DataConfig(
        sources={"some": SourceConfig("hub", "me/x", revision=COMMIT)}, cache_dir=str(tmp_path), seq_len=16
    )
    with monkeypatch.context() as reachable:
        reachable.setattr(hub_texts, "HubStream", Stream)
        reachable.setattr(hub_texts, "require_hub", lambda what, ways_on: None)
        collect.collect_texts(data, plan_sources(data, 3), 16, 3, Cache(tmp_path / "dtl-cache"), lambda line: None)
    monkeypatch.setattr(hub_texts, "require_hub", unreachable)
    assert pinned(data, plan_sources(data, 3)).commits == {"some": f"me/x@{COMMIT}"}
    assert (
        len(collect.collect_texts(data, plan_sources(data, 3), 16, 3, Cache(tmp_path / "dtl-cache"), lambda line: None))
        == 1
    )
    with pytest.raises(DataError, match="cannot be reached"):
        other = replace(data, allow_truncated=True)
        pinned(other, plan_sources(other, 3))  # opened, but not found under its key
    for code in ("edited", None):
        with monkeypatch.context() as edited:
            for module in (collect, hub_texts):
                edited.setattr(module, "text_code", lambda kind, source, code=code: code)
            with pytest.raises(DataError, match="cannot be reached"):
                plan_sources(data, 3)


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings in a key of each kind."""
    monkeypatch.setattr(hub_texts, "require_hub", lambda what, ways_on: None)
    (tmp_path / "texts").mkdir()
    for name in ("pairs.jsonl", "texts/a.txt", "texts/b.txt"):
        (tmp_path / name).write_text(f'{{"question": "{name}", "answer": "a"}}\n')
    (tmp_path / "wiki.xml").write_text("<mediawiki>")
    hub = {"subset": "small", "column": "body", "rows": "article", "splits": {"train": "a", "test": "b"}}
    configurations: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "qa": ({"kind": "qa", "path": str(tmp_path / "pairs.jsonl")}, {"lower_case_questions": True}),
        "text": ({"kind": "text", "path": str(tmp_path / "texts")}, {"allow_truncated": True, "test_fraction": 0.25}),
        "text, sampled": ({"kind": "text", "path": str(tmp_path / "texts")}, {"max_samples": 7, "seq_len": 32}),
        "wiki of a dump": ({"kind": "wiki", "path": str(tmp_path / "wiki.xml")}, {}),
        "wiki of the hub": ({"kind": "wiki", "revision": COMMIT}, {"wiki_subset": "20231101.sco"}),
        "hub": ({"kind": "hub", "path": "me/x", "revision": COMMIT, **hub}, {"validation_fraction": 0.05}),
    }
    found: dict[str, Any] = {}
    for title, (of_source, of_data) in configurations.items():
        data = DataConfig(sources={"some": SourceConfig(**of_source)}, cache_dir=str(tmp_path / "cache"), **of_data)
        (plan,) = plan_sources(data, 3)
        monkeypatch.setattr(collect, "SMALL_BYTES", 0)
        fingerprint = collect._fingerprint(collect._files(plan.source), Cache(tmp_path / "cache"))
        assert fingerprint is not None
        wanted = collect.characters_wanted(data, data.seq_len or 0)
        budget = collect.characters_read(wanted)
        found[title] = text_settings(plan, data, fingerprint, budget)
    tokenizer: Any = SimpleNamespace(kind="bpe", fingerprint="b" * 64, eos_id=298)
    made: Any = [("some train", None, pack_stream(17, 5))]
    return found | {
        "sample": sample_settings("a" * 32, 1344, 3),
        "tokens": tokens_settings("a" * 32, tokenizer, 225),
        "tokenizer": tokenizer_settings({"some": "a" * 32, "other": "b" * 32}, TokenizerConfig("bpe", 300)),
        "fingerprint": fingerprint_settings(["a" * 32], (16, "packed", False, "all", {"some": 1.0}, "b" * 64), made),
    }


def test_the_settings_in_keys_are_the_committed_ones(settings, tmp_path):
    text = json.dumps(settings, indent=2, allow_nan=False) + "\n"  # plain values alone
    if os.environ.get(UPDATE):
        GOLDEN.write_text(text, encoding="utf-8")
    assert json.loads(text) == json.loads(GOLDEN.read_text(encoding="utf-8")), "see the head of this file"
    assert "dtl." not in text and str(tmp_path) not in text


@pytest.mark.slow
def test_each_of_them_counts(settings):
    """A leaf that is another value makes another key."""
    for parts in settings.values():
        keys = {key_of(code="c", **parts)}
        leaves = list(_with_one_other_leaf(parts))
        keys |= {key_of(code="c", **other) for other in leaves}
        assert len(keys) == 1 + len(leaves) > 2


def _with_one_other_leaf(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key in value:
            yield from ({**value, key: other} for other in _with_one_other_leaf(value[key]))
    elif isinstance(value, list | tuple):
        for number, element in enumerate(value):
            yield from ([*value[:number], other, *value[number + 1 :]] for other in _with_one_other_leaf(element))
    else:
        yield f"other than {value}"
