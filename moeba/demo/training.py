"""Training with the stock Trainer, as any user of transformers would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    DataCollatorForLanguageModeling,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from .settings import DemoSettings
from .watcher import Report


class _Progress(TrainerCallback):
    def __init__(self, report: Report, what: str) -> None:
        self.report = report
        self.what = what
        self.loss = ""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.loss = f", loss {logs['loss']:.2f}"

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.report(state.global_step, state.max_steps, self.what + self.loss)


def train(
    model: nn.Module,
    tokenizer: Any,
    windows: Any,
    folder: Path,
    settings: DemoSettings,
    *,
    steps: int,
    learning_rate: float,
    what: str,
    report: Report,
    callbacks: Sequence[TrainerCallback] = (),
) -> float:
    """Train `model` in float32 on the CPU and save it, tokenizer and trainer state in `folder`.

    Args:
        windows: a `datasets.Dataset` with `input_ids`.
        what: a few words for the progress bar.

    Returns:
        Tokens a second.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        weight_decay=0.01,
        logging_steps=max(1, steps // 10),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=settings.seed,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=windows,
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[*callbacks, _Progress(report, what)],
    )
    trainer.remove_callback(PrinterCallback)
    seconds = trainer.train().metrics["train_runtime"]
    trainer.save_model(str(folder))
    trainer.save_state()
    return steps * settings.batch_size * settings.sequence_length / seconds
