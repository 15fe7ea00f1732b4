"""The command `python -m dtl.evaluate`: metrics of a checkpoint on held-out data. Torch is imported last."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dtl.base.display import Display, exit_when_output_closes, shown
from dtl.commandline.cli import run_command
from dtl.commandline.command import Command
from dtl.commandline.overrides import override_key
from dtl.config import RunConfig, converted, typed_as, without_interpolations
from dtl.data.cache import cache_folder, is_cache_folder
from dtl.data.tokenizers.prompt import read_prompt
from dtl.errors import ConfigError
from dtl.evaluation.config import EVALUATION_FILE, EvaluateConfig
from dtl.run_dir.state import PLACE_OF_DATA, clear_other_places, read_config, with_data_found
from dtl.terminal.choose import checkpoint_to_use

OUTPUTS = Path("outputs")
MEASURED = {"metrics", "tasks"}  # keys of data that choose what is measured; the data is still the run's own
COMMAND = Command(
    "evaluate",
    EvaluateConfig,
    usage="""\
python -m dtl.evaluate ckpt=latest [data=...] [key=value ...]
Measures a checkpoint on held-out data, by default that of its own run.

  python -m dtl.evaluate ckpt=latest
  python -m dtl.evaluate ckpt=latest data.qa.path=pairs.jsonl
  python -m dtl.evaluate ckpt=latest data=wiki data.path=FOLDER
  python -m dtl.evaluate ckpt=latest unanswerable=questions.jsonl
  python -m dtl.evaluate ckpt=path/to/gpt2 data=text data.path=book.txt
""",
    details="""\
Measured are loss, perplexity, bits per byte; for questions and answers exact match and token F1 by split and topic,
compared with a retrieval baseline (BM25 over the training questions); the likelihood of the expected answers; whether
the confidence is lower on unanswerable questions; the most confident wrong answers; and whether held-out questions
occur in the training data. All metrics are written to evaluation.json in the run's folder; for data other than the
run's own, only to out=FILE.
""",
    free_text=("data.qa.prompt", "data.separator"),
)


def main() -> None:
    """Entry point of `python -m dtl.evaluate` and of the console script dtl-evaluate."""
    run_command(job, COMMAND)


def job(composed: DictConfig) -> None:
    """Evaluate the checkpoint. Everything that can be checked without torch is checked before it is imported."""
    settings = typed_as(EvaluateConfig, composed)
    checkpoint = checkpoint_to_use(settings.ckpt, OUTPUTS, "evaluate")
    run, is_own = _run_with_data(composed, settings, checkpoint)
    Display().note(f"{shown(checkpoint)}: opening the data, loading torch ...")  # the first sign of life
    from dtl.data.collect import open_sources  # imports numpy, which --help does not need

    data, plans = open_sources(run.data, run.seed, read_prompt(checkpoint))
    run = replace(run, data=data)
    out = _metrics_file(settings.out, checkpoint, is_own)

    with exit_when_output_closes(), Display() as display:
        from dtl.evaluation.evaluator import evaluate_checkpoint

        evaluate_checkpoint(checkpoint, run, plans, settings, out, display)
        if out is None:
            display.note("Not written to a file. To write one: out=FILE")
        else:
            display.note(f"All metrics: {shown(out)}")


def _run_with_data(composed: DictConfig, settings: EvaluateConfig, checkpoint: Path) -> tuple[RunConfig, bool]:
    """Return the checkpoint's run config with the data to evaluate on, and True if that is the run's own data.

    `data=` replaces the data, keys such as `data.path=` change it.
    """
    hydra = HydraConfig.get()
    own = with_data_found(read_config(checkpoint), _run_of(checkpoint) or checkpoint)
    keys = [override_key(override.partition("=")[0]) for override in hydra.overrides.task]
    changed = [key.removeprefix("data.") for key in keys if key.startswith("data.")]
    if hydra.runtime.choices.get("data") is not None:
        data: Any = composed.data
    elif isinstance(own.get("data"), dict):
        for key in filter(PLACE_OF_DATA.fullmatch, keys):
            clear_other_places(own["data"], key)
        changes = OmegaConf.masked_copy(composed.data, [key.partition(".")[0] for key in changed])
        folder = own["data"].get("cache_dir")
        if not isinstance(folder, str) or not is_cache_folder(cache_folder(folder)):
            own["data"]["cache_dir"] = None  # the user decides where a cache is made, not a checkpoint
        data = OmegaConf.create(without_interpolations(own["data"]))
        for key in changed:
            OmegaConf.update(data, key, OmegaConf.select(changes, key), force_add=True)
    else:
        raise ConfigError(
            f"{shown(checkpoint)}: its training data is not recorded. Name the data: data=qa, data=wiki, or "
            "data=text data.path=FOLDER."
        )
    values = {**own, "data": OmegaConf.to_container(OmegaConf.create(data), resolve=True), "plugins": settings.plugins}
    run = converted(RunConfig, values)
    run = replace(run, resume=None, init=None)
    # As in training, also when it is evaluated on other questions.
    if not {"qa", "qa.prompt"} & set(changed):
        run.data.qa.prompt = None
    if "lower_case_questions" not in changed:
        run.data.lower_case_questions = None
    run.data.validate()
    return run, not set(changed) - MEASURED and "data" not in keys


def _metrics_file(asked: str | None, checkpoint: Path, is_own: bool) -> Path | None:
    if asked is not None:
        file = Path(asked)
        if file.is_dir() or not file.parent.is_dir():
            raise ConfigError(f"out={asked}: cannot be written. Give a file in a folder that exists.")
        return file
    run_dir = _run_of(checkpoint)
    return run_dir / EVALUATION_FILE if is_own and run_dir else None


def _run_of(checkpoint: Path) -> Path | None:
    """Return the folder of the checkpoint's run; None for a checkpoint that is not in one."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else None


if __name__ == "__main__":
    main()
