"""Let a chat model learn from rewards that can be checked: GRPO on questions, over all of its weights.

    accelerate launch recipes/align_grpo.py --model runs/arithmetic                        the bundled arithmetic
    accelerate launch recipes/align_grpo.py --data my_questions.jsonl --reward my_rewards.py:short

Rows hold a prompt, or messages, and whatever the reward reads: a Python function (completions, **columns) -> one number for each
answer. A model that leaves nothing to learn from is refused before the first step (--skip_headroom_check trains all the same).
What is not given is inherited from the model, and printed with where it came from.
The same command goes on with a run that was interrupted.
"""

from llmkit.errors import StoppedEarly, noting, refuse, run
from llmkit.options import parse_options


def main() -> None:
    from llmkit.training.grpo import GrpoArguments, GrpoOptions, GrpoTrainer

    options, _, settings = parse_options(GrpoOptions, GrpoArguments, __doc__)

    from transformers import set_seed

    from llmkit.folder import Run, fingerprint
    from llmkit.modeling.models import choose_attention, load_model, load_tokenizer
    from llmkit.tokenization.chat import end_tokens, require_template
    from llmkit.training import finetuning, grpo, processes, rewards, summary
    from llmkit.training.callbacks import Checkpoints
    from llmkit.training.checkpoints import newest_checkpoint

    # What cannot work is refused here, and nothing is written before it all was looked at.
    problems = grpo.problems_of(options, settings)
    parent: dict = {}
    reward = rows = None
    with noting(problems):
        parent = finetuning.require_causal_model(options.model)
    with noting(problems):
        reward = rewards.checked(rewards.load_reward(options.reward))
    with noting(problems):
        rows = grpo.open_questions(options)
    if reward and rows:
        with noting(problems):
            rewards.try_reward(reward, rows.train)
    refuse(problems)
    state = processes.start_processes(settings)
    inputs = rows.fingerprints | {
        "model": fingerprint(options.model),
        "reward": rewards.reward_fingerprint(options.reward),
    }
    folder = processes.agreed(
        Run.start("align_grpo", settings, inputs, options.overwrite) if state.is_main_process else None
    )
    folder.writes, settings = state.is_main_process, folder.settings
    if folder.finished:
        state.print(f"{folder.folder} is finished; --overwrite makes it again")
        return

    # Questions to tokens, and every number of the run, inherited from the model where it was not given.
    tokenizer = load_tokenizer(options.model, "--model")
    template = require_template(tokenizer, settings["chat_template_path"].value)
    model = load_model(options.model, tokenizer)
    autocast = grpo.inherit(settings, model, options.model, parent, state.device)
    grpo.plan_answers(settings, rows, tokenizer)
    train = grpo.ask(rows.train, tokenizer, settings)
    validation = grpo.ask(rows.validation, tokenizer, settings, "--validation_data")
    grpo.plan_steps(settings, len(train.ids), state.num_processes)
    state.print(grpo.of_rows(rows, train, validation, template, state))
    state.print(summary.of_plan(settings, None, grpo.SHOWN))

    # What there is to learn: a model whose answers all earn the same would only be harmed.
    set_seed(settings["seed"].value)
    choose_attention(model, state.device, settings["max_length"].value)
    model.generation_config.eos_token_id = end_tokens(tokenizer)
    model.to(state.device)
    before = folder.record.get("before")
    if before is None:
        before = processes.agreed(grpo.earned(model, tokenizer, validation, reward, settings, autocast))
    state.print(grpo.of_headroom(before))
    grpo.require_headroom(before, options)
    folder.save(data=rows.counts(), parent={"folder": options.model, "fingerprint": inputs["model"]}, before=before)

    # Train, evaluate, save.
    trainer = GrpoTrainer(model, train, validation, reward, tokenizer, folder, before["completion_length"])
    trainer.add_callback(Checkpoints())
    checkpoint = newest_checkpoint(folder.folder) if folder.resumes else None
    if checkpoint:
        state.print(f"goes on from {checkpoint}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    steps, planned = trainer.state.global_step, settings["max_steps"].value
    if steps < planned:
        raise StoppedEarly(f"by SIGTERM at step {steps} of {planned}, with a checkpoint; the same command goes on", 143)
    after = grpo.earned(model, tokenizer, validation, reward, settings, autocast)
    metrics = grpo.metrics_of(trainer, before, after)
    folder.save_model(model, tokenizer)
    folder.finish(metrics)
    if settings["push_to_hub"].value:
        state.print(f"pushed to {folder.push()}")
    trainer.end()
    state.print(grpo.of_result(folder.folder, metrics))
    state.destroy_process_group()  # left to the interpreter's end, it can wait for ever


if __name__ == "__main__":
    run(main)
