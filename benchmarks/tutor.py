"""The tutor: what `make chat` takes and gives, and what its choices are worth.

    python benchmarks/tutor.py [--parts chain lora start packing] [--seeds 3] [--rows 24000] [--folder FOLDER]

chain: the three commands of `make chat`, with empty caches. Seconds go from the start of the first process to the finished folder
of the last, opening the chat left out; memory is the most that any one process has held.

The other parts fine-tune the GPT of the chain, each seed its own, on the first --rows of the tutor's rows, as the recipes do by
themselves, and compare with all weights, one conversation a sample:

lora: an adapter beside the weights, and one beside a base in 4 bits.
start: all weights of a GPT of the same shape and learning rates whose only step of pretraining had the rate 0, so that the tokens
of fine-tuning are equal and those of pretraining are what differs.
packing: several conversations in a row ("bfd": whole ones that do not see each other; "wrapped": a stream, cut), with as many
conversations a step as whole rows allow, in one pass over the same rows.

Points are medians of the differences that each seed has. With --folder the models stay, and what is there is not made again: the
chain of a seed is remade, with empty caches, if one of its three is missing, and everything of the seed with it.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "recipes"
# As the Makefile has them.
LAUNCH = (str(Path(sys.executable).with_name("accelerate")), "launch", "--quiet", "--num_processes", "1", "--num_machines", "1",
          "--mixed_precision", "no", "--dynamo_backend", "no")  # fmt: skip
CHAIN = {"tutor_tokenizer": "train_tokenizer", "tutor_gpt": "pretrain_gpt", "tutor": "finetune_instruct"}
KINDS = ("definition", "why", "related", "comparison", "follow_up", "small_talk", "refusal")
# Rows of the chain's table: figure, in words, what is wanted.
SHARES = {
    "exact_match": ("held-out questions exactly right", "95 % or more"),
    **{f"exact_match_{kind}": (kind.replace("_", " "), "") for kind in KINDS},
    "exact_match_manners": ("small talk and refusals together", "90 % or more"),
    "exact_match_blind": ("blind questions", "80 % or more"),
}
AMOUNTS = {
    "tokenizer_seconds": ("tokenizer, s", ""),
    "gpt_seconds": ("GPT, s", ""),
    "tutor_seconds": ("tutor, s", ""),
    "seconds": ("everything, s", "480 or less"),
    "memory_gb": ("memory, GB", "below 3"),
    "gpt_bits_per_byte": ("bits per byte of the GPT", ""),
}
REFERENCE = "all weights"
# Of each part: the run, what it is compared with, the points that are wanted.
COMPARISONS = {
    "lora": (("LoRA", REFERENCE, "-3 or more, with less than 20 % of the parameters"), ("QLoRA", "LoRA", "-2 or more")),
    "start": (("fresh start", REFERENCE, "below 0"),),
    "packing": (("bfd", REFERENCE, ""), ("wrapped", REFERENCE, "")),
}
# What makes the shape of a GPT, and what fine-tuning inherits from it.
OF_THE_GPT = (
    "depth", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "context_length", "initializer_range",
    "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "muon_learning_rate",
)  # fmt: skip


def measured(command: list[str], folder: Path) -> tuple[float, float]:
    """(seconds, GB resident at most in one process) of a command that runs in a folder."""
    environment = os.environ | {
        "HF_HOME": str(folder / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"),
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        # Of this command alone, with the processes that it started; resource.getrusage would have the most of all commands so far.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}\n{log.read()[-4000:]}")
    return seconds, usage.ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def run(name: str, command: list[str], folder: Path) -> dict[str, Any]:
    """The figures of a recipe that writes `runs/NAME` of a folder; if they are there already, it does not run.

    Returns:
        Its metrics.json, with "wall_seconds" and "resident_gb" of the whole command.
    """
    record = folder / f"{name}.json"
    if not record.exists():
        # What a stopped command has left would be gone on with, and its seconds are lost.
        shutil.rmtree(folder / "runs" / name, ignore_errors=True)
        seconds, memory = measured([*command, "--output_dir", f"runs/{name}"], folder)
        metrics = json.loads((folder / "runs" / name / "metrics.json").read_text())
        record.write_text(json.dumps(metrics | {"wall_seconds": seconds, "resident_gb": memory}))
        print(f"{record}: {seconds:.0f} s, {memory:.2f} GB", file=sys.stderr, flush=True)
    return json.loads(record.read_text())


def words_of(options: dict[str, Any]) -> list[str]:
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


def option_of(folder: Path, name: str, option: str) -> Any:
    """The value that an option had in a finished run."""
    return json.loads((folder / "runs" / name / "llmkit.json").read_text())["options"][option]["value"]


# ---------------------------------------------------------------------------------------------- the chain


def chain(folder: Path, seed: int, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The figures of the chain's recipes up to the last that is named, by name."""
    if not all((folder / f"{name}.json").exists() for name in names):
        shutil.rmtree(folder, ignore_errors=True)  # also the caches, which would save time
        folder.mkdir(parents=True)
    made = {}
    for name in names:
        seeded = [] if CHAIN[name] == "train_tokenizer" else ["--seed", str(seed)]  # a tokenizer has nothing random
        config = str(RECIPES / "configs" / f"{name}.yaml")
        made[name] = run(name, [*LAUNCH, str(RECIPES / f"{CHAIN[name]}.py"), "--config", config, *seeded], folder)
    return made


