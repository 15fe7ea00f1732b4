"""How many sequences of a forward pass had room in a device's memory, so that the next run like it begins with them.

In a file of the cache, by all that the memory of a forward pass depends on, of steps and of evaluations. A resumed run
has its own numbers in its checkpoint instead.
"""

import json
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch

from dtl.base.files import write_atomically
from dtl.base.json_files import as_list, as_whole, read_json_or_empty
from dtl.base.runtime import attainable_memory, device_name
from dtl.config import RunConfig
from dtl.data.cache import cache_folder, create_cache_folder, key_of
from dtl.errors import DataError
from dtl.runner.remaining import STEP

FILE = "sequences_at_once.json"  # key -> [sequences, bytes that the process could have then]
MAX_KEPT = 1000  # the newest
MORE = 1.05  # times the memory of then: worth another attempt with whole micro-batches


class FittingSequences:
    """The numbers for a run's model, length and device. Made when its model is built, before its first step."""

    def __init__(
        self, config: RunConfig, vocab_size: int, device: torch.device, precision: str, attention: str
    ) -> None:
        # Not the learning rate and the like: the trials of a sweep share a number.
        self.key = key_of(
            torch=str(torch.__version__),
            device=device_name(device),
            model=asdict(config.model),
            vocab_size=vocab_size,
            seq_len=config.seq_len,
            loss_on=config.data.loss_on,
            precision=precision,
            attention=attention,
            optimizer=config.optimizer.name,
            loss=config.trainer.loss.name,
            averaged=config.trainer.ema_decay is not None,
            checkpointing=config.trainer.activation_checkpointing,
            compile=config.trainer.compile,
        )
        self.device = device
        self.available_at_start = attainable_memory(device) or 0
        self.file = cache_folder(config.data.cache_dir) / FILE

    def recall(self, of: str = STEP) -> int | None:
        """Return the number of sequences; None where it is not known, or more memory is available than was then."""
        then = as_list(self._read().get(self._key(of)))
        at_once, available = map(as_whole, then) if len(then) == 2 else (None, None)
        if at_once is None or at_once < 1 or available is None:
            return None
        return at_once if self.available_at_start <= MORE * available else None

    def remember(self, at_once: int, of: str = STEP) -> None:
        """Keep the number of sequences, unless the cache cannot be written."""
        with suppress(OSError, DataError):
            create_cache_folder(self.file.parent)
            key = self._key(of)
            # Read again: another process may have added its own.
            others = {name: value for name, value in self._read().items() if name != key}
            kept = dict([*others.items()][1 - MAX_KEPT :])
            kept[key] = [at_once, self._available()]
            write_atomically(self.file, json.dumps(kept, indent=1) + "\n")

    def _available(self) -> int:
        """Return the memory that the number holds for: that of the start, which is what the next run meets at its own.

        What is available falls a little during a run, since CUDA loads kernels beside torch's memory. Where it has
        fallen by more, another program has taken it, and a run that meets more is to try whole micro-batches.
        """
        now = attainable_memory(self.device) or 0
        return self.available_at_start if self.available_at_start <= MORE * now else now

    def _key(self, of: str) -> str:
        return self.key if of == STEP else f"{self.key} {of}"

    def _read(self) -> dict[str, Any]:
        return read_json_or_empty(self.file)
