"""The command line that the user meant: `--model small`, `lr=1e-3` and the words of other programs in DTL's own."""

import difflib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra._internal.utils import get_args_parser

from dtl.base.display import command_line, shell_line
from dtl.base.paths import experiments_dir
from dtl.base.redaction import check_no_secrets
from dtl.commandline.command import ENTRY, Command, Key, has_own_configs
from dtl.commandline.overrides import exists, is_dir, is_path, looks_like_a_path, override_key, words_of_a_path
from dtl.errors import ConfigError, did_you_mean

# Settings by their names in nanoGPT, in Hugging Face's Trainer and model configs, and in tutorials' scripts.
_NAMES = {
    "ckpt": "model checkpoint ckpt_path checkpoint_path model_path model_name_or_path weights load out_dir output_dir",
    "prompt": "start text input",
    "trainer.total_steps": "max_iters max_steps steps n_steps num_steps iters iterations num_iterations n_iters "
    "num_training_steps max_train_steps train_steps",
    "trainer.max_epochs": "epochs num_epochs n_epochs num_train_epochs epoch",
    "trainer.micro_batch_size": "batch_size per_device_train_batch_size train_batch_size device_batch_size bs",
    "trainer.grad_accum_steps": "gradient_accumulation_steps grad_accum accumulate_grad_batches accumulation_steps",
    "trainer.eval_every_steps": "eval_interval eval_steps eval_every val_check_interval val_interval",
    "trainer.eval_max_batches": "eval_iters limit_val_batches",
    "trainer.log_every_steps": "log_interval logging_steps log_every log_every_n_steps",
    "trainer.save_every_steps": "save_interval save_steps save_every checkpoint_interval",
    "trainer.keep": "save_total_limit save_top_k",
    "trainer.max_grad_norm": "grad_clip gradient_clip_val clip_grad clip",
    "trainer.early_stopping_patience": "patience early_stopping",
    "trainer.activation_checkpointing": "gradient_checkpointing",
    "trainer.compile": "torch_compile",
    "trainer.precision": "dtype mixed_precision amp",
    "trainer.loss.label_smoothing": "label_smoothing_factor",
    "optimizer.lr": "learning_rate max_lr",
    "optimizer.weight_decay": "wd",
    "optimizer": "optim opt",
    "schedule": "scheduler lr_scheduler lr_scheduler_type lr_schedule",
    "schedule.warmup_steps": "warmup_iters warmup num_warmup_steps",
    "schedule.warmup_fraction": "warmup_ratio",
    "model.dim": "n_embd n_embed d_model hidden_size hidden_dim embed_dim emb_dim embedding_dim width",
    "model.n_layers": "n_layer num_layers num_hidden_layers layers depth",
    "model.n_heads": "n_head num_heads num_attention_heads heads",
    "model.n_kv_heads": "num_key_value_heads n_kv_head",
    "model.ffn_dim": "intermediate_size n_inner d_ff",
    "model.ffn_multiple_of": "multiple_of",
    "model.max_seq_len": "block_size context_length context_size n_positions n_ctx max_length max_position_embeddings "
    "seq_length sequence_length",
    "model.dropout": "drop_rate dropout_rate hidden_dropout_prob resid_pdrop embd_pdrop",
    "model.attention_dropout": "attn_pdrop attn_dropout attention_probs_dropout_prob",
    "model.tie_embeddings": "tie_word_embeddings",
    "data.path": "path data_path data_dir dataset_path file train_file train_data input_file text_file",
    "data": "dataset dataset_name",
    "hydra.run.dir": "out_dir output_dir save_dir",
    "name": "run_name wandb_run_name exp_name experiment_name",
    "tracker": "report_to logger",
    "tracker.project": "wandb_project project_name",
    "resume": "resume_from_checkpoint resume_from",
    "init": "init_from model_name_or_path pretrained base_model",
    "seed": "random_seed manual_seed",
    "sampling.max_new_tokens": "max_tokens num_tokens length",
    "sampling.temperature": "temp",
}
# A name, or a name with its value, and the word for it here; empty where no word is needed.
_WORDS: dict[str, str] = {
    **dict.fromkeys(("gradient_checkpointing", "gradient_checkpointing=true"), "trainer.activation_checkpointing=full"),
    **dict.fromkeys(("fp16", "fp16=true"), "trainer.precision=fp16"),
    **dict.fromkeys(("bf16", "bf16=true"), "trainer.precision=bf16"),
    **dict.fromkeys(("fp16=false", "bf16=false", "do_train", "do_train=true", "init_from=scratch"), ""),
    **dict.fromkeys(("cpu", "no_cuda", "use_cpu", "no_cuda=true", "use_cpu=true"), "device=cpu"),
    **dict.fromkeys(("cuda", "gpu"), "device=cuda"),
    **dict.fromkeys(("wandb", "wandb_log", "wandb_log=true", "report_to=wandb"), "tracker=wandb"),
    **dict.fromkeys(("no_wandb", "wandb_log=false", "report_to=none"), "tracker=local"),
    **dict.fromkeys(("resume", "init_from=resume", "resume_from_checkpoint=true"), "resume=latest"),
}
_VALUES = {  # of trainer.precision
    **dict.fromkeys(("float16", "half", "16"), "fp16"),
    **dict.fromkeys(("bfloat16", "bf16-mixed"), "bf16"),
    **dict.fromkeys(("float32", "float", "no", "32"), "fp32"),
}
_LATEST = {"last", "newest", "recent", "auto", "true"}  # where a run is named
_OF_RUNS = ("ckpt", "resume", "init", "runs", "status")
_OF_MANY = ("path", "name", "kind")  # keys of several sections
OUTPUTS = Path("outputs")
_PAIRS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_TEXTS = (".txt", ".gz", ".bz2", ".xml")
_SCRIPT = re.compile(r"python3?|torchrun|[\w./-]+\.py")  # of another program's command line
MAX_HOPS = 4  # a corrected line is read again: `--data my.txt` is data=my.txt, which is data=text data.path=my.txt
_OPEN = {"chat": "ckpt", "generate": "ckpt", "evaluate": "ckpt", "report": "runs", "sweep": "status", "runs": "outputs"}


