"""What happens around the steps of a training run: lines, a bar, samples, stops and checkpoints."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llmkit.folder import Run
from llmkit.training.budget import seconds_since_start
from llmkit.training.checkpoints import seal


class Journal(TrainerCallback):
    """Writes metrics.jsonl and shows the run: a bar on a terminal, lines elsewhere.

    Args:
        run: the model folder.
        tokens_per_step: over all processes; their mean, where steps differ.
        flops_per_token, peak_flops: of one training step, and of the machine, for model_flops_utilization; not shown if None.
        held_out: the figure of an evaluation, as the Trainer logs it behind "eval_", its name in metrics.jsonl, and in words.
    """

    def __init__(
        self,
        run: Run,
        tokens_per_step: float,
        flops_per_token: int | None = None,
        peak_flops: float | None = None,
        held_out: tuple[str, str, str] = ("bits_per_byte", "bits_per_byte", "bits per byte"),
    ):
        self.run = run
        self.held_out = held_out
        self.tokens_per_step = tokens_per_step
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.seconds_before = 0.0  # training seconds of the run before this process resumed it
        self.pause = 0.0  # seconds since the start that were not training steps
        self.steps_here = 0
        self.held_out_value: float | None = None
        self._bar: Any = None

    further: tuple[str, ...] = ()  # figures of a trainer that belong into metrics.jsonl beside the loss

    @property
    def seconds(self) -> float:
        """Training seconds of the run: of steps, without evaluation, samples and checkpoints."""
        return self.seconds_before + time.perf_counter() - self._started - self.pause

    @property
    def tokens_per_second(self) -> float:
        """Over all steps that this process has made."""
        return self.steps_here * self.tokens_per_step / max(self.seconds - self.seconds_before, 1e-9)

    @property
    def utilization(self) -> float:
        """The share of the machine's matrix peak that the model's own arithmetic used; where both are known."""
        return self.tokens_per_second * self.flops_per_token / self.peak_flops

    def on_train_begin(self, args, state, control, **kwargs):
        from tqdm import tqdm

        self.seconds_before = self.run.seconds_at(state.global_step)
        self.start_seconds = seconds_since_start()
        self._started = time.perf_counter()
        self._last = (0.0, state.global_step)
        if state.is_world_process_zero and sys.stderr.isatty() and not args.disable_tqdm:
            shown = "{percentage:3.0f}% |{bar:16}| {n_fmt}/{total_fmt}{postfix}, {remaining} left"
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, dynamic_ncols=True, bar_format=shown)

    def on_step_end(self, args, state, control, **kwargs):
        self.steps_here += 1
        if self._bar is not None:
            self._bar.update(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or logs is None:
            return
        logged, name, words = self.held_out
        if f"eval_{logged}" in logs:
            self.held_out_value = logs[f"eval_{logged}"]
            self.run.log(step=state.global_step, seconds=round(self.seconds, 2), **{name: self.held_out_value})
            self._say(f"step {state.global_step}: {self.held_out_value:.3f} {words} of held-out text")
        elif "loss" in logs:
            before, step_before = self._last
            self._last = (self.seconds - self.seconds_before, state.global_step)
            rate = (state.global_step - step_before) * self.tokens_per_step / max(self._last[0] - before, 1e-9)
            share = rate * self.flops_per_token / self.peak_flops if self.peak_flops else None
            self.run.log(
                step=state.global_step,
                seconds=round(self.seconds, 2),
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                gradient_norm=logs.get("grad_norm"),
                tokens_per_second=round(rate, 1),
                **({"model_flops_utilization": round(share, 4)} if share is not None else {}),
                **{figure: logs[figure] for figure in self.further if figure in logs},
            )
            left = (state.max_steps - state.global_step) * self.tokens_per_step / self.tokens_per_second
            figures = f"loss {logs['loss']:.3f}, {rate:,.0f} tokens/s"
            if share is not None:
                figures += f", MFU {share:.0%}"
            if self.held_out_value is not None:
                figures = f"{self.held_out_value:.3f} {words}, {figures}"
            if self._bar is not None:
                self._bar.set_postfix_str(figures)
            elif state.global_step % (10 * args.logging_steps) == 0:
                self._say(f"step {state.global_step}/{state.max_steps}: {figures}, {_duration(left)} left")

    def on_train_end(self, args, state, control, **kwargs):
        self.ended = self.seconds
        if self._bar is not None:
            self._bar.close()

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)


class Samples(TrainerCallback):
    """After each evaluation: text from the model, and how much of it stands in the training text."""

    def __init__(self, journal: Journal, make: Callable[[int], list[dict[str, Any]]]):
        self.journal, self.make = journal, make

    def on_evaluate(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            started = time.perf_counter()
            samples = self.make(state.global_step)
            self.journal.pause += time.perf_counter() - started
            self.journal.run.log(step=state.global_step, samples=samples)
            for sample in samples[:1]:
                text = " ".join(sample["text"].split())[:160]
                self.journal._say(
                    f"  “{text}” ({sample['longest_copied_words']} words in a row from the training text)"
                )


class Checkpoints(TrainerCallback):
    """Seals each checkpoint after it is written, and writes one when the process is asked to end (SIGTERM)."""

    def __init__(self):
        self.signalled = False

    def on_train_begin(self, args, state, control, **kwargs):
        self._before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number, frame):
        self.signalled = True

    def on_step_end(self, args, state, control, **kwargs):
        if self.signalled and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            seal(Path(args.output_dir, f"checkpoint-{state.global_step}"))

    def on_train_end(self, args, state, control, **kwargs):
        signal.signal(signal.SIGTERM, self._before)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
