"""Pretrain a small GPT from a text, or go on from a given model.

    accelerate launch recipes/pretrain_gpt.py                                    the bundled text, five minutes
    accelerate launch recipes/pretrain_gpt.py --data my_texts/ --time_budget 1h
    accelerate launch recipes/pretrain_gpt.py --data my_texts/ --depth 8

Two dials: --time_budget measures this machine and picks size and steps so that everything ends in time; --depth sets the
size, and everything else follows from it. Every derived value is printed with its reason and can be given instead.
The same command goes on with a run that was interrupted.
"""

from dataclasses import dataclass, field
from typing import Literal

from llmkit.errors import StoppedEarly, UserError, refuse, run
from llmkit.options import parse_options


@dataclass
class PretrainOptions:
    data: str | None = field(
        default=None, metadata={"help": "File, folder or Hub dataset id; None: the bundled corpus."}
    )
    text_column: str | None = field(
        default=None, metadata={"help": "Column of the text, where its name does not say so."}
    )
    validation_data: str | None = field(default=None, metadata={"help": "Held-out text of its own."})
    validation_fraction: float | None = field(
        default=None, metadata={"help": "Share of documents held out; None: by size."}
    )
    split_seed: int = field(default=0, metadata={"help": "Another seed holds out other documents."})
    model: str | None = field(
        default=None, metadata={"help": "Model folder or Hub id to go on from; None: a new model."}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Tokenizer folder or Hub id; None: the model's, or train one."}
    )
    vocab_size: int | None = field(default=None, metadata={"help": "Of a tokenizer that is trained here."})
    time_budget: str | None = field(default=None, metadata={"help": "Wall-clock time for everything: 5m, 90s, 1h30m."})
    depth: int | None = field(
        default=None, metadata={"help": "Layers; sets width, heads, batch, steps and learning rates."}
    )
    hidden_size: int | None = field(default=None, metadata={"help": "Width."})
    intermediate_size: int | None = field(default=None, metadata={"help": "Width inside SwiGLU."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Query heads."})
    num_key_value_heads: int | None = field(
        default=None, metadata={"help": "Key-value heads; divides the query heads."}
    )
    context_length: int | None = field(default=None, metadata={"help": "Tokens that the model looks back over."})
    initializer_range: float | None = field(default=None, metadata={"help": "Standard deviation of fresh weights."})
    optimizer: Literal["muon", "adamw"] = field(
        default="muon", metadata={"help": "For hidden matrices; the rest is AdamW's."}
    )
    muon_learning_rate: float | None = field(
        default=None, metadata={"help": "Of hidden matrices; --learning_rate is AdamW's."}
    )
    adamw_weight_decay: float = field(
        default=0.0, metadata={"help": "Of embeddings; --weight_decay is the hidden matrices'."}
    )
    decay_share: float = field(
        default=0.5, metadata={"help": "Share of the steps over which the learning rate falls to 0."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Delete a run of other options in output_dir."})


def main() -> None:
    from llmkit.training.trainer import PretrainArguments

    options, _, settings = parse_options(PretrainOptions, PretrainArguments, __doc__)
    refuse(problems_of(options))

    import torch
    from accelerate import PartialState

    from llmkit.data.packing import token_files
    from llmkit.data.sources import open_source
    from llmkit.data.splits import problems_of as problems_of_split
    from llmkit.data.splits import split, xz_bits_per_byte
    from llmkit.folder import Run, fingerprint, require_model_folder
    from llmkit.modeling.models import load_model, load_tokenizer
    from llmkit.tokenization.bpe import tokenizer_for
    from llmkit.tokenization.byte_lengths import token_byte_lengths
    from llmkit.training import pretraining, summary
    from llmkit.training.callbacks import Checkpoints, Samples
    from llmkit.training.checkpoints import newest_checkpoint
    from llmkit.training.measure import use_all_cores
    from llmkit.training.plan import plan_context
    from llmkit.training.trainer import PretrainTrainer

    # Refuse what cannot work before anything is written.
    state = PartialState(cpu=not torch.cuda.is_available())
    threads = use_all_cores(state.num_processes) if state.device.type == "cpu" else None
    for name, option in ((options.model, "--model"), (options.tokenizer, "--tokenizer")):
        if name is not None:
            require_model_folder(name, option, weights=option == "--model")
    source = open_source(options.data, options.text_column)
    validation_source = (
        open_source(options.validation_data, options.text_column, "--validation_data")
        if options.validation_data
        else None
    )
    inputs = {"data": source.fingerprint, "validation_data": validation_source and validation_source.fingerprint}
    inputs |= {
        name: fingerprint(settings[name].value) if settings[name].value else None for name in ("model", "tokenizer")
    }
    folder = pretraining.agreed(
        Run.start("pretrain_gpt", settings, inputs, options.overwrite) if state.is_main_process else None
    )
    folder.writes, settings = state.is_main_process, folder.settings
    if folder.finished:
        state.print(f"{folder.folder} is finished; --overwrite makes it again")
        return

    # Text to tokens.
    with state.main_process_first():
        sides = split(source, validation_source, options.validation_fraction, options.split_seed)
    refuse(problems_of_split(sides))
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
    if given_model is not None:
        settings.inherit("context_length", given_model.config.max_position_embeddings, options.model)
    plan_context(settings, state.device)
    folder.save(data={"name": source.name, "format": source.format, **sides.counts()})
    folder.save_model(None, tokenizer)
    state.wait_for_everyone()
    with state.main_process_first():
        train, validation = token_files(sides, tokenizer, fingerprint(folder.folder / "tokenizer.json"))
    byte_lengths = token_byte_lengths(tokenizer)
    pretraining.check_text(train, validation, byte_lengths, settings)
    xz = pretraining.agreed(xz_bits_per_byte(sides) if state.is_main_process else None)
    state.print(summary.of_data(sides, tokenizer, train, validation, xz, state.num_processes, threads))

    # Every number of the run, stored before the first step.
    machine = pretraining.Machine.measured(state.device, state.num_processes)
    plan = pretraining.plan_run(settings, machine, train, validation, tokenizer, given_model)
    folder.save(forecast=folder.record.get("forecast") or plan.forecast)
    state.print(summary.of_plan(settings, folder.record["forecast"]))
    peak = machine.peak(plan.autocast)
    trainer = PretrainTrainer(plan.model, train, validation, byte_lengths, tokenizer, folder, peak, plan.autocast)
    trainer.add_callback(Samples(trainer.journal, summary.sampler(plan.model, tokenizer, sides, settings)))
    trainer.add_callback(Checkpoints())

    # Train, evaluate, save.
    checkpoint = newest_checkpoint(folder.folder) if folder.resumes else None
    if checkpoint:
        state.print(f"goes on from {checkpoint}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.global_step < settings["max_steps"].value:
        raise StoppedEarly(
            f"by SIGTERM at step {trainer.state.global_step} of {settings['max_steps'].value}, with a checkpoint; the same command goes on",
            exit_code=143,
        )
    result = trainer.measure(validation.ids)
    metrics = summary.metrics_of(trainer, result, xz, folder.record["forecast"])
    plan.model.config.use_cache = True
    folder.save_model(plan.model, tokenizer)
    folder.finish(metrics)
    trainer.end()
    state.print(summary.of_result(folder.folder, metrics))


def problems_of(options: PretrainOptions) -> list[str]:
    """What is wrong with the options by themselves."""
    from llmkit.training.budget import parse_budget

    problems = []
    if options.time_budget is not None:
        try:
            parse_budget(options.time_budget)
        except UserError as error:
            problems += error.problems
    for name in (
        "depth",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "context_length",
    ):
        value = getattr(options, name)
        if value is not None and value < 1:
            problems.append(f"--{name} {value}: must be 1 or more")
        if value is not None and options.model is not None and name != "context_length":
            problems.append(f"--{name} {value}: the model {options.model} has its own; leave one of the two out")
    if options.vocab_size is not None and (options.tokenizer or options.model):
        problems.append(
            f"--vocab_size {options.vocab_size}: a tokenizer is given, so none is trained; leave one of the two out"
        )
    if options.validation_fraction is not None and not 0 < options.validation_fraction < 1:
        problems.append(f"--validation_fraction {options.validation_fraction}: must be between 0 and 1")
    if not 0 <= options.decay_share <= 1:
        problems.append(f"--decay_share {options.decay_share}: must be between 0 and 1")
    return problems


if __name__ == "__main__":
    run(main)
