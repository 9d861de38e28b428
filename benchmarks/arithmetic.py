"""Learning from rewards and from preferences: a model that knows better than it answers, before and after GRPO and DPO.

    python benchmarks/arithmetic.py [--seeds 3] [--steps 800]

For each seed a fresh GPT of the tutor's shape, with the tutor's tokenizer, is taught the bundled arithmetic by right answers
(--steps steps), and then for 100 steps by rows of which 40 % have a wrong number for an answer. From this noisy model both recipes
go on with nothing but their defaults: align_grpo.py on its bundled questions, align_dpo.py on rows whose chosen answer is the right
one and whose rejected answer is a wrong number drawn at random. Nothing of this has a pair of operands that the test asks about.

Accuracy is over one question of every kind about each pair of the test: of four answers to each sampled at temperature 1, and of the
greedy one. KL is of the model from the noisy one, in nats, the mean over the tokens of answers that the model itself samples to the
test's questions, with the sum over the vocabulary taken exactly; what GRPO says of it in training is in the JSON. Training seconds
leave out evaluation, imports and saving; everything is from process start to finished folder.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "recipes"
DRAWN = 20_000  # rows, which hold most of the questions that there are; each is taught once a pass
WRONG = 0.4  # of the answers that make the noisy model
NOISY_STEPS = 100
BATCH = 64  # conversations of about 25 tokens
PREFERENCES = 1600
# A held-out row takes its near copies out of training, and of questions of eight words all that begin alike are near copies: those
# with another second number, which it is fair to teach. Fine-tuning is therefore shown the shorter ones; the figures are over all.
FEWEST_WORDS_OF_NEAR_COPIES = 8
# Rows of the table: points of sampled accuracy and seconds that are wanted.
WANTED = {
    "GRPO": "+30 points sampled, greedy not lower, 120 s or less",
    "DPO": "+25 points sampled",
}


def recipe(name: str, options: dict[str, Any], folder: Path) -> float:
    """Run a recipe in a folder, and return its seconds."""
    words = [str(word) for option, value in options.items() for word in (f"--{option}", value)]
    started = time.perf_counter()
    output([sys.executable, str(RECIPES / f"{name}.py"), *words], folder)
    return time.perf_counter() - started


def output(command: list[str], folder: Path) -> str:
    """What a command that runs in a folder prints."""
    environment = os.environ | {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        )
    return done.stdout


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


# ---------------------------------------------------------------------------------------------- rows


def question_of(row: dict[str, Any]) -> str:
    return row["messages"][0]["content"]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_data(folder: Path, seed: int) -> None:
    """right.jsonl, noisy.jsonl, held_out.jsonl and preferences.jsonl."""
    from llmkit.data.bundled import arithmetic

    # Each question once: recipes leave out copies, and of equal rows more would be right ones than wrong ones.
    right = list({question_of(row): row for row in arithmetic.training_rows(DRAWN)}.values())
    wrong = arithmetic.noisy(right, 1.0, seed)
    write_rows(folder / "right.jsonl", right)
    write_rows(folder / "noisy.jsonl", arithmetic.noisy(right, WRONG, seed))
    short = [
        row for row in arithmetic.test_rows() if len(re.findall(r"\w+", question_of(row))) < FEWEST_WORDS_OF_NEAR_COPIES
    ]
    write_rows(folder / "held_out.jsonl", short)
    pairs = zip(right[:PREFERENCES], wrong[:PREFERENCES], strict=True)
    preferences = [
        {"prompt": question_of(good), "chosen": good["answer"], "rejected": bad["answer"]} for good, bad in pairs
    ]
    write_rows(folder / "preferences.jsonl", preferences)


# ---------------------------------------------------------------------------------------------- what a model answers


def measure(name: str, reference: str, seed: int) -> dict[str, Any]:
    """What align_grpo.py says of a model before its first step, with the model's divergence from another; in this process."""
    from llmkit.modeling.models import choose_attention, load_model, load_tokenizer
    from llmkit.options import parse_options
    from llmkit.tokenization.chat import end_tokens
    from llmkit.training import finetuning, grpo, processes, rewards

    options, _, settings = parse_options(
        grpo.GrpoOptions, grpo.GrpoArguments, argv=["--model", name, "--seed", str(seed)]
    )
    parent = finetuning.require_causal_model(name)
    reward = rewards.checked(rewards.load_reward(options.reward))
    rows = grpo.open_questions(options)
    state = processes.start_processes(settings)
    tokenizer = load_tokenizer(name, "--model")
    model = load_model(name, tokenizer)
    autocast = grpo.inherit(settings, model, name, parent, state.device)
    grpo.plan_answers(settings, rows, tokenizer)
    asked = grpo.ask(rows.validation, tokenizer, settings)
    other = load_model(reference, tokenizer)
    for one in (model, other):
        choose_attention(one, state.device, settings["max_length"].value)
        one.generation_config.eos_token_id = end_tokens(tokenizer)
        one.to(state.device).eval()
    found = grpo.earned(model, tokenizer, asked, reward, settings, autocast)
    return found | {"kl": divergence(model, other, tokenizer, asked, settings)}


