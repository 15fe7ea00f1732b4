"""A checkpoint evaluated and shown. Imports torch."""

from pathlib import Path

from dtl.base.display import Display, in_units, shown
from dtl.base.runtime import autocast, choose_device, choose_precision
from dtl.checkpoints.load import load_model, load_tokenizer
from dtl.config import RunConfig
from dtl.data.prepare import prepare_data
from dtl.errors import ConfigError
from dtl.evaluation.config import EvaluateConfig
from dtl.evaluation.detection import unanswerable_questions
from dtl.evaluation.of_run import write_figures
from dtl.evaluation.report import Plan, Report, measure
from dtl.terminal.evaluation_report import show_report

NO_DETECTION = (
    "Confidence on questions without an answer in the data: skipped, there are none. Give some: unanswerable=FILE"
)


def evaluate_checkpoint(
    checkpoint: Path, run: RunConfig, settings: EvaluateConfig, out: Path | None, display: Display
) -> Report:
    """Measure, show, and write to `out`.

    Raises DTLError for a device, data or checkpoint that cannot be used.
    """
    unanswerable = unanswerable_questions(settings.unanswerable, run.data)
    device, _ = choose_device(settings.device)
    precision, _ = choose_precision(settings.precision or run.trainer.precision, device)
    tokenizer = load_tokenizer(checkpoint)
    model = load_model(checkpoint, device)
    context = model.config.max_seq_len
    if run.data.seq_len is not None and run.data.seq_len > context:
        raise ConfigError(f"data.seq_len={run.data.seq_len}: longer than the model's context, {context}. Lower it.")
    data = prepare_data(run.data, tokenizer, run.data.seq_len or context, run.seed, display.note)
    display.screen(
        f"Evaluation of {shown(checkpoint)}",
        [
            ("model", f"{in_units(model.n_parameters())} parameters, context {context:,}, {device.type}, {precision}"),
            ("data", ", ".join(f"{name} ({source.kind})" for name, source in run.data.resolved_sources().items())),
            *(("", note) for note in data.notes),
        ],
    )
    plan = Plan(
        batch_size=settings.batch_size,
        max_batches=settings.max_batches,
        questions=settings.questions,
        unanswerable=unanswerable,
        compare_text=[name for name, source in run.data.resolved_sources().items() if source.traits.questions != "all"],
        leakage_tokens=settings.leakage_tokens,
        tasks=run.data.tasks,
        worst=settings.worst,
        seed=run.seed,
        mixed_precision=lambda: autocast(device, precision),
    )
    report = measure(model, data, plan, lambda doing: display.note(f"... {doing}"))
    show_report(display.console, report, NO_DETECTION)
    if out is not None:
        write_figures(out, report, checkpoint, run, plan, data, device, precision)
    return report
