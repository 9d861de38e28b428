"""Teach a language model to answer: supervised fine-tuning of all its weights on conversations.

    accelerate launch recipes/finetune_instruct.py                                   the bundled tutor, from runs/gpt
    accelerate launch recipes/finetune_instruct.py --data my_chats.jsonl --model ORG/NAME

Rows hold messages, prompt and completion, or instruction, input and output. The loss is on the assistant's answers and the
token that ends them, and on nothing else. What is not given is inherited from the model, and printed with where it came from.
The same command goes on with a run that was interrupted.
"""

from llmkit.errors import StoppedEarly, noting, refuse, run
from llmkit.options import parse_options
from llmkit.training.finetuning import FullOptions


def main() -> None:
    from llmkit.training.instruct import UNUSED, InstructArguments, InstructTrainer, lay_out

    options, _, settings = parse_options(FullOptions, InstructArguments, __doc__)

    from transformers import set_seed

    from llmkit.folder import Run, fingerprint
    from llmkit.modeling.models import choose_attention, load_config, load_model, load_tokenizer
    from llmkit.tokenization.chat import end_tokens, require_template
    from llmkit.training import finetuning, finetuning_summary, processes, summary
    from llmkit.training.callbacks import Checkpoints
    from llmkit.training.checkpoints import newest_checkpoint

    # What cannot work is refused here, and nothing is written before it all was looked at.
    problems = finetuning.problems_of(options, settings, UNUSED)
    parent: dict = {}
    with noting(problems):
        parent = finetuning.require_causal_model(options.model)
    rows = finetuning.open_conversations(options, problems)
    refuse(problems)
    state = processes.start_processes(settings)
    inputs = rows.fingerprints | {"model": fingerprint(options.model)}
    folder = processes.agreed(
        Run.start("finetune_instruct", settings, inputs, options.overwrite) if state.is_main_process else None
    )
    folder.writes, settings = state.is_main_process, folder.settings
    if folder.finished:
        state.print(f"{folder.folder} is finished; --overwrite makes it again")
        return

    # Rows to tokens, and every number of the run, inherited from the model where it was not given.
    tokenizer = load_tokenizer(options.model, "--model")
    template = require_template(tokenizer, settings["chat_template_path"].value)
    autocast = finetuning.inherit(settings, load_config(options.model), options.model, parent, state.device)
    train = finetuning.encode_side(rows.train, tokenizer, settings)
    validation = finetuning.encode_side(rows.validation, tokenizer, settings, "--validation_data")
    samples = lay_out(train, settings)
    finetuning.plan_steps(settings, len(samples), state.num_processes)
    model = load_model(options.model, tokenizer)
    folder.save(data=rows.counts(), parent={"folder": options.model, "fingerprint": inputs["model"]})
    state.print(finetuning_summary.of_rows(rows, train, validation, template, state))
    state.print(summary.of_plan(settings, None, finetuning_summary.SHOWN))

    # Train, evaluate, save.
    set_seed(settings["seed"].value)
    choose_attention(model, state.device, settings["max_length"].value)
    model.generation_config.eos_token_id = end_tokens(tokenizer)
    trainer = InstructTrainer(model, samples, validation, tokenizer, folder, InstructArguments)
    trainer.add_callback(Checkpoints())
    before = finetuning.loss_before(trainer, folder)
    checkpoint = newest_checkpoint(folder.folder) if folder.resumes else None
    if checkpoint:
        state.print(f"goes on from {checkpoint}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    steps, planned = trainer.state.global_step, settings["max_steps"].value
    if steps < planned:
        raise StoppedEarly(f"by SIGTERM at step {steps} of {planned}, with a checkpoint; the same command goes on", 143)
    answers = finetuning.answer_held_out(model, tokenizer, rows, autocast)
    metrics = finetuning_summary.metrics_of(trainer, before, answers)
    folder.save_model(model, tokenizer)
    folder.save_answers(answers)
    folder.finish(metrics)
    if settings["push_to_hub"].value:
        state.print(f"pushed to {folder.push()}")
    trainer.end()
    state.print(finetuning_summary.of_result(folder.folder, metrics, answers))
    state.destroy_process_group()  # left to the interpreter's end, it can wait for ever


if __name__ == "__main__":
    run(main)
