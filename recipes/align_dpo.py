"""Teach a chat model which of two answers is the better one: direct preference optimization (DPO).

    accelerate launch recipes/align_dpo.py --data my_preferences.jsonl                    from runs/chat
    accelerate launch recipes/align_dpo.py --data my_preferences.jsonl --model ORG/NAME --use_lora

Rows hold a prompt with a chosen and a rejected answer; none are bundled. The model that the run starts from is the reference.
What is not given is inherited from it, and printed with where it came from. --use_lora trains an adapter and merges it.
The same command goes on with a run that was interrupted.
"""

from llmkit.errors import StoppedEarly, noting, refuse, run
from llmkit.options import parse_options


def main() -> None:
    from llmkit.training import dpo

    options, _, settings = parse_options(dpo.PreferenceOptions, dpo.PreferenceArguments, __doc__)

    from transformers import set_seed

    from llmkit.data.conversations import open_rows, preference_from
    from llmkit.folder import Run, fingerprint
    from llmkit.modeling.models import choose_attention, load_model, load_tokenizer
    from llmkit.tokenization.chat import end_tokens, require_template
    from llmkit.training import finetuning, processes, summary
    from llmkit.training.callbacks import Checkpoints
    from llmkit.training.checkpoints import newest_checkpoint

    # What cannot work is refused here, and nothing is written before it all was looked at.
    problems = dpo.problems_of(options, settings)
    parent: dict = {}
    with noting(problems):
        parent = finetuning.require_causal_model(options.model)
    if options.data is not None:
        with noting(problems):
            rows = open_rows(options, preference_from)
    refuse(problems)
    state = processes.start_processes(settings)
    inputs = rows.fingerprints | {"model": fingerprint(options.model)}
    folder = processes.agreed(
        Run.start("align_dpo", settings, inputs, options.overwrite) if state.is_main_process else None
    )
    folder.writes, settings = state.is_main_process, folder.settings
    if folder.finished:
        state.print(f"{folder.folder} is finished; --overwrite makes it again")
        return

    # Rows to tokens, and every number of the run, inherited from the model where it was not given.
    tokenizer = load_tokenizer(options.model, "--model")
    template = require_template(tokenizer, options.chat_template_path)
    model = load_model(options.model, tokenizer)
    dpo.plan_rates(settings, options.model, parent)
    finetuning.inherit(settings, model.config, options.model, parent, state.device)
    train = dpo.encode_side(rows.train, tokenizer, settings)
    held_out = "--validation_data" if options.validation_data else "--data"
    validation = dpo.encode_side(rows.validation, tokenizer, settings, held_out)
    finetuning.plan_steps(settings, len(train.samples), state.num_processes)
    folder.save(data=rows.counts(), parent={"folder": options.model, "fingerprint": inputs["model"]})
    state.print(dpo.of_rows(rows, train, validation, template, state))
    state.print(summary.of_plan(settings, None, dpo.SHOWN))

    # Train, evaluate, save.
    set_seed(settings["seed"].value)
    choose_attention(model, state.device, settings["max_length"].value)
    model.generation_config.eos_token_id = end_tokens(tokenizer)
    trainer = dpo.PreferenceTrainer(model, train, validation, tokenizer, folder)
    trainer.add_callback(Checkpoints())
    before = finetuning.loss_before(trainer, folder)
    checkpoint = newest_checkpoint(folder.folder) if folder.resumes else None
    if checkpoint:
        state.print(f"goes on from {checkpoint}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    steps, planned = trainer.state.global_step, settings["max_steps"].value
    if steps < planned:
        raise StoppedEarly(f"by SIGTERM at step {steps} of {planned}, with a checkpoint; the same command goes on", 143)
    metrics = dpo.metrics_of(trainer, before)
    folder.save_model(trainer.merged() if options.use_lora else model, tokenizer)
    folder.finish(metrics)
    if settings["push_to_hub"].value:
        state.print(f"pushed to {folder.push()}")
    trainer.end()
    state.print(dpo.of_result(folder.folder, metrics))
    state.destroy_process_group()  # left to the interpreter's end, it can wait for ever


if __name__ == "__main__":
    run(main)
