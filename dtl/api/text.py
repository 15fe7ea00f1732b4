"""Text from a model in Python: continuations, and scores of its answers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from dtl.base.checks import check_seed
from dtl.commandline.compose import COMMAND
from dtl.commandline.translate import translate_error
from dtl.config import RunConfig, converted
from dtl.data.documents import QuestionAnswer
from dtl.data.local.readers import Record
from dtl.data.prepare import longest_answer
from dtl.data.qa.records import PairReader
from dtl.data.tasks import is_right, token_f1
from dtl.data.tokenizers.prompt import Prompt
from dtl.data.tokenizers.tokenizer import Tokenizer
from dtl.errors import ConfigError, DataError
from dtl.evaluation.answers import likelihoods
from dtl.evaluation.metrics import bits_per_byte, mean
from dtl.evaluation.text import count_token_bytes
from dtl.generation.config import SamplingConfig
from dtl.generation.conversation import answer_greedily, continue_text, fitting_question
from dtl.model.transformer import TransformerLM


def complete(model: TransformerLM, tokenizer: Tokenizer, text: str, *, seed: int = 0, **sampling: Any) -> str:
    """Return the model's continuation of a text, without the text itself.

    `dtl.complete(model, tokenizer, "Once upon", temperature=0.7, max_new_tokens=20)`: the keywords are those of
    `sampling.` on the command line, with its defaults. Equal seeds give equal texts; no global random state is used.
    Raises ConfigError for a keyword that does not exist, for a value of a wrong type or out of range, and for a model
    or a tokenizer that is not DTL's.
    """
    _check_arguments(model, tokenizer)
    if not isinstance(text, str):
        raise ConfigError(f"text={text!r:.80}: must be one text. Call dtl.complete for each of several.")
    check_seed(seed)
    return "".join(continue_text(model, tokenizer, text, _sampling(sampling), seed))


def _check_arguments(model: object, tokenizer: object) -> None:
    for name, value, kind in (("model", model, TransformerLM), ("tokenizer", tokenizer, Tokenizer)):
        if not isinstance(value, kind):
            raise ConfigError(
                f"{name}: {type(value).__name__} is not a {kind.__name__} of DTL. Load it: dtl.load_{name}(PATH) of a "
                "run, a checkpoint or a Hugging Face folder."
            )


def _sampling(given: Mapping[str, Any]) -> SamplingConfig:
    try:
        config = converted(RunConfig, {"sampling": dict(given)}).sampling
    except OmegaConfBaseException as error:
        words = [f"sampling.{key}={value}" for key, value in given.items()]
        raise translate_error(error, words, COMMAND) or error from None
    config.validate()
    return config


Pair = QuestionAnswer | tuple[str, str] | Mapping[str, Any]


def score(
    model: TransformerLM, tokenizer: Tokenizer, pairs: Sequence[Pair], *, batch_size: int = 64
) -> dict[str, float]:
    """Ask the model questions, and return how well it answers: the metrics of `python -m dtl.evaluate`.

    `pairs` are (question, answer) tuples, records under the names that files may have (`dtl.data.qa.records`), or
    QuestionAnswer, such as `data.pairs["test"]`. They are put as the model has learnt them (`tokenizer.prompt`), and
    answered greedily. The result has `n`, the number of questions; `exact_match` and `f1`, means in [0, 1] after
    SQuAD's normalisation; and `gold_bits_per_byte`, of the expected answers by the model. A context longer than the
    model's is cut, as in training. The batch size changes the speed only.

    Raises ConfigError for no pairs and for one that cannot be read, and for a model or a tokenizer that is not DTL's.
    """
    _check_arguments(model, tokenizer)
    questions = [_question(number, pair) for number, pair in enumerate(pairs)]
    if not questions:
        raise ConfigError("pairs=[]: there is no question to ask. Give at least one (question, answer).")
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: must be at least 1.")
    prompt = tokenizer.prompt or Prompt()
    longest = longest_answer(tokenizer, questions)
    questions = [fitting_question(model, tokenizer, prompt, question, longest) for question in questions]
    asked = [prompt.text(question.question, question.context) for question in questions]
    answers = answer_greedily(model, tokenizer, asked, longest, batch_size)
    given = [answer.text for answer in answers]
    gold = likelihoods(model, tokenizer, questions, count_token_bytes(tokenizer), batch_size, prompt)
    answered = list(zip(given, questions, strict=True))
    return {
        "n": len(questions),
        "exact_match": mean([is_right(text, question) for text, question in answered]),
        "f1": mean([token_f1(text, question) for text, question in answered]),
        "gold_bits_per_byte": bits_per_byte(math.fsum(g.nats for g in gold), sum(g.n_bytes for g in gold)),
    }


def _question(number: int, pair: Pair) -> QuestionAnswer:
    """Return a pair in any of its forms as a QuestionAnswer; a mapping is read as a record of a file is."""
    place = f"pairs[{number}]"
    if isinstance(pair, QuestionAnswer):
        return pair
    if isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(text, str) for text in pair):
        return QuestionAnswer(*pair)
    reader = PairReader()
    try:
        by_split = reader.pairs(Record(place, dict(pair))) if isinstance(pair, Mapping) else {}
    except DataError as error:
        raise ConfigError(str(error)) from error
    read = [turns[0] for questions in by_split.values() for turns in questions if len(turns) == 1]
    if len(read) != 1:
        why = " ".join(reader.notes(place))
        raise ConfigError(f"{place}={pair!r}: give (question, answer), or a record with one of each. {why}".rstrip())
    return read[0]
