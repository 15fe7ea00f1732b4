"""The page behind --help: what to type, what to choose from, and every key with its default and meaning."""

from dtl.commandline.explain import groups, keys

TRAIN = """\
python -m dtl.train [group=choice ...] [key=value ...] [-m]

Trains a small language model from scratch and keeps everything in outputs/<date>/<time>-<pid>_<name>/.

The commonest commands
  python -m dtl.train model=qa data=qa                         questions and answers that ship with DTL
  python -m dtl.train data=wiki data.path=FOLDER               Wikipedia from .parquet or .jsonl files
  python -m dtl.train -m model=small,medium optimizer.lr=1e-3,3e-3   a grid: one run for each combination
  python -m dtl.train resume=latest                            go on with the last run, exactly where it was
  python -m dtl.train init=RUN data=qa                         a new run from another run's weights
"""

FOOTER = """\
Lists are written [a,b]; null means none. -m (--multirun) runs every combination of values with commas.
--cfg job --resolve shows the whole config without running; debug=true shows tracebacks.
Tab completion for the console script: eval "$(dtl-train -sc install=bash)"
"""


def train_page() -> str:
    """The help of dtl.train as plain text, 100 columns wide where it can be."""
    lines = [TRAIN, "Groups: choose with group=choice"]
    lines += [f"  {group:<12} {' | '.join(names)}" for group, names in groups().items() if names]
    lines += ["", "Keys: change with key=value (type, default of the schema: meaning; files in conf/ may differ)"]
    section = None
    for key in keys():
        owner = key.name.rpartition(".")[0]
        if owner != section:
            section = owner
            lines.append(f"\n  {section or 'run'}")
        lines.append(f"    {key.name}={key.default}  ({key.type})")
        lines.append(f"        {key.meaning}")
    return "\n".join([*lines, "", FOOTER])
