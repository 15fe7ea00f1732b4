"""Whatever prints, hostile text in it cannot control the terminal: the gate, and the places that print."""

import ast
import importlib
import io
import json
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pyte
import pytest
from checkpoint_examples import imitate, save
from rich.live import Live
from rich.text import Text
from test_safe_text import ATTACKS

import dtl
from dtl.base.display import Bar, Display, SafeConsole, aligned, plain_console, table, table_console
from dtl.base.files import read_manifest, write_manifest
from dtl.base.json_files import LineFile, sealed
from dtl.base.safe_text import SafeStream, guard_streams, safe_logger, visible
from dtl.checkpoints.find import find_checkpoint
from dtl.checkpoints.load import load_model, load_tokenizer, read_model_config
from dtl.checkpoints.weights import read_shapes, weight_files
from dtl.errors import CheckpointError, ConfigError, DataError, DTLError, InterruptedRun, TrainingError
from dtl.terminal.streams import Screen

HOSTILE = "".join(ATTACKS) + "\ud800\x85\x9b2J"
NAME = "\x1b]52;c;cm0gLXJm\x07\x9b2J\u202e\x1b[2J"  # what a file can be called
# What rich sends by itself: colours, the cursor, its visibility, one line erased.
OWN = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[lh]|[0-9]*[AG]|[0-2]?K)|\r")


