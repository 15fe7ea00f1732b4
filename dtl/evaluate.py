"""The command `python -m dtl.evaluate`: what a checkpoint can do, in figures. Torch is imported last."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dtl.base.display import Display, quiet_when_gone, shown
from dtl.commandline.cli import override_key, run_command
from dtl.commandline.command import Command
from dtl.config import RunConfig, converted, typed_as
from dtl.data.sources import plan_sources
from dtl.errors import ConfigError
from dtl.evaluation.config import FIGURES, EvaluateConfig
from dtl.run_dir.state import read_config
from dtl.terminal.runs import checkpoint_to_use

OUTPUTS = Path("outputs")
COMMAND = Command(
    "evaluate",
    EvaluateConfig,
    page="""\
python -m dtl.evaluate ckpt=latest [data=...] [key=value ...]

Measures a checkpoint on its held-out data, by default the data of its own run: loss, perplexity, bits per byte;
for questions and answers exact match and token F1 by split and topic beside what looking up the nearest training
question scores, how likely it finds the expected answers, whether it is less sure of questions that it cannot know,
its surest wrong answers, and whether training saw what is held out.

The commonest commands
  python -m dtl.evaluate ckpt=latest
  python -m dtl.evaluate ckpt=latest data.qa.path=pairs.jsonl   its own data, but for this key
  python -m dtl.evaluate ckpt=latest data=wiki data.path=FOLDER
  python -m dtl.evaluate ckpt=latest unanswerable=questions.jsonl
  python -m dtl.evaluate ckpt=path/to/gpt2 data=text data.path=book.txt

All figures go to evaluation.json in the run's folder; of other data than the run's own, only where out= says.
""",
    free_text=("ckpt", "unanswerable", "out"),
)


def main() -> None:
    """Entry point of `python -m dtl.evaluate` and of the console script dtl-evaluate."""
    run_command(job, COMMAND)


def job(composed: DictConfig) -> None:
    """Everything that can be refused without torch is refused before it is imported."""
    settings = typed_as(EvaluateConfig, composed)
    checkpoint = checkpoint_to_use(settings.ckpt, OUTPUTS, "evaluate")
    run, is_own = _run_with_data(composed, settings, checkpoint)
    from dtl.data.collect import pinned  # numpy comes with it, which --help can do without

    plans = plan_sources(run.data, run.seed)
    run = replace(run, data=pinned(run.data, plans))
    out = _file_for_figures(settings.out, checkpoint, is_own)

    with quiet_when_gone(), Display() as display:
        from dtl.evaluation.evaluate import evaluate_checkpoint

        evaluate_checkpoint(checkpoint, run, plans, settings, out, display)
        if out is None:
            display.note("Written to no file. For one: out=FILE")
        else:
            display.note(f"All figures: {shown(out)}")


def _run_with_data(composed: DictConfig, settings: EvaluateConfig, checkpoint: Path) -> tuple[RunConfig, bool]:
    """The checkpoint's run with the data to evaluate on, and whether that is the run's own.

    `data=` replaces it, keys such as `data.path=` change it.
    """
    hydra = HydraConfig.get()
    own = read_config(checkpoint)
    keys = [override_key(override.partition("=")[0]) for override in hydra.overrides.task]
    changed = [key.removeprefix("data.") for key in keys if key.startswith("data.")]
    if hydra.runtime.choices.get("data") is not None:
        data: Any = composed.data
    elif isinstance(own.get("data"), dict):
        changes = OmegaConf.masked_copy(composed.data, [key.partition(".")[0] for key in changed])
        data = _merged(own["data"], changes, changed)
    else:
        raise ConfigError(
            f"{shown(checkpoint)}: does not say what it was trained on. Name the data: data=qa, data=wiki, or "
            "data=text data.path=FOLDER."
        )
    values = {**own, "data": OmegaConf.to_container(OmegaConf.create(data), resolve=True), "plugins": settings.plugins}
    run = converted(RunConfig, values)
    run = replace(run, resume=None, init=None)
    if isinstance(own.get("data"), dict) and "lower_case_questions" not in changed:
        # How the model was asked in training, whatever other questions it is asked now.
        run.data.lower_case_questions = bool(own["data"].get("lower_case_questions"))
    run.data.validate()
    return run, not changed and "data" not in keys


def _merged(own: dict[str, Any], changes: DictConfig, keys: list[str]) -> DictConfig:
    merged = OmegaConf.create(own)
    for key in keys:
        OmegaConf.update(merged, key, OmegaConf.select(changes, key), force_add=True)
    return merged


def _file_for_figures(asked: str | None, checkpoint: Path, is_own: bool) -> Path | None:
    if asked is not None:
        file = Path(asked)
        if file.is_dir() or not file.parent.is_dir():
            raise ConfigError(f"out={asked}: no file can be written there. Give a file in a folder that exists.")
        return file
    of_a_run = checkpoint.parent.name == "checkpoints"
    return checkpoint.parent.parent / FIGURES if is_own and of_a_run else None


if __name__ == "__main__":
    main()
