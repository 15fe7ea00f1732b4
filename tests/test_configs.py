"""Every file under conf/ and experiments/ composes into a valid run; every knob turns something."""

import ast
import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from composing import composed
from omegaconf import OmegaConf

import dtl.bench
import dtl.chat
import dtl.diagnose
import dtl.evaluate
import dtl.generate
import dtl.plan
import dtl.prepare
import dtl.report
import dtl.runs
import dtl.sweep
from dtl.base.paths import choices, conf_dir, experiments_dir
from dtl.config import RunConfig, schema_defaults, to_dict, to_yaml, typed
from dtl.data.config import DataConfig, SourceConfig
from dtl.errors import ConfigError
from dtl.model.presets import load_preset
from dtl.train import COMMAND
from dtl.training.config import OptimizerConfig

COMMANDS = (
    COMMAND,
    dtl.chat.COMMAND,
    dtl.generate.COMMAND,
    dtl.evaluate.COMMAND,
    dtl.diagnose.COMMAND,
    dtl.plan.COMMAND,
    dtl.prepare.COMMAND,
    dtl.bench.COMMAND,
    dtl.report.COMMAND,
    dtl.sweep.COMMAND,
    dtl.runs.COMMAND,
)
CHOICES = [(group, choice) for group, choices in COMMAND.groups().items() for choice in choices]
COMPOSED = Path(__file__).parent / "golden" / "composed.json"
# What a choice cannot do without.
NEEDED = {choice: ["data.path=books/"] for choice in (("data", "text"), ("experiment", "text_cpu"))}
NEEDED["model", "auto"] = ["data=text", "data.path=books/", "trainer.hours=1"]
NEEDED["experiment", "my_pairs"] = ["data.qa.path=my_pairs.jsonl"]


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("data", COMMAND.groups()["data"])
def test_nothing_is_held_out_of_any_data_by_one_setting(data):
    held_out = composed(f"data={data}", *NEEDED.get(("data", data), []), "data.validation_fraction=0").data.held_out
    assert (held_out.validation, held_out.test) == (0, 0)


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("trainer", COMMAND.groups()["trainer"])
@pytest.mark.parametrize("data", COMMAND.groups()["data"])
def test_every_trainer_takes_all_data(data, trainer):
    config = composed(f"data={data}", f"trainer={trainer}", *NEEDED.get(("data", data), []))
    assert config.max_epochs is not None or config.trainer.total_steps is not None


