"""The command `python -m dtl.evaluate`: metrics of a checkpoint on held-out data. Torch is imported last."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dtl.base.display import Display, exit_when_output_closes, shown
from dtl.base.json_files import as_object, as_whole, read_json_or_empty
from dtl.commandline.cli import run_command
from dtl.commandline.command import Command
from dtl.commandline.overrides import override_key
from dtl.config import RunConfig, converted, typed_as, without_interpolations
from dtl.data.cache import cache_folder, is_cache_folder
from dtl.data.config import DataConfig, SourceConfig
from dtl.data.tokenizers.prompt import Prompt, read_prompt
from dtl.errors import ConfigError, DataError
from dtl.evaluation.config import EVALUATION_FILE, EvaluateConfig
from dtl.run_dir.own_config import PLACE_OF_DATA, clear_other_places, where_to_add_its_place, with_data_found
from dtl.run_dir.state import read_config
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
run's own, only to out=FILE. Such data is all for the test, apart from splits that it names itself.
""",
    free_text=("data.qa.prompt", "data.separator"),
)


def main() -> None:
    """Entry point of `python -m dtl.evaluate` and of the console script dtl-evaluate."""
    run_command(job, COMMAND)


def job(composed: DictConfig) -> None:
    """Evaluate the checkpoint. Everything that can be checked without torch is checked before it is imported."""
    _complete_sources(composed)
    settings = typed_as(EvaluateConfig, composed)
    checkpoint = checkpoint_to_use(settings.ckpt, OUTPUTS, "evaluate")
    run, is_own = _run_with_data(composed, settings, checkpoint)
    learnt = read_prompt(checkpoint)
    trained = _trained_run(settings, checkpoint)
    if trained is not None and "data.cache_dir" in _given_keys():
        trained.data.cache_dir = run.data.cache_dir
    is_foreign = trained is None or _is_foreign(run.data, trained.data, learnt)
    if is_foreign:  # all of it is for the test
        run.data.validation_fraction = run.data.test_fraction = 0.0
    Display().note(f"{shown(checkpoint)}: opening the data, loading torch ...")  # the first sign of life
    from dtl.data.collect import open_sources  # imports numpy, which --help does not need

    try:
        data, plans = open_sources(run.data, run.seed, learnt)
    except DataError as error:
        if not is_own:
            raise
        raise DataError(f"{error}\n{where_to_add_its_place(error)}") from error
    run = replace(run, data=data)
    out = _metrics_file(settings.out, checkpoint, is_own)

    with exit_when_output_closes(), Display() as display:
        from dtl.evaluation.evaluator import TrainedOn, evaluate_checkpoint

        trained_on = None
        if trained is None:
            trained_on = TrainedOn(problem="It is not recorded.")
        elif is_foreign:
            try:
                trained_data, trained_plans = open_sources(trained.data, trained.seed, learnt)
                trained_on = TrainedOn(replace(trained, data=trained_data), trained_plans)
            except DataError as error:
                trained_on = TrainedOn(problem=str(error))
        of_run = read_json_or_empty(checkpoint / "state.json").get("data_fingerprint")
        recorded = of_run if isinstance(of_run, str) and (is_own or is_foreign) else None
        evaluate_checkpoint(checkpoint, run, plans, settings, out, display, trained_on, recorded)
        if out is None:
            display.note("Not written to a file. To write one: out=FILE")
        else:
            display.note(f"All metrics: {shown(out)}")


def _complete_sources(composed: DictConfig) -> None:
    """Give the sources of the checkpoint's run, of which one key is changed here, the kind that they have there."""
    sources = composed.data.sources
    incomplete = [name for name in sources if "kind" not in sources[name]]
    if not incomplete:
        return
    own = as_object(read_config(checkpoint_to_use(composed.ckpt, OUTPUTS, "evaluate")).get("data")).get("sources")
    for name in incomplete:
        kind = as_object(as_object(own).get(name)).get("kind")
        if isinstance(kind, str):
            OmegaConf.update(sources[name], "kind", without_interpolations(kind), force_add=True)


def _recorded_config(checkpoint: Path) -> dict[str, Any]:
    """Return the config of the checkpoint's run; where a cache is made, the user decides, not a checkpoint."""
    own = with_data_found(read_config(checkpoint), _run_of(checkpoint) or checkpoint)
    if isinstance(own.get("data"), dict):
        folder = own["data"].get("cache_dir")
        is_cache = isinstance(folder, str) and is_cache_folder(cache_folder(folder))
        own["data"]["cache_dir"] = folder if is_cache else None
    return own


def _trained_run(settings: EvaluateConfig, checkpoint: Path) -> RunConfig | None:
    """Return the config of the run that trained the checkpoint; None where it records no data."""
    own = _recorded_config(checkpoint)
    if not isinstance(own.get("data"), dict):
        return None
    run = converted(RunConfig, {**own, "plugins": settings.plugins})
    return replace(run, resume=None, init=None)


def _is_foreign(data: DataConfig, own: DataConfig, learnt: Prompt | None) -> bool:
    """Return True unless all documents of `data` are the run's own, in the same splits."""

    def shaped(data: DataConfig) -> tuple[list[SourceConfig], Any]:
        sources = [
            replace(source, weight=1.0, path=source.path and str(Path(source.path).absolute()))
            for source in data.resolved_sources().values()
        ]
        return sources, (
            data.held_out, data.qa.columns, data.separator, data.remove, data.allow_truncated, Prompt.of(data, learnt)
        )  # fmt: skip

    (sources, settings), (own_sources, own_settings) = shaped(data), shaped(own)
    return settings != own_settings or not all(source in own_sources for source in sources)


def _run_with_data(composed: DictConfig, settings: EvaluateConfig, checkpoint: Path) -> tuple[RunConfig, bool]:
    """Return the checkpoint's run config with the data to evaluate on, and True if that is the run's own data.

    `data=` replaces the data, keys such as `data.path=` change it.
    """
    hydra = HydraConfig.get()
    own = _recorded_config(checkpoint)
    keys = _given_keys()
    changed = [key.removeprefix("data.") for key in keys if key.startswith("data.")]
    if hydra.runtime.choices.get("data") is not None:
        data: Any = composed.data
    elif isinstance(own.get("data"), dict):
        for key in filter(PLACE_OF_DATA.fullmatch, keys):
            clear_other_places(own["data"], key)
        changes = OmegaConf.masked_copy(composed.data, [key.partition(".")[0] for key in changed])
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
    # What data=qa recommends for training; a model with a shorter context is measured on what it can read at once.
    if "seq_len" not in changed and (run.data.seq_len or 0) > _context(checkpoint):
        run.data.seq_len = None
    run.data.validate()
    return run, not set(changed) - MEASURED and "data" not in keys


def _context(checkpoint: Path) -> float:
    """Return the context of a model in tokens, by its names in Hugging Face's files; infinite where it is not there."""
    config = read_json_or_empty(checkpoint / "config.json")
    contexts = (as_whole(config.get(key)) for key in ("max_position_embeddings", "n_positions"))
    return next((context for context in contexts if context is not None), math.inf)


def _given_keys() -> list[str]:
    return [override_key(override) for override in HydraConfig.get().overrides.task]


def _metrics_file(asked: str | None, checkpoint: Path, is_own: bool) -> Path | None:
    if asked is not None:
        file = Path(os.path.expanduser(asked))
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