def check_words(arguments: Sequence[str], command: Command, paste: Callable[..., str] = command_line) -> None:
    """Raise ConfigError for words that mean a setting and are not written as one, with the right command.

    `paste` makes that command from the command's name and its words. Words that mean nothing here are left to Hydra.
    """
    line = _Line(command)
    line.read(list(arguments))
    if not line.wrong:
        return
    right = line.right
    for _ in range(MAX_HOPS):
        again = _Line(command)
        again.read(list(right))
        if not again.wrong:
            break
        right = again.right
    check_no_secrets(right)
    rest = ""
    if line.unknown:
        known = [*line.groups, *(key.name for key in command.settings)]
        hints = "".join(did_you_mean(word.lstrip("-"), known) for word in line.unknown)
        rest = f" (without what is not known here: {', '.join(line.unknown)}{'.' * bool(hints)}{hints})"
    by_key_alone = len(line.full_keys) == len(line.wrong)
    rule = f"DTL calls this {', '.join(line.full_keys)}" if by_key_alone else "DTL's settings are key=value"
    if len(line.unquoted) == len(line.wrong):
        rule = "a value with spaces needs quotes"
    raise ConfigError(
        f"{', '.join(line.wrong)}: {rule}. The same command in DTL's words{rest}:\n  {paste(command.name, *right)}"
    )


