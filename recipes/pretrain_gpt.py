"""Pretrain a small GPT from a text, or go on from a given model.

    accelerate launch recipes/pretrain_gpt.py                                    the bundled text, five minutes
    accelerate launch recipes/pretrain_gpt.py --data my_texts/ --time_budget 1h
    accelerate launch recipes/pretrain_gpt.py --data my_texts/ --depth 8

Two dials: --time_budget measures this machine and picks size and steps so that everything ends in time; --depth sets the
size, and everything else follows from it. Every derived value is printed with its reason and can be given instead.
The same command goes on with a run that was interrupted.
"""

from dataclasses import dataclass
from typing import Literal

from llmkit.data.text import Text, TextOptions
from llmkit.errors import StoppedEarly, noting, refuse, run
from llmkit.options import option, parse_options


@dataclass
class PretrainOptions(TextOptions):
    model: str | None = option(None, "Model folder or Hub id to go on from; None: a new model.")
    tokenizer: str | None = option(None, "Tokenizer folder or Hub id; None: the model's, or train one.")
    vocab_size: int | None = option(None, "Of a tokenizer that is trained here.")
    time_budget: str | None = option(None, "Wall-clock time for everything: 5m, 90s, 1h30m.")
    depth: int | None = option(None, "Layers; sets width, heads, batch, steps and learning rates.")
    hidden_size: int | None = option(None, "Width.")
    intermediate_size: int | None = option(None, "Width inside SwiGLU.")
    num_attention_heads: int | None = option(None, "Query heads.")
    num_key_value_heads: int | None = option(None, "Key-value heads; divides the query heads.")
    context_length: int | None = option(None, "Tokens that the model looks back over.")
    initializer_range: float | None = option(None, "Standard deviation of fresh weights.")
    optimizer: Literal["muon", "adamw"] = option("muon", "For hidden matrices; the rest is AdamW's.")
    muon_learning_rate: float | None = option(None, "Of hidden matrices; --learning_rate is AdamW's.")
    adamw_weight_decay: float = option(0.0, "Of embeddings; --weight_decay is the hidden matrices'.")
    decay_share: float = option(0.5, "Share of the steps over which the learning rate falls to 0.")
    overwrite: bool = option(False, "Delete a run of other options in output_dir.")


def main() -> None:
    from llmkit.training.trainer import PretrainArguments

    options, _, settings = parse_options(PretrainOptions, PretrainArguments, __doc__)

    from llmkit.data.packing import token_files
    from llmkit.data.splits import xz_bits_per_byte
    from llmkit.folder import Run, fingerprint, require_model_folder
    from llmkit.modeling.models import load_model, load_tokenizer
    from llmkit.tokenization.bpe import tokenizer_for
    from llmkit.tokenization.byte_lengths import token_byte_lengths
    from llmkit.training import pretraining, processes, summary
    from llmkit.training.callbacks import Checkpoints, Samples
    from llmkit.training.checkpoints import newest_checkpoint
    from llmkit.training.trainer import PretrainTrainer

    # What cannot work is refused here, and nothing is written before it all was looked at.
    problems = pretraining.problems_of(options, settings)
    if options.model:
        with noting(problems):
            require_model_folder(options.model, "--model")
    if options.tokenizer:
        with noting(problems):
            require_model_folder(options.tokenizer, "--tokenizer", weights=False)
    with noting(problems):
        text = Text.open(options)
    refuse(problems)
    state = processes.start_processes(settings)
    inputs = text.fingerprints | {
        name: fingerprint(given) if given else None
        for name, given in (("model", options.model), ("tokenizer", options.tokenizer))
    }
    folder = processes.agreed(
        Run.start("pretrain_gpt", settings, inputs, options.overwrite) if state.is_main_process else None
    )
    folder.writes, settings = state.is_main_process, folder.settings
    if folder.finished:
        state.print(f"{folder.folder} is finished; --overwrite makes it again")
        return

    # Text to tokens.
    with state.main_process_first():
        sides = text.usable_split()
    if folder.resumes and (folder.folder / "tokenizer.json").exists():
        tokenizer = load_tokenizer(str(folder.folder), "--output_dir")
    elif options.tokenizer or options.model:
        tokenizer = load_tokenizer(
            options.tokenizer or options.model, "--tokenizer" if options.tokenizer else "--model"
        )
        settings.inherit("vocab_size", len(tokenizer), options.tokenizer or options.model)
    else:
        tokenizer = tokenizer_for(sides, settings)
    given_model = load_model(options.model, tokenizer) if options.model else None
    pretraining.plan_context(settings, state.device, given_model, options.model)
    with state.main_process_first():
        train, validation = token_files(sides, tokenizer)
    byte_lengths = token_byte_lengths(tokenizer)
    pretraining.check_text(train, validation, byte_lengths, settings)
    xz = processes.agreed(xz_bits_per_byte(sides) if state.is_main_process else None)
    state.print(summary.of_data(sides, tokenizer, train, validation, xz, state))

    # Every number of the run, stored before the first step.
    machine = pretraining.Machine.measured(state.device, state.num_processes)
    plan = pretraining.plan_run(settings, machine, train, validation, tokenizer, given_model)
    data = {"name": text.source.name, "format": text.source.format, **sides.counts()}
    folder.save(data=data, forecast=folder.record.get("forecast") or plan.forecast)
    folder.save_model(None, tokenizer)
    state.print(summary.of_plan(settings, folder.record["forecast"]))
    peak = machine.peak(plan.autocast)
    trainer = PretrainTrainer(plan.model, train, validation, byte_lengths, tokenizer, folder, peak, plan.autocast)
    if not trainer.is_cut:  # one process alone can only write with a whole model
        trainer.add_callback(Samples(trainer.journal, summary.sampler(plan.model, tokenizer, sides, settings)))
    trainer.add_callback(Checkpoints())

    # Train, evaluate, save.
    checkpoint = newest_checkpoint(folder.folder) if folder.resumes else None
    if checkpoint:
        state.print(f"goes on from {checkpoint}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    steps, planned = trainer.state.global_step, settings["max_steps"].value
    if steps < planned:
        raise StoppedEarly(f"by SIGTERM at step {steps} of {planned}, with a checkpoint; the same command goes on", 143)
    result = trainer.measure(validation.ids)
    metrics = summary.metrics_of(trainer, result, xz, folder.record["forecast"])
    folder.save_model(plan.model, tokenizer, trainer.whole_weights())
    folder.finish(metrics)
    if settings["push_to_hub"].value:
        state.print(f"pushed to {folder.push()}")
    trainer.end()
    state.print(summary.of_result(folder.folder, metrics))
    state.destroy_process_group()  # left to the interpreter's end, it can wait for ever


if __name__ == "__main__":
    run(main)