@pytest.fixture(autouse=True)
def outside_the_checkout(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without outputs/, and a terminal with colours."""
    monkeypatch.setenv("TERM", "xterm-256color")


def leaks(printed: str) -> str:
    """What controls a terminal in a text, apart from rich's own sequences: none of the attacks is one of those."""
    rest = OWN.sub("", printed)
    return "".join(sign for sign, safe in zip(rest, visible(rest), strict=True) if sign != safe)


def test_the_check_finds_each_attack():
    for attack in ATTACKS:
        if attack not in (f"{ATTACKS[7]}", f"{ATTACKS[9]}"):  # of sequences that are rich's own as well
            assert leaks(attack), attack
    assert leaks("plain\x1b[1;2mtext\x1b[0m\r\x1b[2K") == ""


class Terminal(io.StringIO):
    """A text stream that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def printed_by(action: Callable[[], object]) -> str:
    """What a terminal gets from both standard streams, guarded as a command's are."""
    stream = Terminal()  # not in a fixture: pytest replaces the streams between the phases of a test
    with redirect_stdout(stream), redirect_stderr(stream):
        guard_streams()
        action()
    return stream.getvalue()


# --- writers ------------------------------------------------------------------------------------------------------


def shown_by_rich(console: SafeConsole) -> None:
    console.print(HOSTILE)
    console.print(Text(HOSTILE, style="bold"))
    console.print(f"[link=http://x]{HOSTILE}[/link]")


def live_table() -> None:
    with Live(table([HOSTILE], [[HOSTILE]]), console=table_console(), auto_refresh=False, transient=True) as live:
        print(HOSTILE)
        sys.stderr.write(HOSTILE + "\n")
        live.update(table([HOSTILE], [[Text(HOSTILE)]]), refresh=True)


def progress() -> None:
    with Display() as display:
        display.start_progress(9, 0)
        display.status(HOSTILE)
        display.step(3, 9, [HOSTILE, HOSTILE])
        print(HOSTILE)
        sys.stderr.write(HOSTILE + "\n")


def bar() -> None:
    console = plain_console()
    line = Bar(console)
    line.update(HOSTILE, HOSTILE, 0.5)
    line.stop()


def waiting() -> None:
    screen = Screen(sys.stdout, sys.stdout, labelled=True)
    with screen.waiting(HOSTILE):
        screen.label(HOSTILE, "bold")
        screen.piece(HOSTILE)


def trace() -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        traceback.print_exception(error)
        sys.excepthook(type(error), error, error.__traceback__)


def logged(log: Callable[[], object]) -> None:
    """With the handler that writes to standard error in the place of pytest's, which would report a lone surrogate."""
    root = logging.getLogger()
    before, root.handlers = root.handlers, [logging.StreamHandler(sys.stderr)]
    try:
        log()
    finally:
        root.handlers = before


class Unraisable:
    def __del__(self) -> None:
        raise ValueError(HOSTILE)


def unraisable() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
        Unraisable()


WRITERS: dict[str, Callable[[], object]] = {
    "print": lambda: print(HOSTILE),
    "print to stderr": lambda: print(HOSTILE, file=sys.stderr),
    "sys.stdout.write": lambda: sys.stdout.write(HOSTILE),
    "sys.stderr.writelines": lambda: sys.stderr.writelines([HOSTILE, HOSTILE]),
    "warnings.warn": lambda: sys.stderr.write(warnings.formatwarning(HOSTILE, UserWarning, HOSTILE, 1, HOSTILE)),
    "traceback": trace,
    "sys.unraisablehook": unraisable,
    "another library's log": lambda: logged(lambda: logging.getLogger("foreign").warning(HOSTILE)),
    "a log of DTL": lambda: logged(lambda: safe_logger("dtl.some").warning("%s: %s", HOSTILE, ValueError(HOSTILE))),
    "Display.note": lambda: Display().note(HOSTILE),
    "Display.warn": lambda: Display().warn(HOSTILE),
    "Display.print": lambda: Display().print(HOSTILE),
    "Display.log": lambda: Display().log(HOSTILE),
    "Display.screen": lambda: Display().screen(HOSTILE, [(HOSTILE, HOSTILE), ("name", HOSTILE * 9)]),
    "Display.step": lambda: Display().step(1, 2, [HOSTILE]),
    "Display, with a bar": progress,
    "Bar": bar,
    "console": lambda: shown_by_rich(plain_console()),
    "table console": lambda: shown_by_rich(table_console()),
    "table": lambda: table_console().print(table([HOSTILE, "b"], [[HOSTILE, Text(HOSTILE)]])),
    "narrow table": lambda: table_console(width=20).print(
        table([HOSTILE, "b"], [[HOSTILE] * 2], every={"no_wrap": True})
    ),
    "aligned lines": lambda: Display().print("\n".join(aligned([(HOSTILE, "a"), ("b", HOSTILE)]))),
    "live table": live_table,
    "Screen.note": lambda: Screen(sys.stdout, sys.stdout, labelled=True).note(HOSTILE),
    "Screen.print": lambda: Screen(sys.stdout, sys.stdout, labelled=True).print(HOSTILE, "red"),
    "Screen.warn": lambda: Screen(sys.stdout, sys.stdout, labelled=True).warn(HOSTILE),
    "Screen.line": lambda: Screen(sys.stdout, sys.stdout, labelled=True).line(HOSTILE),
    "Screen.waiting, label, piece": waiting,
    "LineFile": lambda: logged(lambda: LineFile(Path("/dev/null") / NAME).append([{"step": 1}])),
}


@pytest.mark.counted("places that print, with escapes in every text: none leaks")
@pytest.mark.fault("terminal")
@pytest.mark.parametrize("place", WRITERS)
def test_a_writer_is_safe(place):
    printed = printed_by(WRITERS[place])
    assert printed and leaks(printed) == ""
    assert not {"\x1b[31;7;8m", "\x1b[?25l\x1b[?5h", "\x1b[3;5r", "\x1b[H"} & set(
        re.findall(r"(?:\x1b\[[^a-zA-Z]*[a-zA-Z])+", printed)
    )
    assert "\u241b" in printed  # the escape character is seen


def test_own_sequences_arrive():
    """Colours and the live display: the guard would make them visible otherwise."""
    printed = printed_by(lambda: (progress(), Display().note("dimmed")))
    assert "\x1b[2mdimmed\x1b[0m" in printed and "\x1b[?25l" in printed and "\u241b" in printed
    screen = pyte.Screen(60, 10)
    pyte.Stream(screen).feed(printed.replace("\n", "\r\n"))
    assert not screen.cursor.hidden and "dimmed" in "\n".join(screen.display)


def test_the_guard_is_one_layer_and_passes_the_rest_on():
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with redirect_stdout(ascii_only), redirect_stderr(io.StringIO()):
        guard_streams()
        guarded = sys.stdout
        guard_streams()
        assert sys.stdout is guarded and isinstance(guarded, SafeStream) and guarded.encoding == "ascii"
        assert guarded.write("\x1b\ud800é") == 3
        guarded.flush()
    assert ascii_only.buffer.getvalue() == b"???"


@pytest.mark.fault("terminal")
def test_nothing_else_writes():
    """Only the gate makes consoles and loggers, and nothing writes to the original streams."""
    gates = {"display.py", "safe_text.py"}
    for file in Path(dtl.__file__).parent.rglob("*.py"):
        if file.name in gates:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("Console", "rich.print", "rich.console.Console", "logging.getLogger"), file
            assert not (isinstance(node, ast.Attribute) and node.attr in ("__stdout__", "__stderr__")), file


# --- messages of errors, also where DTL is a library --------------------------------------------------------------


@pytest.mark.parametrize("kind", [DTLError, ConfigError, DataError, CheckpointError, TrainingError])
def test_a_message_is_safe(kind):
    message = str(kind(f"naïve 日本 🙂 \u200d שלום\n\t{HOSTILE}"))
    assert leaks(message) == "" == OWN.sub("", message)[:0]
    assert message.startswith("naïve 日本 🙂 \u200d שלום\n\t") and "\\x1b]52;c;" in message and "\\u202e" in message
    assert leaks(str(InterruptedRun(HOSTILE, 2))) == ""


def folder_of(tmp: Path, config: object = None, tokenizer: object = None, weights: bytes = b"") -> Path:
    folder = tmp / NAME
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def tensors(**shapes: list[int]) -> bytes:
    header = json.dumps(
        {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    )
    return len(header).to_bytes(8, "little") + header.encode()


GPT2 = {"model_type": "gpt2", "vocab_size": 258, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 8}
MODELS: dict[str, Callable[[Path], object]] = {
    "model type": lambda tmp: read_model_config(folder_of(tmp, {"model_type": HOSTILE})),
    "value": lambda tmp: read_model_config(folder_of(tmp, GPT2 | {"activation_function": HOSTILE})),
    "vocabulary": lambda tmp: read_model_config(folder_of(tmp, GPT2 | {"vocab_size": HOSTILE})),
    "key of dtl": lambda tmp: read_model_config(folder_of(tmp, GPT2 | {"dtl": {HOSTILE: 1}})),
    "block": lambda tmp: read_model_config(
        folder_of(tmp, {"model_type": f"dtl-{HOSTILE}", "dtl": {"arch": {"block": HOSTILE}}})
    ),
    "not an object": lambda tmp: read_model_config(folder_of(tmp, [HOSTILE])),
    "name of a shard": lambda tmp: weight_files(index_of(tmp, HOSTILE)),
    "tensor": lambda tmp: load_model(folder_of(tmp, GPT2, None, tensors(**{HOSTILE: [1], "b": [99999]}))),
    "two shards": lambda tmp: read_shapes(
        [folder_of(tmp, None, None, tensors(**{HOSTILE: [1]})) / "model.safetensors"] * 2
    ),
    "header": lambda tmp: read_shapes(
        [folder_of(tmp, None, None, b"\x09\0\0\0\0\0\0\0" + HOSTILE.encode(errors="replace")) / "model.safetensors"]
    ),
    "tokenizer": lambda tmp: load_tokenizer(folder_of(tmp, GPT2, {"model": HOSTILE, "version": HOSTILE})),
    "special token": lambda tmp: special_token(tmp),
    "adapter": lambda tmp: adapter(tmp),
    "similar names": lambda tmp: ((tmp / NAME).mkdir(), find_checkpoint(str(tmp / (NAME + "x")), tmp)),
    "runs inside": lambda tmp: (imitate(tmp / NAME, 1), find_checkpoint(str(tmp), tmp)),
    "models inside": lambda tmp: (folder_of(tmp), find_checkpoint(str(tmp), tmp)),
    "a file": lambda tmp: ((tmp / NAME).write_text(""), find_checkpoint(str(tmp / NAME), tmp)),
    "pickle": lambda tmp: ((tmp / f"{NAME}.pt").write_text(""), find_checkpoint(str(tmp), tmp)),
    "name in a manifest": lambda tmp: manifest(tmp),
}


def index_of(tmp: Path, name: str) -> Path:
    (tmp / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    return tmp


def special_token(tmp: Path) -> None:
    folder = save(tmp / "run", 1)
    other = folder_of(tmp, GPT2, json.loads((folder / "tokenizer.json").read_text()))
    (other / "tokenizer_config.json").write_text(json.dumps({"eos_token": HOSTILE}))
    load_tokenizer(other)


def adapter(tmp: Path) -> None:
    (tmp / "adapter_config.json").write_text(json.dumps({"peft_type": HOSTILE, "base_model_name_or_path": HOSTILE}))
    find_checkpoint(str(tmp), tmp)


def manifest(tmp: Path) -> None:
    (tmp / "a").write_text("")
    write_manifest(tmp)
    contents = json.loads((tmp / "manifest.json").read_text())
    from dtl.base.files import _digest

    files = {NAME: contents["files"]["a"]}
    (tmp / "manifest.json").write_text(json.dumps({"files": files, "digest": _digest({}, files)}))
    read_manifest(tmp)


@pytest.mark.counted("places that print, with escapes in every text: none leaks")
@pytest.mark.fault("terminal")
@pytest.mark.parametrize("place", MODELS)
def test_what_is_said_about_a_model_folder(tmp_path, place):
    with pytest.raises(DTLError) as raised:
        MODELS[place](tmp_path)
    assert leaks(str(raised.value)) == "" and not OWN.search(str(raised.value))


# --- commands -----------------------------------------------------------------------------------------------------

LINES = {
    "train": (
        f"name={NAME}",
        f"data.path={NAME}",
        f"{NAME}=1",
        f"+{NAME}",
        f"experiment={NAME}",
        f"resume={NAME}",
        f"init={NAME}",
        f"--config-dir={NAME}",
        f"--{NAME}",
        f"plugins=[{NAME}]",
        f"device={NAME}",
        f"data.sources={{'{NAME}':1}}",
        f"--cfg=job 'name={NAME}'",
    ),
    "chat": (f"ckpt={NAME}", f"sampling={NAME}", "ckpt=hostile"),
    "generate": (f"ckpt={NAME}", f"device={NAME}", "ckpt=hostile"),
    "evaluate": (f"ckpt={NAME}", "ckpt=hostile", f"ckpt=latest data.path={NAME}"),
    "runs": (f"state={NAME}", f"outputs={NAME}", f"name={NAME}", f"sort={NAME}", "delete=runs"),
    "report": (f"runs={NAME}", "runs=outputs", f"record=true runs={NAME}"),
    "sweep": (f"status={NAME}", "status=outputs/sweep", "status=latest"),
    "prepare": (f"data.path={NAME}", f"data.wiki.path={NAME}", f"tokenizer={NAME}"),
    "bench": (f"suite={NAME}",),
    "diagnose": (f"last={NAME}",),
}


SEALED = ("result.json", "trial.json", "evaluation.json")


def hostile_outputs() -> None:
    """A run, a sweep and a model folder whose every text is hostile."""
    run = Path("outputs/2026-01-02/03-04-05-6_a")
    for folder in (run, Path("outputs/sweep/0"), Path(f"outputs/2026-01-03/{NAME}")):
        save(folder, 1)
        texts = {key: HOSTILE for key in ("state", "error", "name", "rerun", "config_hash", "reason", "host", "tag")}
        record = {
            **texts,
            "overrides": [HOSTILE],
            "flags": [HOSTILE],
            "cwd": HOSTILE,
            "sessions": [{**texts, "started": HOSTILE}],
        }
        for name in ("run.json", "error.json", *SEALED):
            (folder / name).write_text(json.dumps(sealed(record) if name in SEALED else record))
        (folder / "config.yaml").write_text(
            json.dumps({"name": HOSTILE, "data": {"sources": {HOSTILE: {"kind": HOSTILE}}}})
        )
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, HOSTILE: 1, "val/loss": 2.0}) + "\n")
    trial = {"number": 0, "overrides": [HOSTILE], "state": HOSTILE, "reason": HOSTILE}
    Path("outputs/sweep/sweep.json").write_text(
        json.dumps(sealed({"kind": HOSTILE, "trials": [trial], "words": [HOSTILE], "overrides": [HOSTILE]}))
    )
    folder_of(Path("."), GPT2 | {"model_type": HOSTILE}).rename("hostile")


@pytest.mark.quick_cases(3)
@pytest.mark.counted("places that print, with escapes in every text: none leaks")
@pytest.mark.fault("terminal")
@pytest.mark.parametrize("name", LINES)
def test_a_command_is_safe(name, monkeypatch, capfd):
    hostile_outputs()
    for line in LINES[name]:
        monkeypatch.setattr(sys, "argv", [f"dtl-{name}", *line.split(" ")])
        with suppress(SystemExit):
            importlib.import_module(f"dtl.{name}").main()
        printed = "".join(capfd.readouterr())
        assert printed and leaks(printed) == "", line
        assert "Traceback" not in printed, printed


def test_the_count_of_places():
    assert len(WRITERS) + len(MODELS) + sum(map(len, LINES.values())) + 6 >= 60
