"""Parts by name: two of one name are an error that says where both are, the same one again is none."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtl.data.config import DataConfig, SourceConfig, TokenizerConfig
from dtl.errors import ConfigError
from dtl.model.config import ArchConfig, BlockRules, ModelConfig
from dtl.registry import (
    BLOCKS,
    LOSSES,
    OPTIMIZERS,
    SCHEDULES,
    SOURCES,
    STOP_CRITERIA,
    TOKENIZERS,
    Registry,
    load_plugins,
)
from dtl.training.config import (
    LOSS_TERMS,
    LossConfig,
    LossTraits,
    OptimizerConfig,
    ScheduleConfig,
    TrainerConfig,
)

MODULE = Path(sys.modules[Registry.__module__].__file__ or "")
PART = """\
from registry_under_test import PARTS


@PARTS.register("square")
def square():
    return {}
"""


@pytest.fixture
def lab(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a registry of its own, whose modules are forgotten afterwards."""
    (elsewhere / "registry_under_test.py").write_text(
        "from dtl.registry import Registry\n\nPARTS = Registry('part.name', {'cube': 'shipped'})\n"
    )
    (elsewhere / "mine.py").write_text(PART.format(2))
    (elsewhere / "yours.py").write_text("\n" + PART.format(3))
    monkeypatch.syspath_prepend(str(elsewhere))
    before = set(sys.modules)
    yield elsewhere
    for name in set(sys.modules) - before:
        del sys.modules[name]


def parts() -> Registry:
    return importlib.import_module("registry_under_test").PARTS


def test_two_parts_of_one_name_are_refused_with_both_places_and_the_first_stays(lab):
    """Their functions have the same name, too: what is copied keeps it."""
    load_plugins(["mine"])
    with pytest.raises(ConfigError) as refused:
        load_plugins(["yours"])
    said = str(refused.value)
    assert said.startswith("part.name=square: registered twice") and "Rename yours" in said
    assert f"{lab / 'mine.py'}:4" in said and f"{lab / 'yours.py'}:5" in said
    assert parts().get("square")() == 2


def test_a_second_one_in_the_same_file_is_refused(lab):
    file = lab / "mine.py"
    file.write_text(PART.format(2) + PART.format(3))
    with pytest.raises(ConfigError, match=r"mine\.py:10 and in .*mine\.py:4"):
        load_plugins(["mine"])


def test_values_without_a_name_of_their_own_are_told_apart(lab):
    parts().register("numbers")([2, 3])
    with pytest.raises(ConfigError, match="registered twice"):
        parts().register("numbers")([5, 7])
    assert parts().get("numbers") == [2, 3]


def test_the_same_module_again_is_no_second_part(lab):
    load_plugins(["mine"])
    importlib.reload(sys.modules["mine"])
    del sys.modules["mine"]
    load_plugins(["mine"])
    assert parts().get("square")() == 2


def test_an_edited_cell_of_a_notebook_replaces_its_part(lab):
    """Its code has no file, or another one after each edit; at Python's prompt every line is of `<stdin>`."""
    for number, name in enumerate(("<stdin>", "/tmp/ipykernel_7/1.py", "/tmp/ipykernel_7/2.py")):
        cell = PART.format(number).replace('"square"', '"square", "traits"' if number == 0 else '"square"')
        exec(compile("\n" * number + cell, name, "exec"), {"__name__": "__main__"})
        assert parts().get("square")() == number
        assert parts().traits("square") == ("traits" if number == 0 else None)
    with pytest.raises(ConfigError, match=r"mine\.py:4 and in this session"):
        load_plugins(["mine"])  # one of a module is another part


def test_a_part_of_dtl_is_not_replaced_before_it_was_imported(lab):
    (lab / "mine.py").write_text(PART.format(2).replace("square", "cube"))
    with pytest.raises(ConfigError, match=r"part\.name=cube: registered twice, in .*mine\.py:4 and in shipped"):
        load_plugins(["mine"])
    (lab / "shipped.py").write_text(PART.format(3).replace("square", "cube"))
    assert parts().get("cube")() == 3


def test_the_command_says_it_and_imports_no_torch(elsewhere):
    (elsewhere / "mine.py").write_text(
        'from dtl.registry import OPTIMIZERS\n\n\n@OPTIMIZERS.register("adamw")\ndef adamw(model, config):\n    ...\n'
    )
    code = "import sys, dtl.train\ntry: dtl.train.main()\nfinally: assert 'torch' not in sys.modules"
    arguments = ["plugins=[mine]", "tracker=local"]
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "mine.py:4 and in dtl.training.optimizer, which is DTL's own" in done.stderr
    assert "AssertionError" not in done.stderr and "bug in DTL" not in done.stderr


