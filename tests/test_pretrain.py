"""The pretraining recipe as a user runs it: what it leaves behind, and that nothing which happens to a run changes it."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from conftest import ROOT, TINY, run_recipe

from llmkit.folder import fingerprint
from llmkit.training.checkpoints import problem_of

OPTIONS = [*TINY, "--max_steps", 30, "--save_steps", 5, "--eval_steps", 10]
MODEL_FOLDER = {
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("README.md", "llmkit.json", "metrics.json", "metrics.jsonl", "report.html"),
}


@contextlib.contextmanager
def one_core():
    """Matrices this small gain nothing from a second core, and wait for each other where it is busy."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pretrain(text_file, cwd, *words, check=True):
    """The recipe into runs/gpt below a folder."""
    with one_core():
        return run_recipe("pretrain_gpt", "--data", text_file, "--output_dir", "runs/gpt", *words, cwd=cwd, check=check)


def interrupt(text_file, cwd, step: int, act: signal.Signals | Callable[[int], None]) -> int:
    """Send a signal to a run (or do something to its process) as soon as a checkpoint is sealed; return its exit code."""
    words = ["--data", text_file, "--output_dir", "runs/gpt", *OPTIONS]
    command = [sys.executable, ROOT / "recipes" / "pretrain_gpt.py", *words]
    sealed = cwd / "runs" / "gpt" / f"checkpoint-{step}" / "manifest.json"
    with one_core(), open(cwd / "output.txt", "w") as output:
        process = subprocess.Popen(list(map(str, command)), cwd=cwd, stdout=output, stderr=output)
    try:
        for _ in range(20_000):
            if sealed.exists():
                act(process.pid) if callable(act) else process.send_signal(act)
                return process.wait(60)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
                break
    finally:
        process.kill()
        process.wait()
    raise AssertionError(f"checkpoint-{step} was not seen:\n{(cwd / 'output.txt').read_text()}")


def record_of(folder):
    return json.loads((folder / "llmkit.json").read_text())


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def journal_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses_of(folder) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in journal_of(folder) if "loss" in line}


def weights_of(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def checkpoints_of(folder):
    """By number, the newest last."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))


def state_of(folder):
    """Content and time of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def copied(folder, tmp_path):
    """A place from which the same command finds a copy of a run; returns it and the run's folder there."""
    place = shutil.copytree(folder.parent.parent, tmp_path / "place")
    return place, place / "runs" / "gpt"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text_file):
    """A run that nothing happened to."""
    place = tmp_path_factory.mktemp("whole")
    done = pretrain(text_file, place, *OPTIONS)
    (place / "output.txt").write_text(done.stdout)
    return place / "runs" / "gpt"


@pytest.fixture(scope="module")
def terminated(tmp_path_factory, text_file):
    """A run that was asked to end soon after its second checkpoint."""
    place = tmp_path_factory.mktemp("terminated")
    (place / "code").write_text(str(interrupt(text_file, place, 10, signal.SIGTERM)))
    return place / "runs" / "gpt"


# ---------------------------------------------------------------------------------------------- what a run leaves


@pytest.mark.slow
def test_the_folder_holds_the_model_folders_files_and_nothing_else(whole):
    assert {path.name for path in whole.iterdir()} == MODEL_FOLDER


