"""GPT-2's vocabulary: known ids, and each place that it is looked for."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import tokenizers

from dtl.data.config import TokenizerConfig
from dtl.data.tokenizers import gpt2
from dtl.data.tokenizers.tokenizer import build_tokenizer
from dtl.errors import DataError

if gpt2.carried() is None:
    pytest.skip("GPT-2's vocabulary comes with the `offline` extra", allow_module_level=True)

CARRIED: Path = gpt2.carried()  # type: ignore[assignment]
# Ids of the published tokenizer, each text for one of its habits.
PUBLISHED = {
    "Hello, world!": [15496, 11, 995, 0],
    " Hello": [18435],
    "hello  world": [31373, 220, 995],
    "\n\n": [628],
    "\t x\r\n": [197, 2124, 201, 198],
    "1234567890 3.14": [10163, 2231, 30924, 3829, 513, 13, 1415],
    "e\u0301 vs \u00e9": [68, 136, 223, 3691, 38251],
    "I'm you're we'll don't IT'S": [40, 1101, 345, 821, 356, 1183, 836, 470, 7283, 6, 50],
    "\u65e5\u672c\u8a9e": [33768, 98, 17312, 105, 45739, 252],
    "\U0001f642": [8582, 25081],
    "\x00\x01\x7f": [188, 189, 221],
    "   leading and trailing   ": [220, 220, 3756, 290, 25462, 220, 220, 220],
    "<|endoftext|>": [27, 91, 437, 1659, 5239, 91, 29],
}


@pytest.fixture
def nowhere_else(monkeypatch, tmp_path: Path) -> None:
    """No extra, an empty Hugging Face cache, and a hub that is out of reach."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(gpt2, "OFFLINE_PACKAGE", "no_such_package")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")


def test_published_ids() -> None:
    tokenizer = build_tokenizer(TokenizerConfig(), list)
    assert {text: tokenizer.encode(text) for text in PUBLISHED} == PUBLISHED


def test_the_extra_is_found_without_running_its_code() -> None:
    program = (
        "import sys; from dtl.data.tokenizers import gpt2; gpt2.load_gpt2(); print(gpt2.OFFLINE_PACKAGE in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_form_gives_the_same_bytes(tmp_path: Path) -> None:
    reference = gpt2.load_gpt2().to_str()
    published = tmp_path / "published"
    published.mkdir()
    shutil.copy(CARRIED / "encoder.json", published / "vocab.json")
    shutil.copy(CARRIED / "vocab.bpe", published / "merges.txt")
    assert gpt2.load_gpt2(str(published)).to_str() == reference
    content = json.loads(reference)
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]  # as in older files
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    assert gpt2.load_gpt2(str(file)).to_str() == gpt2.load_gpt2(str(tmp_path)).to_str() == reference


def test_a_damaged_extra_is_not_used(monkeypatch, tmp_path: Path) -> None:
    package = tmp_path / "carrier_of_damage"
    shutil.copytree(CARRIED, package / "data")
    (package / "__init__.py").write_text("raise RuntimeError('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gpt2, "OFFLINE_PACKAGE", "carrier_of_damage")
    gpt2.load_gpt2()
    with (package / "data" / "vocab.bpe").open("a") as file:
        file.write("a b\n")
    with pytest.raises(DataError, match=r"vocab\.bpe: not GPT-2's file .*\n.*pip install"):
        gpt2.load_gpt2()


def wrong_size(vocab: dict, merges: list) -> None:
    del vocab[gpt2.END]


def wrong_order(vocab: dict, merges: list) -> None:
    vocab["Hello"], vocab["hello"] = vocab["hello"], vocab["Hello"]


def cut_short(vocab: dict, merges: list) -> None:
    del merges[-1000:]


def merge_of_nothing(vocab: dict, merges: list) -> None:
    merges[7] = "\u4e2d \u6587"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (wrong_size, "50,256 entries, but GPT-2's vocabulary has 50,257"),
        (wrong_order, "not GPT-2's vocabulary: 'Hello world' gives"),
        (cut_short, "49,000 merges, but GPT-2 has 50,000"),
        (merge_of_nothing, "vocabulary and merges do not fit each other"),
    ],
)
def test_what_is_not_gpt2_is_refused(damage, message: str, tmp_path: Path) -> None:
    vocab = json.loads((CARRIED / "encoder.json").read_text(encoding="utf-8"))
    merges = (CARRIED / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    damage(vocab, merges)
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        gpt2.load_gpt2(str(tmp_path))
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "contains no vocabulary"),
        ({"vocab.json": "{}"}, "contains no vocabulary"),
        ({"vocab.json": "[", "merges.txt": ""}, "vocab.json: cannot be read as JSON"),
        ({"vocab.json": "[]", "merges.txt": ""}, "vocab.json: holds a list"),
        ({"vocab.json": '{"a": "b"}', "merges.txt": ""}, "do not fit"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a"}, "do not fit"),
        ({"tokenizer.json": '{"model": {"type": "WordLevel", "vocab": {}}}'}, "tokenizer.json: not the tokenizer.json"),
        ({"tokenizer.json": '{"model": {"merges": [3], "vocab": {}}}'}, "do not fit"),
    ],
)
def test_malformed_files_are_named(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        gpt2.load_gpt2(str(tmp_path))
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_path_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"tokenizer\.path=not/there: no such folder[\s\S]*tokenizer=bpe"):
        gpt2.load_gpt2("not/there")