def test_the_stub_says_what_the_module_has():
    """registry.pyi gives type checkers the types of the parts: its names and signatures are those of registry.py."""

    def shape(suffix: str) -> dict[str, str]:
        found: dict[str, str] = {}
        body = ast.parse(MODULE.with_suffix(suffix).read_text()).body
        classes = [node for node in body if isinstance(node, ast.ClassDef)]
        for node in [*body, *(node for inside in classes for node in inside.body)]:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = ""
            elif isinstance(node, ast.FunctionDef):
                found[node.name] = f"{ast.unparse(node.args)} -> {ast.unparse(node.returns or ast.Constant(None))}"
        for attribute in ("key", "part"):  # which the module sets without a type
            found.pop(attribute, None)
        found["of"] = found["of"].replace("'", "")
        return found

    assert shape(".pyi") == shape(".py")


# --- options ------------------------------------------------------------------------------------------------------

CONFIGS_WITH_OPTIONS = {
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "trainer.loss": LossConfig,
    "tokenizer": TokenizerConfig,
    "data.sources.mine": lambda **settings: DataConfig(sources={"mine": SourceConfig("qa", **settings)}),
}


@pytest.mark.parametrize("section", CONFIGS_WITH_OPTIONS)
def test_options_of_a_part_of_dtl_are_rejected_and_not_ignored(section: str) -> None:
    """Whoever misspells the part of their own, or forgets to choose it, would otherwise train something else."""
    CONFIGS_WITH_OPTIONS[section]().validate()
    with pytest.raises(ConfigError, match=rf"{section}\.options={{'power': 2}}: {section}\..* has no options"):
        CONFIGS_WITH_OPTIONS[section](options={"power": 2}).validate()


PART_OF_ONES_OWN = {
    "optimizer": (OPTIMIZERS, lambda options: OptimizerConfig("mine", options=options), "options"),
    "schedule": (SCHEDULES, lambda options: ScheduleConfig("mine", options=options), "options"),
    "trainer.loss": (LOSSES, lambda options: LossConfig("mine", options=options), "options"),
    "tokenizer": (TOKENIZERS, lambda options: TokenizerConfig("mine", options=options), "options"),
    "model.arch": (BLOCKS, lambda options: ModelConfig(arch=ArchConfig("mine", options=options)), "arch.options"),
    "trainer": (
        STOP_CRITERIA,
        lambda options: TrainerConfig(stop_criteria=["mine"], stop_options=options),
        "stop_options",
    ),
    "data.sources.odes": (
        SOURCES,
        lambda options: DataConfig(sources={"odes": SourceConfig("mine", options=options)}),
        "sources.odes.options",
    ),
}


@pytest.fixture
def part_of_ones_own(request):
    registry, make, path = PART_OF_ONES_OWN[request.param]
    registry.register("mine")(BlockRules)
    yield make, path
    for table in (registry._parts, registry._places):
        del table["mine"]


@pytest.mark.parametrize("part_of_ones_own", PART_OF_ONES_OWN, indirect=True)
@pytest.mark.parametrize(("given", "said"), [({"gama": 2}, "Did you mean 'gama'"), ({}, "No option is given")])
def test_a_missing_option_is_named_with_its_key_and_the_part(part_of_ones_own, given, said):
    make, path = part_of_ones_own
    config = make(given)
    config.validate()
    options = config
    for name in path.split("."):
        options = options[name] if isinstance(options, dict) else getattr(options, name)
    assert options == given and options.get("gamma", 3) == 3
    with pytest.raises(
        ConfigError, match=rf"options\.gamma: .*mine.* needs this option\..*{said}.*options\.gamma=VALUE"
    ):
        options["gamma"]


@pytest.mark.parametrize("term", LOSS_TERMS)
def test_terms_that_a_loss_does_not_read_are_rejected(term):
    LossConfig(**{term: 0.1}).validate()
    try:
        LOSSES.register("mine")(object)
        LOSSES.register("that_reads_it", LossTraits((term,)))(object)
        LossConfig("mine").validate()
        LossConfig("that_reads_it", **{term: 0.1}).validate()
        with pytest.raises(ConfigError, match=rf"trainer\.loss\.{term}=0\.1: trainer\.loss\.name=mine does not read"):
            LossConfig("mine", **{term: 0.1}).validate()
    finally:
        for name in ("mine", "that_reads_it"):
            for table in (LOSSES._parts, LOSSES._places, LOSSES._traits):
                table.pop(name, None)
