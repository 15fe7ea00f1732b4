"""The peer of suite=startup, a program of its own: Hugging Face's Trainer up to the end of its first step.

python trainer_peer.py FILE WIDTH HEADS LAYERS VOCABULARY      creates FILE after the step
"""

import importlib
import sys
from pathlib import Path

CONTEXT, BATCH_SIZE = 64, 8


def main(done: Path, width: int, n_heads: int, n_layers: int, vocabulary: int) -> None:
    import torch

    hf = importlib.import_module("transformers")

    class FirstStep(hf.TrainerCallback):
        def on_step_end(self, *args: object, **kwargs: object) -> None:
            done.touch()

    config = hf.GPT2Config(
        vocab_size=vocabulary, n_positions=CONTEXT, n_embd=width, n_layer=n_layers, n_head=n_heads,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    tokens = torch.randint(vocabulary, (2 * BATCH_SIZE, CONTEXT))
    settings = hf.TrainingArguments(
        output_dir=str(done.with_suffix(".trainer")), max_steps=2, per_device_train_batch_size=BATCH_SIZE, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": sequence, "labels": sequence} for sequence in tokens]
    hf.Trainer(hf.GPT2LMHeadModel(config), settings, train_dataset=data, callbacks=[FirstStep()]).train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