def differences(given: dict[str, Any], base: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested config that a base does not have."""
    for key, value in given.items():
        inner = base.get(key)
        if isinstance(value, dict) and value and isinstance(inner, dict):
            yield from differences(value, inner, f"{path}{key}.")
        elif key not in base or value != inner:
            yield f"{path}{key}", value


@cache
def plain_defaults() -> dict[str, Any]:
    """The values of the dataclasses alone."""
    return to_dict(OmegaConf.to_object(schema_defaults(RunConfig)))


@pytest.mark.parametrize("choice", [None, *CHOICES], ids=lambda choice: "=".join(choice or ["default"]))
def test_every_choice_composes_as_committed(choice):
    """To a valid run. In tests/golden/composed.json: what each choice changes in the dataclasses, so that a default
    that moves shows here."""
    overrides = [] if choice is None else ["=".join(choice), *NEEDED.get(choice, [])]
    config = composed(*overrides)
    sources = dict.fromkeys(config.data.sources, dataclasses.asdict(SourceConfig()))
    plain = plain_defaults() | {"data": plain_defaults()["data"] | {"sources": sources}}
    found = dict(differences(to_dict(config), plain))
    committed = json.loads(COMPOSED.read_text(encoding="utf-8"))
    if os.environ.get("DTL_UPDATE_GOLDEN"):
        committed[" ".join(overrides)] = found
        lines = [f"{json.dumps(name)}: {json.dumps(values, sort_keys=True)}" for name, values in committed.items()]
        COMPOSED.write_text("{\n" + ",\n".join(sorted(lines)) + "\n}\n", encoding="utf-8")
    assert found == committed[" ".join(overrides)]


def test_a_config_made_by_hand_has_the_commands_defaults():
    assert replace(RunConfig(), name="small_qa") == composed()


def test_a_group_of_ones_own_builds_on_the_dataclasses(elsewhere):
    """Not on the choices that the command makes by default: no source, mask or learning rate of those is left in it."""
    for group, text in {"data": "sources: {verses: {kind: text, path: x}}", "optimizer": "lr: 0.1"}.items():
        (elsewhere / group).mkdir()
        (elsewhere / group / "mine.yaml").write_text(text)
    config = composed("data=mine", "optimizer=mine", f"hydra.searchpath=[file://{elsewhere}]")
    assert config.data == DataConfig(sources={"verses": SourceConfig(kind="text", path="x")})
    assert config.optimizer == OptimizerConfig(lr=0.1)


def test_no_file_is_left_out():
    """Each YAML is the primary config, a choice of a group, or a recipe: nothing lies about unread."""
    files = [*conf_dir().rglob("*.yaml"), *experiments_dir().rglob("*.yaml")]
    read = {conf_dir() / f"{command.name}.yaml" for command in COMMANDS}
    read |= {conf_dir() / group / f"{choice}.yaml" for group, choice in CHOICES}
    read |= set(experiments_dir().glob("experiment/*.yaml"))
    assert set(files) - read == set()


@pytest.mark.parametrize("preset", choices("model"))
def test_a_preset_is_the_same_with_and_without_hydra(preset):
    for arch in COMMAND.groups()["model/arch"]:
        words = [f"model={preset}", f"model/arch={arch}", *NEEDED.get(("model", preset), [])]
        assert composed(*words).model == load_preset(preset, arch=arch)


@pytest.mark.parametrize(
    ("preset", "width", "heads", "layers", "context"),
    [("small", 256, 8, 6, 512), ("medium", 512, 8, 8, 512), ("large", 768, 12, 12, 512), ("qa", 512, 8, 10, 1024)],
)
def test_presets(preset, width, heads, layers, context):
    model = composed(f"model={preset}").model
    assert (model.dim, model.n_heads, model.n_layers, model.max_seq_len) == (width, heads, layers, context)
    assert (model.resolved_n_kv_heads, model.tie_embeddings, model.dropout) == (heads, True, 0.1)
    assert load_preset(preset, arch="classic").resolved_ffn_dim == 4 * width
    swiglu = model.resolved_ffn_dim
    assert swiglu % 64 == 0  # tiles of GPUs, blocks of llama.cpp's formats
    assert abs(3 * swiglu - 2 * 4 * width) <= 3 * 32  # as many parameters as the classic mlp


def test_a_config_from_before_ffn_multiple_of_keeps_the_width_of_its_run():
    config = composed()
    assert (config.model.ffn_dim, config.model.resolved_ffn_dim) == (None, 704)
    values = to_dict(config)
    del values["model"]["ffn_multiple_of"]
    assert typed(values).model.resolved_ffn_dim == 688


@pytest.mark.parametrize(
    "recipe", ["demo", "qa_full", "qa_muon", "my_pairs data.qa.path=p", "averaging-qa", "vocabulary-8k"]
)
def test_recipes_keep_the_width_that_their_records_were_made_with(recipe):
    experiment, *data = recipe.split()
    assert composed(f"experiment={experiment}", *data).model.resolved_ffn_dim == 688


def test_a_config_from_before_attention_dropout_keeps_the_law_of_its_run():
    """The presets have none; a run that was written before the key existed dropped attention weights like the rest."""
    config = composed("model.dropout=0.3")
    assert (config.model.dropout, config.model.resolved_attention_dropout) == (0.3, 0.0)
    values = to_dict(config)
    del values["model"]["attention_dropout"]
    assert typed(values).model.resolved_attention_dropout == 0.3
    assert composed("model.dropout=0.3", "model.attention_dropout=null").model.resolved_attention_dropout == 0.3


@pytest.mark.parametrize(("before", "now"), [(True, "full"), (False, "none"), ("selective", "selective")])
def test_activation_checkpointing_was_once_true_or_false(before, now):
    values = to_dict(composed())
    values["trainer"]["activation_checkpointing"] = before
    assert typed(values).trainer.activation_checkpointing == now
    word = f"trainer.activation_checkpointing={str(before).lower()}"
    assert composed(word).trainer.activation_checkpointing == now


def test_defaults():
    config = composed()
    assert (config.tokenizer.kind, config.optimizer.name, config.schedule.name) == ("gpt2", "adamw", "cosine")
    assert (config.tracker.kind, config.model.arch.block, config.trainer.precision) == ("wandb", "modern", "auto")
    assert (config.name, config.schedule.warmup_fraction, config.seq_len) == ("small_qa", 0.05, 256)


def test_a_plan_composes_what_a_run_does():
    """Its defaults are written twice: Hydra composes no primary config into another."""
    run, plan = (OmegaConf.load(conf_dir() / f"{name}.yaml") for name in ("train", "plan"))
    assert plan.defaults[0] == "plan_schema" and plan.defaults[1:] == run.defaults[1:]
    assert OmegaConf.to_container(plan)["name"] == OmegaConf.to_container(run)["name"]  # type: ignore[index]
    assert plan.hydra.searchpath == run.hydra.searchpath


# --- who wins -----------------------------------------------------------------------------------------------------


def batch(*overrides: str) -> tuple[int, int, int | None]:
    config = composed(*overrides)
    return config.micro_batch_size, config.grad_accum_steps, config.max_epochs


def test_the_datas_recommendation_holds_where_the_trainer_says_nothing():
    assert batch("data=wiki") == (8, 1, 20)
    assert batch("data=qa") == (4, 1, 30)
    assert batch("data=qa", "data.recommended.micro_batch_size=5") == (5, 1, 30)


def test_the_trainer_beats_the_data():
    assert batch("data=wiki", "trainer=cpu") == (4, 1, 20)
    assert batch("data=wiki", "trainer=debug") == (2, 1, None)  # its total_steps sets the length


@pytest.mark.parametrize("trainer", COMMAND.groups()["trainer"])
def test_the_command_line_beats_all(trainer):
    given = ("trainer.micro_batch_size=3", "trainer.grad_accum_steps=7", "trainer.max_epochs=11")
    assert batch("data=wiki", f"trainer={trainer}", *given) == (3, 7, 11)
    assert batch(*given, "data=qa", f"trainer={trainer}") == (3, 7, 11)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("data", COMMAND.groups()["data"])
def test_the_default_is_the_profile_of_the_device(data):
    """`trainer=auto` on a device is the profile that a person would name, and chooses once."""
    words = [f"data={data}", *NEEDED.get(("data", data), [])]
    auto = composed(*words)
    profiles = {name: composed(*words, f"trainer={name}") for name in ("cpu", "amp4060")}
    for device, profile in {"cpu": "cpu", "cuda": "amp4060", "mps": "amp4060"}.items():
        chosen = auto.on(device)
        assert chosen == profiles[profile].on(device)
        assert chosen.on("cpu") == chosen.on("cuda") == chosen
    given = composed(*words, "trainer.micro_batch_size=3").on("cpu")
    assert (given.micro_batch_size, given.grad_accum_steps) == (3, 1)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(("group", "name"), [("trainer", "debug"), *(c for c in CHOICES if c[0] == "experiment")])
def test_a_recipe_is_the_same_on_every_machine(group, name):
    words = [f"{group}={name}", *NEEDED.get((group, name), [])]
    config = composed(*words)
    on_cpu, on_gpu = config.on("cpu"), config.on("cuda")
    assert (on_cpu.micro_batch_size, on_cpu.grad_accum_steps) == (on_gpu.micro_batch_size, on_gpu.grad_accum_steps)


def test_steps_alone_set_the_length_and_epochs_can_be_given_beside_them():
    assert composed("trainer.total_steps=9").max_epochs is None
    assert composed("trainer.total_steps=9", "trainer.max_epochs=2").max_epochs == 2


def test_a_row_is_as_long_as_the_model_unless_the_data_says_otherwise():
    assert composed("data=text", "data.path=x", "model=qa").seq_len == 1024
    assert composed("data=wiki", "model=qa").seq_len == 256
    assert composed("data=wiki", "data.seq_len=512").seq_len == 512


# --- there and back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [(), ("data=wiki", "model/arch=classic", "trainer.stop_criteria=[patience]", "+trainer.stop_options={a: [1, b]}")],
)
def test_a_resolved_config_reads_back_equal(overrides):
    config = composed(*overrides)
    assert typed(to_dict(config)) == config
    assert typed(yaml.safe_load(to_yaml(config))) == config


def test_validation_changes_nothing():
    config = composed("data.wiki.path=x", "data.qa.weight=0.5")
    before = to_dict(config)
    config.validate()
    assert to_dict(config) == before


def test_a_run_that_cannot_be_is_refused_however_it_is_made():
    with pytest.raises(ConfigError, match=r"model\.n_heads=7: must divide model\.dim=256"):
        composed("model.n_heads=7")
    config = composed()
    config.model.n_heads = 7
    with pytest.raises(ConfigError, match=r"model\.n_heads=7"):
        config.validate()


# --- no dead knobs ------------------------------------------------------------------------------------------------


def sections(owner: type) -> Iterator[type]:
    """A dataclass and those inside it."""
    yield owner
    for field in dataclasses.fields(owner):
        for inner in (field.type, *getattr(field.type, "__args__", ())):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                yield from sections(inner)


@cache
def names_read() -> set[str]:
    """Attributes that the package reads, other than to check them in some `validate`."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef) and node.name.lstrip("_").startswith("validate"):
            return
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        for child in ast.iter_child_nodes(node):
            visit(child)

    for file in Path(dtl.__file__).parent.rglob("*.py"):
        visit(ast.parse(file.read_text(encoding="utf-8")))
    return found


def test_every_setting_is_read_somewhere():
    settings = {
        (owner.__name__, field.name)
        for command in COMMANDS
        for owner in sections(command.schema)
        for field in dataclasses.fields(owner)
    }
    dead = {f"{owner}.{name}" for owner, name in settings if name not in names_read()}
    # Looked for on the command line itself, before there is a typed config.
    assert dead == {f"{command.schema.__name__}.debug" for command in COMMANDS}


def test_every_setting_is_explained():
    assert len(COMMAND.settings) > 60
    assert [key.name for command in COMMANDS for key in command.settings if len(key.meaning) < 5] == []