@pytest.mark.slow
def test_the_files_are_stock_transformers_files(whole):
    config = json.loads((whole / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("qwen3", ["Qwen3ForCausalLM"])
    assert config["use_cache"] is True
    assert not [file.name for file in whole.glob("*.json") if "auto_map" in file.read_text()]


@pytest.mark.slow
def test_the_model_gives_the_same_logits_in_a_python_without_llmkit(whole, tmp_path):
    """Another process, in which importing llmkit fails, and which is in no folder that could help it."""
    script = """
import sys
class NoLlmkit:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("llmkit", "recipes"):
            raise ModuleNotFoundError(f"{name} is not here")
sys.meta_path.insert(0, NoLlmkit())
try:
    import llmkit
    raise SystemExit("llmkit could be imported")
except ModuleNotFoundError:
    pass

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, output = sys.argv[1:]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
inputs = tokenizer("The naïve teacher 🙂", return_tensors="pt")
with torch.no_grad():
    torch.save((inputs["input_ids"], model(**inputs).logits), output)
"""
    file = tmp_path / "logits.pt"
    command = [sys.executable, "-I", "-c", script, str(whole), str(file)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ids, logits = torch.load(file, weights_only=True)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(whole), AutoTokenizer.from_pretrained(whole)
    assert tokenizer.decode(ids[0]) == "The naïve teacher 🙂"
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)


@pytest.mark.slow
def test_the_figures_are_those_of_the_model_in_the_folder(whole, text_file):
    """Measured again from the saved files, over the held-out side as the recipe splits it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmkit.data.packing import encode_texts
    from llmkit.data.sources import open_source
    from llmkit.data.splits import split
    from llmkit.evaluation.bits_per_byte import bits_per_byte
    from llmkit.tokenization.byte_lengths import token_byte_lengths

    model, tokenizer = AutoModelForCausalLM.from_pretrained(whole), AutoTokenizer.from_pretrained(whole)
    held_out = list(split(open_source(str(text_file))).validation())
    ids = [i for batch in encode_texts(held_out, tokenizer) for text in batch for i in [*text, tokenizer.eos_token_id]]
    result = bits_per_byte(model, torch.tensor(ids).numpy(), token_byte_lengths(tokenizer), 32)
    metrics = metrics_of(whole)
    assert metrics["bits_per_byte"] == pytest.approx(result.value, rel=1e-5)
    assert metrics["bits_per_byte_n"] == sum(len(text.encode()) for text in held_out) == result.text_bytes
    low, high = metrics["bits_per_byte_ci"]
    assert low < metrics["bits_per_byte"] < high
    assert metrics["parameters"] == model.num_parameters()
    assert metrics["train_tokens"] == 30 * 4 * 32


@pytest.mark.slow
def test_the_model_learns_and_the_journal_has_every_step(whole):
    losses = losses_of(whole)
    assert list(losses) == list(range(1, 31))
    assert losses[30] < losses[1] - 1
    bits = {line["step"]: line["bits_per_byte"] for line in journal_of(whole) if "bits_per_byte" in line}
    assert list(bits) == [10, 20, 30]
    assert bits[30] < bits[20] < bits[10]
    samples = [line["samples"] for line in journal_of(whole) if "samples" in line]
    assert len(samples) == 3
    assert all(sample.keys() >= {"prompt", "text", "longest_copied_words"} for sample in samples[-1])


@pytest.mark.slow
def test_the_record_says_where_every_value_came_from(whole):
    record = record_of(whole)
    sources = {name: option["source"] for name, option in record["options"].items()}
    assert record["status"] == "finished"
    assert {sources[name] for name in ("depth", "max_steps", "data")} == {"command line"}
    derived = [name for name, source in sources.items() if source == "derived"]
    assert {"hidden_size", "muon_learning_rate", "learning_rate", "warmup_steps"} <= set(derived)
    assert all(record["options"][name]["reason"] for name in derived)
    assert sources["split_seed"] == "default"
    assert record["inputs"]["model"] is None
    assert record["data"]["documents"] == record["data"]["train_documents"] + record["data"]["validation_documents"]


@pytest.mark.slow
def test_a_run_ends_with_its_folder_and_the_next_command(whole):
    last = (whole.parent.parent / "output.txt").read_text().splitlines()[-1]
    assert "runs/gpt" in last
    assert "llmkit generate runs/gpt" in last


# ---------------------------------------------------------------------------------------------- what happens to runs


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 30])
def test_a_killed_run_started_again_ends_with_the_same_weights(whole, text_file, tmp_path, step):
    """Killed right after its first checkpoint, and after the last step with nothing but the end to do."""
    folder = tmp_path / "runs" / "gpt"
    assert interrupt(text_file, tmp_path, step, signal.SIGKILL) == -signal.SIGKILL
    assert record_of(folder)["status"] == "running"
    assert not (folder / "model.safetensors").exists() or step == 30
    kept = checkpoints_of(folder)
    with open(folder / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 4')  # killed while it wrote a line

    done = pretrain(text_file, tmp_path, *OPTIONS)
    assert re.search(r"goes on from \S*checkpoint-(\d+)", done.stdout)[1] in {c.name.split("-")[1] for c in kept}
    assert weights_of(folder) == weights_of(whole)
    assert {path.name for path in folder.iterdir()} == MODEL_FOLDER
    for name in ("bits_per_byte", "bits_per_byte_ci", "train_tokens", "parameters"):
        assert metrics_of(folder)[name] == metrics_of(whole)[name]
    assert losses_of(folder) == losses_of(whole)


@pytest.mark.slow
def test_a_run_that_is_asked_to_end_leaves_a_checkpoint_and_says_so(terminated):
    assert (terminated.parent.parent / "code").read_text() == "143"
    output = (terminated.parent.parent / "output.txt").read_text()
    newest = checkpoints_of(terminated)[-1]
    step = int(newest.name.removeprefix("checkpoint-"))
    assert 10 <= step < 30
    assert problem_of(newest) is None
    assert f"step {step} of 30" in output
    assert "the same command" in output
    assert "Traceback" not in output
    assert record_of(terminated)["status"] == "running"


@pytest.mark.slow
def test_a_run_that_was_asked_to_end_finishes_with_the_same_weights(whole, terminated, text_file, tmp_path):
    place, folder = copied(terminated, tmp_path)
    done = pretrain(text_file, place, *OPTIONS)
    assert f"goes on from runs/gpt/{checkpoints_of(terminated)[-1].name}" in done.stdout
    assert weights_of(folder) == weights_of(whole)


@pytest.mark.slow
def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(whole, terminated, text_file, tmp_path):
    place, folder = copied(terminated, tmp_path)
    before, newest = checkpoints_of(folder)[-2:]
    weights = newest / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    done = pretrain(text_file, place, *OPTIONS)
    assert re.search(rf"{newest.name} is passed over: model\.safetensors", done.stderr)
    assert f"goes on from runs/gpt/{before.name}" in done.stdout
    assert weights_of(folder) == weights_of(whole)


@pytest.mark.slow
def test_a_checkpoint_that_was_written_a_second_time_is_whole(text_file, tmp_path):
    """A run that passed over a truncated one writes it again, into a folder that holds the seal of the first time."""
    interrupt(text_file, tmp_path, 10, signal.SIGKILL)
    newest = [c for c in checkpoints_of(tmp_path / "runs" / "gpt") if (c / "manifest.json").exists()][-1]
    os.truncate(newest / "model.safetensors", 100)
    assert "model.safetensors" in problem_of(newest)
    following = int(newest.name.removeprefix("checkpoint-")) + 5
    assert interrupt(text_file, tmp_path, following, signal.SIGKILL) == -signal.SIGKILL
    assert problem_of(newest) is None


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(resource, "prlimit"), reason="needs Linux's prlimit, to take the room from a running process"
)
def test_a_full_disk_stops_the_run_and_keeps_the_checkpoints_before(whole, text_file, tmp_path):
    """Files may not grow beyond 20 kB from one moment on, which a process notices as it does a full disk."""

    def fill(pid: int) -> None:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (20_000, 20_000))

    assert interrupt(text_file, tmp_path, 10, fill) == 1
    output = (tmp_path / "output.txt").read_text()
    assert all(part in output for part in ("stopped:", "make room"))
    assert "Traceback" not in output
    checkpoints = checkpoints_of(tmp_path / "runs" / "gpt")
    assert any(problem_of(checkpoint) is None for checkpoint in checkpoints)
    pretrain(text_file, tmp_path, *OPTIONS)
    assert weights_of(tmp_path / "runs" / "gpt") == weights_of(whole)


def test_a_run_of_other_options_is_refused_and_nothing_is_lost(terminated, text_file):
    before = state_of(terminated)
    done = pretrain(text_file, terminated.parent.parent, *OPTIONS, "--seed", 7, check=False)
    assert done.returncode == 2
    assert all(word in done.stderr for word in ("--output_dir runs/gpt", "--seed", "7", "--overwrite"))
    assert state_of(terminated) == before


@pytest.mark.slow
def test_a_finished_run_started_again_changes_nothing(whole, text_file):
    before = state_of(whole)
    done = pretrain(text_file, whole.parent.parent, *OPTIONS)
    assert "runs/gpt is finished" in done.stdout
    assert state_of(whole) == before


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_its_checkpoints(text_file, tmp_path):
    absurd = ["--learning_rate", "1e30", "--muon_learning_rate", "1e30", "--max_steps", 9, "--save_steps", 1]
    done = pretrain(text_file, tmp_path, *TINY, *absurd, check=False)
    folder = tmp_path / "runs" / "gpt"
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    step = int(re.search(r"step (\d+): the loss is not a number", done.stderr)[1])
    assert all(word in done.stderr for word in ("runs/gpt", "--learning_rate", "--muon_learning_rate"))
    assert 1 < step <= 9
    kept = checkpoints_of(folder)
    assert kept[-1].name == f"checkpoint-{step - 1}"
    assert all(problem_of(checkpoint) is None for checkpoint in kept)
    assert not (folder / "metrics.json").exists()
    assert not (folder / "model.safetensors").exists()
    assert record_of(folder)["status"] == "running"


# ---------------------------------------------------------------------------------------------- other ways to run


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_one_others(text_file, tmp_path):
    """With all cores, and with a second run that is watched by TensorBoard, which changes nothing of it."""
    pytest.importorskip("tensorboard")
    weights = {}
    for name, words in {
        "first": [],
        "again": ["--report_to", "tensorboard"],
        "other": ["--seed", 7],
    }.items():
        words = [*TINY, "--max_steps", 4, "--eval_steps", 4, *words]
        run_recipe("pretrain_gpt", "--data", text_file, "--output_dir", f"runs/{name}", *words, cwd=tmp_path)
        weights[name] = weights_of(tmp_path / "runs" / name)
    assert weights["first"] == weights["again"]
    assert weights["first"] != weights["other"]
    assert not list((tmp_path / "runs" / "first").rglob("events.out.tfevents*"))
    (events,) = (tmp_path / "runs" / "again").rglob("events.out.tfevents*")
    assert b"loss" in events.read_bytes()


@pytest.mark.slow
def test_a_token_of_the_hub_is_never_written(text_file, tmp_path):
    words = [*TINY, "--max_steps", 1, "--hub_token", "hf_verysecret"]
    pretrain(text_file, tmp_path, *words)
    folder = tmp_path / "runs" / "gpt"
    assert [file.name for file in folder.iterdir() if b"hf_verysecret" in file.read_bytes()] == []


@pytest.mark.slow
def test_two_processes_learn_what_one_does(whole, text_file, tmp_path):
    """Half the batch in each: the same samples at each step, and the same losses but for the order of sums."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", port]
    words = [*OPTIONS, "--data", text_file, "--output_dir", "runs/gpt"]
    words[words.index("--per_device_train_batch_size") + 1] = 2
    command = [sys.executable, *launch, ROOT / "recipes" / "pretrain_gpt.py", *words]
    with one_core():
        done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "gpt"
    assert {path.name for path in folder.iterdir()} == MODEL_FOLDER
    losses = losses_of(folder)
    assert losses[1] == pytest.approx(losses_of(whole)[1], rel=1e-6)
    assert losses == pytest.approx(losses_of(whole), rel=1e-4)
    assert len([line for line in journal_of(folder) if "loss" in line]) == 30  # one process writes
    for name in ("bits_per_byte", "train_tokens", "parameters"):
        assert metrics_of(folder)[name] == pytest.approx(metrics_of(whole)[name], rel=1e-4)
    assert done.stdout.count("llmkit generate") == 1


@pytest.mark.slow
def test_going_on_from_a_model_lowers_its_bits_per_byte_and_inherits_its_context_and_vocabulary(
    whole, text_file, tmp_path
):
    before = state_of(whole)
    words = ["--model", whole, "--max_steps", 20, "--per_device_train_batch_size", 4]
    pretrain(text_file, tmp_path, *words)
    folder = tmp_path / "runs" / "gpt"
    assert metrics_of(folder)["bits_per_byte"] < metrics_of(whole)["bits_per_byte"]
    options, record = record_of(folder)["options"], record_of(folder)
    assert options["context_length"] == {"value": 32, "source": f"inherited from {whole}"}
    assert options["vocab_size"] == {"value": 300, "source": f"inherited from {whole}"}
    assert record["inputs"]["model"] == fingerprint(whole)
    assert (folder / "tokenizer.json").read_bytes() == (whole / "tokenizer.json").read_bytes()
    assert losses_of(folder)[1] < losses_of(whole)[1] - 1
    assert state_of(whole) == before


@pytest.mark.slow
def test_adamw_for_all_parameters_learns_too(whole, text_file, tmp_path):
    pretrain(text_file, tmp_path, *OPTIONS, "--optimizer", "adamw")
    folder = tmp_path / "runs" / "gpt"
    losses = losses_of(folder)
    assert losses[1] == losses_of(whole)[1]  # the same start
    assert losses[30] < losses[1] - 1
    assert weights_of(folder) != weights_of(whole)


@pytest.mark.slow
def test_a_context_that_is_shorter_than_a_samples_prompt_does_not_end_the_run(text_file, tmp_path):
    words = [*TINY, "--max_steps", 2]
    words[words.index("--context_length") + 1] = 16
    pretrain(text_file, tmp_path, *words)
    assert record_of(tmp_path / "runs" / "gpt")["status"] == "finished"