def figures_of_chain(made: dict[str, dict[str, Any]]) -> dict[str, float]:
    tutor = made["tutor"]
    manners = [(tutor[f"exact_match_{kind}"], tutor[f"exact_match_{kind}_n"]) for kind in ("small_talk", "refusal")]
    figures = {
        name: value for name, value in tutor.items() if name.startswith("exact_match") and not name.endswith("_ci")
    }
    count = sum(n for _, n in manners)
    figures |= {"exact_match_manners": sum(share * n for share, n in manners) / count, "exact_match_manners_n": count}
    figures |= {
        f"{short}_seconds": made[name]["wall_seconds"]
        for short, name in (("tokenizer", "tutor_tokenizer"), ("gpt", "tutor_gpt"), ("tutor", "tutor"))
    }
    return figures | {
        "seconds": sum(metrics["wall_seconds"] for metrics in made.values()),
        "memory_gb": max(metrics["resident_gb"] for metrics in made.values()),
        "gpt_bits_per_byte": made["tutor_gpt"]["bits_per_byte"],
    }


def print_chain(runs: list[dict[str, float]]) -> None:
    seeds = range(1, len(runs) + 1)
    print(f"| make chat | n | median | {' | '.join(f'seed {seed}' for seed in seeds)} | wanted |")
    print(f"| --- | --- | --- | {'--- | ' * len(runs)}--- |")
    for rows, form in ((SHARES, "{:.1%}"), (AMOUNTS, "{:.2f}")):
        for name, (what, wanted) in rows.items():
            values = [figures[name] for figures in runs]
            cells = " | ".join(form.format(value) for value in [statistics.median(values), *values])
            print(f"| {what} | {runs[0].get(f'{name}_n', '')} | {cells} | {wanted} |")
    print(flush=True)


# ---------------------------------------------------------------------------------------------- comparisons


def compare(folder: Path, seed: int, rows: int, parts: list[str]) -> dict[str, dict[str, Any]]:
    """The figures of the reference and of the runs of each part, by name, all from the GPT in the folder's runs/tutor_gpt."""

    def finetune(name: str, recipe: str = "finetune_instruct", **options: Any) -> dict[str, Any]:
        folder_name = f"{name.replace(' ', '_')}-{rows}"
        given = {"model": "runs/tutor_gpt", "tutor_rows": rows, "seed": seed} | options
        figures = run(folder_name, [sys.executable, str(RECIPES / f"{recipe}.py"), *words_of(given)], folder)
        return figures | {"steps": option_of(folder, folder_name, "max_steps")}

    made = {REFERENCE: finetune(REFERENCE)}
    batch = option_of(folder, f"all_weights-{rows}", "per_device_train_batch_size")
    tokens = made[REFERENCE]["train_tokens"] / (made[REFERENCE]["steps"] * batch)  # of a conversation
    if "lora" in parts:
        made["LoRA"] = finetune("LoRA", "finetune_lora")
        made["QLoRA"] = finetune("QLoRA", "finetune_lora", load_in_4bit=True)
    if "start" in parts:
        made["fresh start"] = finetune("fresh start", model=fresh_gpt(folder, seed))
    if "packing" in parts:
        length = option_of(folder, f"all_weights-{rows}", "max_length")
        packed = max(round(batch * tokens / length), 1)  # rows with as many conversations as a step has without packing
        for strategy in ("bfd", "wrapped"):
            options = {"packing": True, "packing_strategy": strategy, "per_device_train_batch_size": packed}
            made[strategy] = finetune(strategy, **options)
    for figures in made.values():
        figures["conversations_per_step"] = figures["train_tokens"] / figures["steps"] / tokens
    return made