def divergence(model: Any, reference: Any, tokenizer: Any, asked: Any, settings: Any) -> float:
    """KL divergence of a model from another, in nats a token, where the model itself writes; the token that ends an answer counts."""
    import torch

    from llmkit.tokenization.chat import end_tokens
    from llmkit.training import grpo

    most, end = settings["max_completion_length"].value, end_tokens(tokenizer)[0]
    temperature, seed = settings["temperature"].value, settings["seed"].value
    answers = grpo.sampled_answers(model, tokenizer, asked.ids, 1, temperature, most, seed)
    nats = tokens = 0.0
    with torch.inference_mode():
        for prompt, (answer,) in zip(asked.ids, answers, strict=True):
            written = [*answer, end][:most]
            ids = torch.tensor([prompt + written], device=model.device)
            ours, theirs = (
                one(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1) for one in (model, reference)
            )
            nats += (ours.exp() * (ours - theirs)).sum().item()
            tokens += len(written)
    return nats / tokens


def measured(model: str, reference: str, seed: int, folder: Path) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", model, reference, str(seed)]
    return json.loads(output(command, folder).splitlines()[-1])


# ---------------------------------------------------------------------------------------------- one seed


def run_seed(folder: Path, tokenizer: Path, seed: int, steps: int) -> dict[str, dict[str, float]]:
    """The figures of the four models of a seed, by their names in the table."""
    write_data(folder, seed)
    quick = {"seed": seed, "eval_strategy": "no", "save_strategy": "no"}
    # The first step of a warmup has the rate 0: fresh weights. 64 x 64 tokens are the batch that learning rates are made for.
    gpt = {"tokenizer": tokenizer, "depth": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "context_length": 64,
           "per_device_train_batch_size": 64, "max_steps": 1, "warmup_steps": 10, "output_dir": "fresh"}  # fmt: skip
    recipe("pretrain_gpt", gpt | quick, folder)
    taught = {"validation_data": "held_out.jsonl", "per_device_train_batch_size": BATCH} | quick
    right = {"model": "fresh", "data": "right.jsonl", "max_steps": steps, "output_dir": "right"}
    noisy = {"model": "right", "data": "noisy.jsonl", "max_steps": NOISY_STEPS, "output_dir": "noisy"}
    seconds = {"right answers": recipe("finetune_instruct", right | taught, folder)}
    seconds["noisy answers"] = recipe("finetune_instruct", noisy | taught, folder)
    seconds["GRPO"] = recipe("align_grpo", {"model": "noisy", "seed": seed, "output_dir": "grpo"}, folder)
    dpo = {"model": "noisy", "data": "preferences.jsonl", "seed": seed, "output_dir": "dpo"}
    seconds["DPO"] = recipe("align_dpo", dpo, folder)

    grpo = read(folder / "grpo" / "metrics.json")
    figures = {
        "right answers": measured("right", "noisy", seed, folder),
        "noisy answers": read(folder / "grpo" / "llmkit.json")["before"],
        "GRPO": grpo | {"kl_in_training": grpo.get("kl"), "kl": measured("grpo", "noisy", seed, folder)["kl"]},
        "DPO": measured("dpo", "noisy", seed, folder),
    }
    before = figures["noisy answers"]
    kept = ("reward", "greedy_reward", "reward_n", "completion_length", "mixed_share", "kl", "kl_in_training")
    made = {}
    for (name, found), place in zip(figures.items(), ("right", "noisy", "grpo", "dpo"), strict=True):
        made[name] = {figure: found[figure] for figure in kept if figure in found}
        made[name]["train_seconds"] = read(folder / place / "metrics.json")["train_seconds"]
        made[name]["seconds"] = seconds[name]
        if name in WANTED:
            made[name] |= {f"{figure}_gained": found[figure] - before[figure] for figure in ("reward", "greedy_reward")}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800, help="of right answers")
    parser.add_argument(
        "--measure", nargs=3, metavar=("MODEL", "REFERENCE", "SEED"), help="only measure a model, print JSON"
    )
    options = parser.parse_args()
    if options.measure:
        model, reference, seed = options.measure
        print(json.dumps(measure(model, reference, int(seed))))
        return
    runs: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        tokenizer = Path(name, "tokenizer")
        config = RECIPES / "configs" / "tutor_tokenizer.yaml"
        recipe("train_tokenizer", {"config": config, "output_dir": tokenizer}, Path(name))
        for seed in range(1, options.seeds + 1):
            folder = Path(name, f"seed-{seed}")
            folder.mkdir()
            for who, figures in run_seed(folder, tokenizer, seed, options.steps).items():
                runs.setdefault(who, []).append(figures)
            shown = ", ".join(
                f"{who} {of[-1]['reward']:.1%} / {of[-1]['greedy_reward']:.1%}" for who, of in runs.items()
            )
            print(f"seed {seed}: {shown}", file=sys.stderr, flush=True)
    medians = {
        who: {figure: statistics.median(run[figure] for run in of if run[figure] is not None) for figure in of[0]}
        for who, of in runs.items()
    }
    print(
        f"| n = {runs['GRPO'][0]['reward_n']} questions | sampled | greedy | sampled, points | greedy, points | training s | everything s | "
        "KL | tokens of an answer | wanted |"
    )
    print(f"| {'--- | ' * 10}".rstrip())
    for who, m in medians.items():
        gains = [f"{100 * m[name]:+.1f}" if name in m else "" for name in ("reward_gained", "greedy_reward_gained")]
        print(
            f"| {who} | {m['reward']:.1%} | {m['greedy_reward']:.1%} | {' | '.join(gains)} | {m['train_seconds']:.0f} | {m['seconds']:.0f} | "
            f"{format(m['kl'], '.3f') if who in WANTED else ''} | {m['completion_length']:.2f} | {WANTED.get(who, '')} |"
        )
    (HERE / "arithmetic.json").write_text(json.dumps({"runs": runs, "medians": medians}, indent=2))


if __name__ == "__main__":
    main()