def test_the_hugging_face_cache(nowhere_else: None, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--gpt2"
    snapshot = repository / "snapshots" / "0123456789"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456789")
    shutil.copy(CARRIED / "encoder.json", snapshot / "vocab.json")
    with pytest.raises(DataError, match="cannot be reached"):  # half of it is nothing
        gpt2.load_gpt2()
    shutil.copy(CARRIED / "vocab.bpe", snapshot / "merges.txt")
    assert gpt2.is_gpt2(gpt2.load_gpt2())
    (snapshot / "tokenizer.json").write_text(gpt2.load_gpt2().to_str(), encoding="utf-8")
    (snapshot / "merges.txt").unlink()
    assert gpt2.is_gpt2(gpt2.load_gpt2())


def test_the_order_of_the_places(monkeypatch) -> None:
    asked: list[str] = []
    finds: dict[str, Path | None] = {"carried": None, "cached": None, "_downloaded": CARRIED}
    for place in finds:
        monkeypatch.setattr(gpt2, place, lambda place=place: asked.append(place) or finds[place])
    monkeypatch.setattr(gpt2, "_checked", lambda backend, place: place)
    monkeypatch.setattr(gpt2, "read_byte_level_bpe", lambda place: place)
    assert gpt2.load_gpt2() == CARRIED
    assert asked == ["carried", "cached", "_downloaded"]
    finds["cached"] = CARRIED
    gpt2.load_gpt2()
    assert asked[3:] == ["carried", "cached"]
    gpt2.load_gpt2(str(CARRIED))
    assert len(asked) == 5  # a path of one's own comes first


def test_nothing_anywhere_is_an_error(nowhere_else: None) -> None:
    with pytest.raises(DataError) as caught:
        gpt2.load_gpt2()
    message = str(caught.value)
    for part in ("GPT-2's vocabulary", "127.0.0.1", "pip install 'dtl[offline]'", "tokenizer.path=", "tokenizer=bpe"):
        assert part in message
    assert len(message.splitlines()) <= 6


class Hub(BaseHTTPRequestHandler):
    """Plays the hub for the two files of GPT-2."""

    served: ClassVar = {"vocab.json": CARRIED / "encoder.json", "merges.txt": CARRIED / "vocab.bpe"}
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        file = self.served.get(self.path.removeprefix("/openai-community/gpt2/resolve/main/"))
        content = file.read_bytes() if file else b""
        self.send_response(200 if file else 404)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{len(content):040x}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch, nowhere_else: None, tmp_path: Path) -> Iterator[type[Hub]]:
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    # The library read the variable when it was imported, and asks there for more than the files.
    for name, value in (
        ("ENDPOINT", address),
        ("HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"),
        ("AGENT_HARNESSES_PATH", str(tmp_path / "harnesses.json")),
    ):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    yield Hub
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_last_and_only_once(hub: type[Hub]) -> None:
    backend = gpt2.load_gpt2()
    assert isinstance(backend, tokenizers.Tokenizer) and gpt2.is_gpt2(backend)
    assert sum(line.startswith("GET /openai-community") for line in hub.asked) == 2
    hub.asked = []
    gpt2.load_gpt2()
    assert hub.asked == []  # from the cache


def test_a_hub_without_the_files(hub: type[Hub], monkeypatch) -> None:
    monkeypatch.setattr(hub, "served", {})
    with pytest.raises(DataError, match=r"the download failed[\s\S]*tokenizer=bpe"):
        gpt2.load_gpt2()