@dataclass
class _Line:
    """A command line, read from left to right."""

    command: Command
    right: list[str] = field(default_factory=list)  # the words as they should be
    wrong: list[str] = field(default_factory=list)  # what was typed instead
    full_keys: list[str] = field(default_factory=list)  # of the words whose key alone is another here: `lr=1e-3`
    unquoted: list[str] = field(default_factory=list)  # words that the shell split at their spaces
    unknown: list[str] = field(default_factory=list)  # flags that mean nothing here
    chooses: bool = False  # from a config group, by a word of the line
    has_groups: bool = False  # config groups of the user, by --config-dir
    assumed: str = ""  # a word for what no other word gives

    def __post_init__(self) -> None:
        self.groups = self.command.groups()  # read from disk: once for all words

    def read(self, words: list[str]) -> None:
        keys = (key for key, _, value in (word.partition("=") for word in words) if not looks_like_a_path(value))
        self.chooses = any(key.lstrip("-") in self.groups for key in keys)  # `data=my_pairs.jsonl` chooses nothing
        self.has_groups = has_own_configs(words)
        flags = get_args_parser()._option_string_actions
        while words:
            word = words.pop(0)
            flag, equals, _ = word.partition("=")
            if flag in flags:  # Hydra's own
                takes_one = flags[flag].nargs != 0 and not equals
                self.right += [word, *([words.pop(0)] if takes_one and words else [])]
            elif word.startswith("-") and len(word) > 1:
                self._flag(word, words)
            elif equals:
                self._setting(word, words)
            else:
                self._bare(word, words)
        key = self.assumed.partition("=")[0]
        if self.assumed and not any(word.startswith(f"{key}=") for word in self.right):
            self.right.insert(0, self.assumed)
        self.right = list(dict.fromkeys(self.right))  # `data=qa my_pairs.jsonl`

    def _flag(self, word: str, rest: list[str]) -> None:
        """`--lr=1e-3`, `--lr 1e-3`, `--compile`."""
        name, equals, value = word.lstrip("-").partition("=")
        typed = word
        if not equals and rest and _is_value(rest[0]):
            value = rest.pop(0)
            typed, equals = f"{word} {value}", "="
        if equals and (more := self._rest_of_a_text(name.replace("-", "_"), rest)):
            value, typed = " ".join([value, *more]), " ".join([typed, *more])
        self._reject_prompt(typed, name, value)
        meant = self._meaning(name, value if equals else None)
        if meant is None and not equals and name.startswith(("no-", "no_")):
            meant = self._meaning(name[3:], "false")
        if meant is None and not equals and (key := next(self._keys(name.replace("-", "_")), None)):
            raise ConfigError(f"{word}: needs a value. Settings are key=value: {key}=...")
        if meant is None:
            self.unknown.append(f"{'-' * (len(word) - len(word.lstrip('-')))}{name}")
            return
        self.wrong.append(typed)
        self.right += meant

    def _setting(self, word: str, rest: list[str]) -> None:
        """`lr=1e-3`, and `lr= 1e-3`."""
        key, _, value = word.partition("=")
        typed = word
        if not value and rest and _is_value(rest[0]) and self.command.key(rest[0]) is None:
            value = rest.pop(0)
            typed = f"{word} {value}"
        if more := self._rest_of_a_text(key, rest):
            value, typed = " ".join([value, *more]), " ".join([typed, *more])
        self._reject_question(key, value, rest)
        setting = self.command.key(override_key(key))
        may_lack = key not in _OF_RUNS  # `ckpt=lates my_pairs.csv` is two things
        if setting and setting.is_path and (n_words := words_of_a_path(value, rest, may_lack)):
            self.unquoted.append(" ".join([typed, *rest[:n_words]]))
            self.wrong.append(self.unquoted[-1])
            self.right.append(" ".join([f"{key}={value}", *rest[:n_words]]))
            del rest[:n_words]
            return
        known = key != override_key(key) or self._is_known(key)
        self._reject_prompt(typed, key, value)
        meant = self._value(key, value) if known else self._meaning(key, value) or self._elsewhere(key, value)
        if meant and typed == word:
            self.full_keys.append(" ".join(meant) if known else meant[-1].partition("=")[0])
        if meant is None and not known and (exists(word) or not re.fullmatch(r"[\w./@-]+", key)):
            meant = self._alone(word)  # the name of a file with a =, a text
        if meant is None and typed != word:
            meant = [f"{key}={value}"]
            self.unquoted += [typed] if typed == meant[0] else []
        if meant is None:
            self.right.append(word)
            return
        self.wrong.append(typed)
        self.right += meant

    def _bare(self, word: str, rest: list[str]) -> None:
        """`model small`, `lr = 1e-3`, `my_texts/`, `Once upon a time`."""
        if word.startswith("~") and not is_path(word):  # Hydra's way to delete an entry
            self.right.append(word)
            return
        if rest and rest[0].startswith("=") and (rest[0] != "=" or len(rest) > 1):
            joined = rest.pop(0)
            joined += rest.pop(0) if joined == "=" else ""
            joined = " ".join([joined, *self._rest_of_a_text(word, rest)])
            self.wrong.append(f"{word} {joined}")
            self.right += self._meaning(word, joined[1:]) or [f"{word}{joined}"]
            return
        if rest and _is_value(rest[0]) and self._meaning(word, rest[0]) is not None:
            value = " ".join([rest.pop(0), *self._rest_of_a_text(word, rest)])
            self.wrong.append(f"{word} {value}")
            self.right += self._meaning(word, value) or []
            return
        if self._begins_a_text(word):
            word = " ".join([word, *self._rest_of_a_text("prompt", rest)])
        meant = self._alone(word)
        if meant is None:
            self.right.append(word)
            return
        self.wrong.append(word)
        self.right += meant

    def _begins_a_text(self, word: str) -> bool:
        """True for a word that may begin a prompt or a question: it is no file, no key and no run."""
        if self.command.name not in ("generate", "chat") or word == "latest" or is_path(word) or self._is_known(word):
            return False
        return bool(self.command.key("prompt")) or self._run_named(word, or_train=False) is None

    def _rest_of_a_text(self, key: str, rest: list[str]) -> list[str]:
        """Remove and return the words after a text without quotes that belong to it: `prompt=Hello, world`."""
        if key != "prompt" and next(self._keys(key), None) != "prompt":
            return []
        n_words = next((n for n, word in enumerate(rest) if "=" in word or word.startswith("-")), len(rest))
        taken, rest[:] = rest[:n_words], rest[n_words:]
        return taken

    def _reject_prompt(self, typed: str, name: str, value: str) -> None:
        """Raise ConfigError for `--prompt x` or `prompt=x` where there is no such setting."""
        if name != "prompt" or self.command.key("prompt"):
            return
        if self.command.name == "chat":
            ask = f"{shell_line(['echo', value])} | {command_line('chat', 'ckpt=latest')}"
            raise ConfigError(f"{typed}: the chat reads its questions. To ask one alone:\n  {ask}")
        use = command_line("generate", "ckpt=latest", f"prompt={value}")
        raise ConfigError(f"{typed}: a prompt is for dtl.generate:\n  {use}")

    def _reject_question(self, key: str, value: str, rest: Sequence[str]) -> None:
        """Raise ConfigError for a question where the chat takes a file of them."""
        if key != "ask" or self.command.name != "chat" or is_path(value) or words_of_a_path(value, rest, True):
            return
        text = " ".join([value, *itertools.takewhile(lambda word: "=" not in word and word[:1] != "-", rest)])
        if " " in text or text.endswith("?"):
            ask = f"{shell_line(['echo', text])} | {command_line('chat', 'ckpt=latest')}"
            raise ConfigError(f"ask={text}: takes a file of questions with answers. To ask one alone:\n  {ask}")

    def _is_known(self, key: str) -> bool:
        return (
            key.startswith(("hydra.", "hydra/"))
            or "@" in key
            or key in self.groups
            or bool(self.command.key(key))
            or any(setting.name.startswith(f"{key}.") for setting in self.command.settings)
        )

    def _meaning(self, name: str, value: str | None) -> list[str] | None:
        """The words for a setting by its name here or elsewhere; None if it is not known."""
        name = name.replace("-", "_")
        typed = name if value is None else f"{name}={value.lower()}"
        word = _WORDS.get(typed)
        if word is not None and (not word or self._is_known(word.partition("=")[0])):
            return word.split()
        key = next(self._keys(name), None)
        if key is None:
            return None
        if value is None:
            setting = self.command.key(key)
            return [f"{key}=true"] if setting and setting.type.startswith("true/false") else None
        if key == "data.path" and name != "data.path":
            return self._file(value)
        if self._reads_data_as_a_model(key, value):
            return self._measured(value)
        return [f"{key}={_VALUES.get(value, value) if key == 'trainer.precision' else value}"]

    def _value(self, key: str, value: str) -> list[str] | None:
        """The words for a value that stands where another is meant: a file for a choice, `ckpt=last`."""
        setting = self.command.key(key)
        is_switch = setting is not None and setting.type.startswith("true/false")  # resume=true of dtl.diagnose
        if key in _OF_RUNS and not (is_switch or exists(value)) and self._means_latest(value):
            return [f"{key}=latest"]
        if self._reads_data_as_a_model(key, value):
            return self._measured(value)
        is_choice = value in self.groups.get(key, (value,))
        # A choice of the user's own may have the name of a file.
        if is_choice or not (looks_like_a_path(value) or (exists(value) and not self.has_groups)):
            return None
        if key == "data":
            return self._file(value)
        return ["tokenizer=gpt2", f"tokenizer.path={value}"] if key == "tokenizer" else None

    def _means_latest(self, value: str) -> bool:
        """True for another word for `latest`, and for a slip in it: `lastest`."""
        is_slip = difflib.get_close_matches(value.lower(), ["latest"], cutoff=0.81) and value != "latest"
        return value.lower() in _LATEST or bool(is_slip and self._run_named(value, or_train=False) is None)

    def _reads_data_as_a_model(self, key: str, value: str) -> bool:
        known = {"chat": (*_PAIRS, ".txt"), "evaluate": (*_PAIRS, *_TEXTS), "generate": (".txt",)}
        suffix = Path(value).suffix.lower()
        return key == "ckpt" and suffix in known.get(self.command.name, ()) and not is_dir(value)

    def _measured(self, path: str) -> list[str]:
        """The words that ask a model the questions of a file, or measure it on the file. Raises ConfigError with the
        command for a file of which each line is a question, or the beginning of a text."""
        if self.command.name != "evaluate" and Path(path).suffix.lower() == ".txt":
            piped = f"{command_line(self.command.name, 'ckpt=latest')} < {shell_line([path])}"
            raise ConfigError(f"{path}: a file of text, and a model is a folder. To use each of its lines:\n  {piped}")
        self.assumed = "ckpt=latest"
        if self.command.name == "chat":
            return [f"ask={path}"]
        if Path(path).suffix.lower() in _PAIRS:
            return ["data=qa", f"data.qa.path={path}"]
        return ["data=text", f"data.path={path}"]

    def _elsewhere(self, key: str, value: str) -> list[str] | None:
        """The words for the key of another section: `trainer.device=cuda`."""
        section, dot, leaf = key.rpartition(".")
        above = [key[: match.start()] for match in re.finditer(r"\.", key)]
        holders = [self.command.key(name) for name in above]
        if not dot or any(holder and holder.type == "mapping" for holder in holders):  # whose entries the user names
            return None
        if section not in self.groups and not any(
            name.name.startswith(f"{section}.") for name in self.command.settings
        ):
            return None
        meant = self._meaning(leaf, value)
        # A path, a name, a kind: of what, only its section says.
        return None if meant and meant[-1].partition("=")[0].rpartition(".")[2] in _OF_MANY else meant

    def _keys(self, name: str) -> Iterator[str]:
        """Keys and groups that `name` may mean, the likeliest first."""
        if name in self.groups or self.command.key(name):
            yield name
        settings = [key for key in self.command.settings if ENTRY not in key.name]
        leaves = [key for key in settings if key.name.rpartition(".")[2] == name or key.name.replace(".", "_") == name]
        for target, names in _NAMES.items():
            known = target in self.groups or target.startswith("hydra.") or self.command.key(target)
            if known and name in names.split():
                yield target
        if (meant := _main_one(leaves)) is not None:
            yield meant.name

    def _alone(self, word: str) -> list[str] | None:
        """The words for one without a key: a file, a run, a choice; none for the name of a script."""
        if _SCRIPT.fullmatch(word):
            return []
        opens = _OPEN.get(self.command.name)
        if self._is_known(word):  # a key without a value: `resume`
            return [_WORDS[word]] if word in _WORDS else None
        if opens:
            if self._reads_data_as_a_model(opens, word):
                return self._measured(word)
            if word == "latest" or is_path(word) or opens != "ckpt":
                return [f"{opens}={word}"]
            if self.command.key("prompt"):
                return [f"prompt={word}"]
            if self.command.name == "chat" and (" " in word or word.endswith("?")):
                self._reject_prompt(word, "prompt", word)
            return self._run_named(word)
        if is_path(word):
            return self._file(word)
        groups = [group for group, choices in self.groups.items() if word in choices]
        return [f"{groups[0]}={word}"] if len(groups) == 1 else None

    def _run_named(self, name: str, or_train: bool = True) -> list[str] | None:
        """The words for the newest run of this name. With `or_train`, raises ConfigError where there is none and a
        recipe trains one."""
        from dtl.checkpoints.find import runs_named  # imports libraries that a wrong word does not need

        if run := next(iter(runs_named(name, OUTPUTS)), None):
            return [f"ckpt={run}"]
        if or_train and (recipe := experiments_dir() / "experiment" / f"{name}.yaml").is_file():
            line = re.search(r"^# Run: (python -m dtl\.train .*?)(?:  |$)", recipe.read_text("utf-8"), re.MULTILINE)
            train = line[1] if line else command_line("train", f"experiment={name}")
            raise ConfigError(f"{name}: a recipe, and no run of it is under {OUTPUTS}. To train one:\n  {train}")
        return None

    def _file(self, path: str) -> list[str] | None:
        """The words that train on a file or folder, or resume a run."""
        folder = Path(os.path.expanduser(path))
        if self.command.key("resume") and (folder / "checkpoints").is_dir():
            return [f"resume={path}"]
        if not self.command.key("data.path"):
            return None
        if folder.suffix.lower() not in _PAIRS:
            return ["data=text", f"data.path={path}"]
        # The recipe learns them in minutes on any machine.
        recipe = not self.chooses and "my_pairs" in self.groups.get("experiment", ())
        return ["experiment=my_pairs" if recipe else "data=qa", f"data.qa.path={path}"]


def _main_one(leaves: list[Key]) -> Key | None:
    """The key that is meant: there is no other, or the others are recommendations or of one source; else None."""
    main = [key for key in leaves if not key.name.startswith(("data.recommended.", "data.qa.", "data.wiki."))]
    return main[0] if len(main) == 1 else leaves[0] if len(leaves) == 1 else None


def _is_value(word: str) -> bool:
    return bool(re.match(r"-?\d", word)) or not (word.startswith("-") or "=" in word)