def fresh_gpt(folder: Path, seed: int) -> str:
    """A GPT like the folder's runs/tutor_gpt in everything that fine-tuning takes over from it, and not trained."""
    options = {name: option_of(folder, "tutor_gpt", name) for name in OF_THE_GPT}
    # The first step of a warmup has the rate 0.
    options |= {"tokenizer": "runs/tutor_tokenizer", "seed": seed, "max_steps": 1, "warmup_steps": 10}
    options |= {"eval_strategy": "no", "save_strategy": "no"}
    run("fresh_gpt", [sys.executable, str(RECIPES / "pretrain_gpt.py"), *words_of(options)], folder)
    return "runs/fresh_gpt"


def print_comparisons(runs: list[dict[str, dict[str, Any]]], rows: int, parts: list[str]) -> None:
    """
    Args:
        runs: of each seed, the figures by the run's name.
    """

    def median(name: str, figure: str) -> float:
        return statistics.median(made[name][figure] for made in runs)

    print(
        f"| {rows:,} rows | exactly right | points | blind | loss | trained parameters | base MB | tokens | steps | "
        "conversations a step | training s | GB | points wanted |"
    )
    print(f"| {'--- | ' * 13}".rstrip())
    for name, to, wanted in [(REFERENCE, None, ""), *(row for part in parts for row in COMPARISONS.get(part, ()))]:
        points = ""
        if to:
            gained = statistics.median(made[name]["exact_match"] - made[to]["exact_match"] for made in runs)
            points = f"{100 * gained:+.1f} to {to}"
        trained, share = (
            median(name, "trained_parameters") / all_of for all_of in (1e6, median(REFERENCE, "trained_parameters"))
        )
        base = f"{median(name, 'base_megabytes'):.2f}" if "base_megabytes" in runs[0][name] else ""
        print(
            f"| {name} | {median(name, 'exact_match'):.1%} | {points} | {median(name, 'exact_match_blind'):.1%} | "
            f"{median(name, 'validation_loss'):.3f} | {trained:.3f} M ({share:.1%}) | {base} | "
            f"{median(name, 'train_tokens') / 1e6:.2f} M | {median(name, 'steps'):,.0f} | {median(name, 'conversations_per_step'):.1f} | "
            f"{median(name, 'train_seconds'):.0f} | {median(name, 'resident_gb'):.2f} | {wanted} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["chain", *COMPARISONS], default=["chain", *COMPARISONS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=24_000, help="of the tutor, for everything but the chain")
    parser.add_argument("--folder", type=Path, help="where the models stay; None: they are deleted")
    options = parser.parse_args()
    names = tuple(CHAIN) if "chain" in options.parts else ("tutor_tokenizer", "tutor_gpt")
    compared = [part for part in COMPARISONS if part in options.parts]
    chains: list[dict[str, float]] = []
    comparisons: list[dict[str, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as temporary:
        base = (options.folder or Path(temporary)).resolve()
        for seed in range(1, options.seeds + 1):
            made = chain(base / f"seed-{seed}", seed, names)
            if "chain" in options.parts:
                chains.append(figures_of_chain(made))
            if compared:
                comparisons.append(compare(base / f"seed-{seed}", seed, options.rows, compared))
    file = HERE / "tutor.json"
    results = json.loads(file.read_text()) if file.exists() else {}  # parts that were measured before stay
    if chains:
        results["chain"] = chains
        print_chain(chains)
    for part in compared:
        of_part = (REFERENCE, *(name for name, _, _ in COMPARISONS[part]))
        results[part] = {"rows": options.rows, "runs": {name: [made[name] for made in comparisons] for name in of_part}}
    if compared:
        print_comparisons(comparisons, options.rows, compared)
    file.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
