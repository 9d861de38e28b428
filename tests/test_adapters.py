"""Adapters: what is trained beside a base, how the two find each other, merging, and bases in 4 and 8 bits."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_llmkit, run_recipe
from safetensors.torch import load_file

from llmkit.data.chat_samples import Fitted
from llmkit.errors import UserError
from llmkit.folder import Run, fingerprint
from llmkit.inference.chat import ChatModel
from llmkit.modeling import adapters
from llmkit.modeling.adapters import add_adapter, find_base, is_adapter, load_adapted, problems_of_quantization
from llmkit.modeling.models import load_model
from llmkit.modeling.sizes import shape_of_depth
from llmkit.options import Setting, Settings, parse_options
from llmkit.tokenization.chat import encode_conversations, end_tokens
from llmkit.training import finetuning
from llmkit.training.finetuning import LoraOptions
from llmkit.training.instruct import InstructTrainer, LoraArguments, lay_out

CONTEXT = 128
SIZE = ["--lora_r", 4, "--lora_alpha", 8, "--learning_rate", 0.01, "--per_device_train_batch_size", 4]
OPTIONS = [*SIZE, "--validation_fraction", 0.25, "--max_steps", 24, "--save_steps", 4, "--eval_steps", 12, "--merge"]
ADAPTER_FOLDER = {
    *("adapter_config.json", "adapter_model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("README.md", "llmkit.json", "metrics.json", "metrics.jsonl", "report.html", "wrong_answers.json"),
    "merged",
}
MATRICES = 7  # of the layer: queries, keys, values, output; gate, up, down
CHAT = [{"role": "user", "content": "Is abcd here?"}, {"role": "assistant", "content": "Yes."}]


def chats(count: int, seed: int = 0) -> list[list[dict]]:
    """Conversations of one turn; half of the answers are easy to learn."""
    draw = random.Random(seed)
    names = ["".join(draw.choices("abcdefghijklmnop", k=4)) for _ in range(count)]
    pairs = [draw.choice([(f"Is {name} here?", "Yes."), (f"Who is {name}?", f"{name} sees it.")]) for name in names]
    return [[{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in pairs]


def write_chats(file: Path, conversations: list[list[dict]]) -> Path:
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return file


@contextlib.contextmanager
def one_core():
    """Matrices this small gain nothing from a second core, and their sums are in another order there."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture(scope="module")
def tokenizer(gpt):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(gpt)


def tiny_model(tokenizer):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(shape_of_depth(1, len(tokenizer), CONTEXT).config(tokenizer, 0.08))


@pytest.fixture(scope="module")
def untrained(tokenizer, tmp_path_factory) -> Path:
    """A model folder of fresh weights that looks back far enough for a chat."""
    folder = tmp_path_factory.mktemp("untrained") / "gpt"
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory, text_file) -> Path:
    """A folder with conversations and a tiny model, whose fingerprint is noted."""
    place = tmp_path_factory.mktemp("adapters")
    words = ["--depth", 1, "--context_length", CONTEXT, "--vocab_size", 400, "--per_device_train_batch_size", 4]
    words += ["--max_steps", 8, "--eval_steps", 8]
    run_recipe("pretrain_gpt", "--data", text_file, *words, "--output_dir", "runs/gpt", cwd=place)
    write_chats(place / "chats.jsonl", chats(40))
    (place / "fingerprint").write_text(fingerprint(place / "runs" / "gpt"))
    return place


def given_by(name: str) -> list[object]:
    return ["--data", "chats.jsonl", "--model", "runs/gpt", "--output_dir", f"runs/{name}"]


def adapt(place: Path, name: str, *words: object) -> Path:
    """The recipe beside its base; what it said is in NAME.txt."""
    with one_core():
        done = run_recipe("finetune_lora", *given_by(name), *words, cwd=place)
    (place / f"{name}.txt").write_text(done.stdout)
    return place / "runs" / name


@pytest.fixture(scope="module")
def lora(place) -> Path:
    return adapt(place, "lora", *OPTIONS)


@pytest.fixture(scope="module")
def dora(place) -> Path:
    return adapt(place, "dora", *OPTIONS, "--use_dora")


@pytest.fixture(scope="module")
def rslora(place) -> Path:
    return adapt(place, "rslora", *OPTIONS, "--use_rslora")


@pytest.fixture(scope="module", params=["lora", "dora", "rslora"])
def adapted(request) -> Path:
    return request.getfixturevalue(request.param)


def tokenizer_of(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def record_of(folder: Path) -> dict:
    return json.loads((folder / "llmkit.json").read_text())


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@torch.no_grad()
def logits_of(model, tokenizer) -> torch.Tensor:
    ids = tokenizer.apply_chat_template(CHAT, return_dict=False)
    return model.eval()(input_ids=torch.tensor([ids], device=model.device)).logits.cpu()


def lora_settings(**given: object) -> Settings:
    """What the recipe hands to `add_adapter`."""
    fields = {field.name: field.default for field in dataclasses.fields(LoraOptions)}
    return Settings({name: Setting(value, "command line") for name, value in (fields | given).items()})


# ---------------------------------------------------------------------------------------------- what a run leaves


@pytest.mark.slow
def test_the_adapter_alone_is_trained(adapted, place):
    weights = load_file(adapted / "adapter_model.safetensors")
    kinds = {"lora_A", "lora_B", *(["lora_magnitude_vector"] if adapted.name == "dora" else [])}
    assert {kind for name in weights for kind in kinds if kind in name} == kinds
    assert all(any(kind in name for kind in kinds) for name in weights)
    assert len(weights) == MATRICES * len(kinds)
    assert all(value.abs().max() > 0 for value in weights.values())  # B starts at zero
    metrics = metrics_of(adapted)
    assert metrics["trained_parameters"] == sum(value.numel() for value in weights.values())
    base = load_model(str(place / "runs" / "gpt"), tokenizer_of(place / "runs" / "gpt"))
    assert metrics["parameters"] == base.num_parameters() + metrics["trained_parameters"]
    assert fingerprint(place / "runs" / "gpt") == (place / "fingerprint").read_text()


@pytest.mark.slow
def test_an_adapter_learns(adapted):
    metrics = metrics_of(adapted)
    assert metrics["validation_loss"] < metrics["baseline_validation_loss"] - 0.2
    assert metrics["exact_match_n"] == metrics["validation_loss_n"] > 0
    assert len(metrics["exact_match_ci"]) == 2


@pytest.mark.slow
def test_the_folder_names_its_base_and_no_place_on_this_machine(adapted, place):
    assert {path.name for path in adapted.iterdir()} == ADAPTER_FOLDER
    assert is_adapter(adapted)
    expected = {"name": "gpt", "fingerprint": fingerprint(place / "runs" / "gpt"), "relative": "../gpt"}
    assert record_of(adapted)["base"] == expected
    assert record_of(adapted)["options"]["max_length"] == {"value": CONTEXT, "source": "inherited from runs/gpt"}
    config = json.loads((adapted / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "gpt"
    assert (config["use_dora"], config["use_rslora"]) == (adapted.name == "dora", adapted.name == "rslora")
    for file in adapted.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".md", ".html", ".jinja"):
            assert str(place) not in file.read_text(encoding="utf-8"), file


@pytest.mark.slow
def test_stock_peft_gives_the_same_logits(adapted, place):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tokenizer = tokenizer_of(adapted)
    base = AutoModelForCausalLM.from_pretrained(place / "runs" / "gpt", dtype=torch.float32)
    before = logits_of(base, tokenizer)
    stock = logits_of(PeftModel.from_pretrained(base, str(adapted)), tokenizer)
    assert torch.equal(stock, logits_of(load_adapted(adapted, tokenizer), tokenizer))
    assert float((stock - before).abs().max()) > 0.01


@pytest.mark.slow
def test_the_merged_model_is_a_stock_model_that_answers_as_the_adapter_does(adapted):
    from transformers import AutoModelForCausalLM

    tokenizer = tokenizer_of(adapted / "merged")
    merged = AutoModelForCausalLM.from_pretrained(adapted / "merged")
    difference = (logits_of(merged, tokenizer) - logits_of(load_adapted(adapted, tokenizer), tokenizer)).abs().max()
    assert float(difference) < 1e-4
    assert metrics_of(adapted)["merged_difference"] < 1e-4
    config = json.loads((adapted / "merged" / "config.json").read_text())
    assert (config["architectures"], config["tie_word_embeddings"]) == (["Qwen3ForCausalLM"], True)
    assert merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    names = load_file(adapted / "merged" / "model.safetensors").keys()
    assert not [name for name in names if "lora" in name or "lm_head" in name]
    assert merged.generation_config.eos_token_id == end_tokens(tokenizer)


# ---------------------------------------------------------------------------------------------- where the base is


@pytest.fixture
def moved(lora, tmp_path) -> Path:
    """A copy of the adapter and of its base, side by side below another parent."""
    folder = tmp_path / "elsewhere" / "models"
    for name in ("lora", "gpt"):
        shutil.copytree(lora.parent / name, folder / name)
    return folder


@pytest.mark.slow
def test_an_adapter_that_moved_with_its_base_finds_it(moved, lora):
    assert Path(find_base(moved / "lora")).resolve() == (moved / "gpt").resolve()
    tokenizer = tokenizer_of(moved / "lora")
    before = logits_of(load_adapted(lora, tokenizer), tokenizer)
    assert torch.equal(logits_of(load_adapted(moved / "lora", tokenizer), tokenizer), before)


@pytest.mark.slow
def test_a_base_of_another_name_is_found_among_the_neighbours(moved):
    (moved / "gpt").rename(moved / "our_first_model")
    assert Path(find_base(moved / "lora")).resolve() == (moved / "our_first_model").resolve()


@pytest.mark.slow
def test_a_base_that_is_given_is_taken_wherever_it_lies(moved, tmp_path):
    (moved / "gpt").rename(tmp_path / "far_away")
    with pytest.raises(UserError) as refused:
        find_base(moved / "lora")
    expected = [str(moved / "lora"), "its base gpt", "neither where it was nor beside", "--base"]
    assert all(part in str(refused.value) for part in expected)
    assert find_base(moved / "lora", str(tmp_path / "far_away")) == str(tmp_path / "far_away")


@pytest.mark.slow
def test_another_base_is_refused_by_its_fingerprint(moved, untrained, tokenizer):
    with pytest.raises(UserError) as refused:
        find_base(moved / "lora", str(untrained))
    expected = [f"--base {untrained}", "is another model", str(moved / "lora"), fingerprint(moved / "gpt")]
    assert all(part in str(refused.value) for part in expected)
    with pytest.raises(UserError, match="is another model"):
        load_adapted(moved / "lora", tokenizer, str(untrained))

    shutil.copy(untrained / "model.safetensors", moved / "gpt" / "model.safetensors")
    with pytest.raises(UserError, match="is there, and is another model now"):
        find_base(moved / "lora")


def test_an_adapter_from_elsewhere_says_its_base_or_is_asked(tmp_path):
    config = tmp_path / "adapter_config.json"
    config.write_text('{"base_model_name_or_path": "somebody/gpt"}')
    assert find_base(tmp_path) == "somebody/gpt"
    assert find_base(tmp_path, "mine/gpt") == "mine/gpt"
    config.write_text('{"base_model_name_or_path": null}')
    with pytest.raises(UserError, match="does not say which model it adapts; name it with --base"):
        find_base(tmp_path)


# ---------------------------------------------------------------------------------------------- using it


@pytest.mark.slow
def test_an_adapter_chats(lora, place):
    question = "Who is abcd?"
    command = [sys.executable, "-m", "llmkit", "chat", "runs/lora", "--max_new_tokens", "16"]
    environment = os.environ | {"PYTHONUTF8": "1"}
    done = subprocess.run(
        command, cwd=place, input=question, capture_output=True, encoding="utf-8", env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    answer = "".join(ChatModel.load(str(lora)).reply([{"role": "user", "content": question}], 16))
    assert done.stdout == answer + "\n"


@pytest.mark.slow
def test_an_adapter_is_evaluated_against_its_base(lora, place):
    words = ["runs/lora", "--data", "chats.jsonl", "--against", "runs/gpt", "--json"]
    report = json.loads(run_llmkit("evaluate", *words, cwd=place).stdout)
    assert report["exact_match_n"] == report["against"]["exact_match_n"] == 40
    assert report["comparison"]["test"]["rows"] == 40
    assert report["exact_match"] >= report["against"]["exact_match"]


# ---------------------------------------------------------------------------------------------- a run that goes on


@pytest.mark.slow
def test_a_killed_run_started_again_ends_with_the_same_weights(lora, place, tmp_path):
    copy = tmp_path / "place"
    shutil.copytree(place / "runs" / "gpt", copy / "runs" / "gpt")
    shutil.copy(place / "chats.jsonl", copy)
    folder = copy / "runs" / "lora"
    command = [sys.executable, ROOT / "recipes" / "finetune_lora.py", *given_by("lora"), *OPTIONS]
    sealed = folder / "checkpoint-8" / "manifest.json"
    with one_core(), open(tmp_path / "output.txt", "w") as output:
        process = subprocess.Popen(list(map(str, command)), cwd=copy, stdout=output, stderr=output)
    try:
        while process.poll() is None and not sealed.exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL, (tmp_path / "output.txt").read_text()
    finally:
        process.kill()
        process.wait()
    assert record_of(folder)["status"] == "running"
    assert not (folder / "adapter_model.safetensors").exists()

    adapt(copy, "lora", *OPTIONS)
    assert "goes on from runs/lora/checkpoint-" in (copy / "lora.txt").read_text()
    for name in ("adapter_model.safetensors", "merged/model.safetensors"):
        assert (folder / name).read_bytes() == (lora / name).read_bytes()
    for name in ("validation_loss", "baseline_validation_loss", "exact_match", "trained_parameters"):
        assert metrics_of(folder)[name] == metrics_of(lora)[name]


def test_the_trainer_has_the_recipes_own_defaults(untrained, tokenizer, tmp_path, monkeypatch):
    """Checkpoints are written where the run looks for them, and Adam forgets as llmkit.json says."""
    monkeypatch.chdir(tmp_path)
    words = ["--max_steps", "2", "--max_length", str(CONTEXT), "--learning_rate", "0.01", "--use_cpu"]
    _, _, settings = parse_options(LoraOptions, LoraArguments, argv=words)
    fitted = Fitted(encode_conversations(tokenizer, chats(16)))
    finetuning.plan_steps(settings, 16, 1)
    run = Run.start("finetune_lora", settings, {})
    model = add_adapter(load_model(str(untrained), tokenizer), settings)
    trainer = InstructTrainer(model, lay_out(fitted, settings), fitted, tokenizer, run, LoraArguments)
    assert trainer.args.output_dir == str(run.folder) == "runs/lora"
    assert trainer.args.adam_beta2 == settings["adam_beta2"].value == LoraArguments.adam_beta2


# ---------------------------------------------------------------------------------------------- which layers


def test_the_layers_that_are_named_get_an_adapter(tokenizer):
    model = add_adapter(tiny_model(tokenizer), lora_settings(target_modules="q_proj,down_proj"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-4] for name in trained} == {"q_proj", "down_proj"}
    assert len(trained) == 4


def test_an_unknown_layer_is_refused_with_those_there_are(tokenizer):
    with pytest.raises(UserError) as refused:
        add_adapter(tiny_model(tokenizer), lora_settings(target_modules="attention"))
    assert all(part in str(refused.value) for part in ("--target_modules attention", "down_proj", "q_proj"))


# ---------------------------------------------------------------------------------------------- 4 and 8 bits


@pytest.fixture(scope="module", params=["4bit", "8bit"])
def quantized(request, place) -> Path:
    """Two steps, of which the first has a learning rate of zero; the held-out rows are looked at before and between."""
    pytest.importorskip("bitsandbytes")
    words = [*SIZE, "--validation_fraction", 0.25, "--max_steps", 2, "--eval_steps", 1, "--merge"]
    return adapt(place, request.param, *words, f"--load_in_{request.param}")


@pytest.mark.slow
def test_every_matrix_of_a_quantized_run_is_trained_after_an_evaluation(quantized):
    """In the step that moves them all B are still zero, so that what stands before a layer gets its gradient through the
    quantized weights alone: had the evaluations packed these, B would stay zero everywhere but at the output and down layers."""
    weights = load_file(quantized / "adapter_model.safetensors")
    changed = {name: bool(value.abs().max() > 0) for name, value in weights.items() if "lora_B" in name}
    assert len(changed) == MATRICES
    assert all(changed.values()), [name for name, is_changed in changed.items() if not is_changed]


@pytest.mark.slow
def test_a_quantized_base_takes_less_memory_and_the_merged_model_is_a_whole_one(quantized, place):
    from transformers import AutoModelForCausalLM

    whole = (place / "runs" / "gpt" / "model.safetensors").stat().st_size / 1e6
    assert 0 < metrics_of(quantized)["base_megabytes"] < 0.7 * whole
    tokenizer = tokenizer_of(quantized)
    merged = AutoModelForCausalLM.from_pretrained(quantized / "merged")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    difference = (logits_of(merged, tokenizer) - logits_of(load_adapted(quantized, tokenizer), tokenizer)).abs().max()
    assert float(difference) < 1e-4
    assert fingerprint(place / "runs" / "gpt") == (place / "fingerprint").read_text()


def test_gradients_through_4_bits_are_right_after_an_evaluation(untrained, tokenizer):
    """They were not: on a CPU with AVX512-bf16, bitsandbytes packs the weights of a 4-bit layer in the first forward pass in
    evaluation mode, for a kernel that has no backward pass. They stay packed, training goes on with wrong gradients (an error of
    193 % of their length), the loss still falls, and only a warning tells. `keep_trainable` forbids the packing."""
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import dequantize_4bit

    quantized = adapters.load_quantized(str(untrained), tokenizer, load_in_4bit=True)
    reference = load_model(str(untrained), tokenizer)
    layers = {name: module for name, module in quantized.named_modules() if type(module).__name__ == "Linear4bit"}
    assert len(layers) == MATRICES
    for name, module in layers.items():
        weight = dequantize_4bit(module.weight.data, quant_state=module.weight.quant_state)
        reference.get_submodule(name).weight.data = weight.float().cpu()
    models = [add_adapter(model, lora_settings(lora_r=4)) for model in (quantized, reference)]
    trained = [{n: p for n, p in model.named_parameters() if p.requires_grad} for model in models]
    assert trained[0].keys() == trained[1].keys()
    torch.manual_seed(0)
    for name, parameter in trained[1].items():
        value = torch.randn(parameter.shape) * 0.05  # B too, or A would have no gradient
        for parameters in trained:
            parameters[name].data = value.to(parameters[name].device)

    logits_of(models[0], tokenizer)  # the evaluation
    (encoded,) = encode_conversations(tokenizer, [CHAT])
    for model in models:
        model.train()
        batch = {"input_ids": [encoded.ids], "labels": [encoded.labels]}
        model(**{name: torch.tensor(rows, device=model.device) for name, rows in batch.items()}).loss.backward()
    for name in trained[0]:
        found, expected = (parameters[name].grad.cpu() for parameters in trained)
        assert float(expected.norm()) > 0, name
        assert float((found - expected).norm() / expected.norm()) < 1e-3, name


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, untrained, tokenizer) -> Path:
    """A folder with bad inputs by name; `chats.jsonl` and `untrained` are good."""
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("inputs")
    write_chats(folder / "chats.jsonl", chats(40))
    write_chats(folder / "unanswered.jsonl", [CHAT, CHAT[:1]])
    shutil.copytree(untrained, folder / "untrained")
    bert = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertForMaskedLM(bert).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "adapter")
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "adapter" / "adapter_model.safetensors").touch()
    return folder


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("recipe_finetune_lora", ROOT / "recipes" / "finetune_lora.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def everything_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def refuse(recipe, inputs, tmp_path, monkeypatch):
    """Runs the recipe, which must refuse before it loads a model and write nothing, and returns its problems."""

    def too_early(*args, **kwargs):
        raise AssertionError("a model was loaded before everything else was looked at")

    monkeypatch.setattr("llmkit.modeling.models.load_model", too_early)
    monkeypatch.setattr("llmkit.modeling.adapters.load_quantized", too_early)
    monkeypatch.chdir(inputs)

    def call(words: str) -> list[str]:
        given = words.split()
        good = {
            "--data": "chats.jsonl",
            "--model": "untrained",
            "--output_dir": str(tmp_path / "out"),
            "--max_steps": 2,
        }
        rest = [str(word) for option, value in good.items() if option not in given for word in (option, value)]
        monkeypatch.setattr(sys, "argv", ["recipes/finetune_lora.py", *given, *rest])
        before = everything_below(inputs)
        with pytest.raises(UserError) as refused:
            recipe.main()
        assert everything_below(inputs) == before
        assert list(tmp_path.iterdir()) == []
        return refused.value.problems

    return call


REFUSED = [
    ("--load_in_4bit --load_in_8bit", ["--load_in_4bit and --load_in_8bit", "leave one out"]),
    ("--lora_r 0", ["--lora_r 0", "1 or more"]),
    ("--lora_alpha 0", ["--lora_alpha 0", "1 or more"]),
    ("--lora_dropout 1", ["--lora_dropout 1.0", "below 1"]),
    ("--optimizer muon", ["unknown option --optimizer"]),
    ("--model encoder", ["--model encoder", "BertForMaskedLM", "does not continue text"]),
    ("--model adapter", ["--model adapter", "is an adapter", "--merge"]),
    ("--data unanswered.jsonl", ["unanswered.jsonl, line 2", "no message is the assistant's"]),
    ("--tutor_rows 5", ["--tutor_rows 5", "--data is given"]),
    ("--max_length 20", ["--data", "none of", "20 tokens", "--max_length"]),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[words for words, _ in REFUSED])
def test_bad_input_is_refused_before_a_model_loads_and_leaves_no_trace(refuse, words, said):
    (problem,) = refuse(words)
    for part in said:
        assert part in problem


def test_all_that_is_wrong_is_said_at_once(refuse):
    problems = refuse(
        "--data unanswered.jsonl --model encoder --load_in_4bit --load_in_8bit --lora_r 0 --lora_dropout 2"
    )
    expected = ["unanswered.jsonl", "--model encoder", "--load_in_4bit", "--lora_r 0", "--lora_dropout 2.0"]
    assert len(problems) == len(expected)
    for part in expected:
        assert sum(part in problem for problem in problems) == 1, part


@pytest.fixture
def without_bitsandbytes(monkeypatch):
    """As on a machine where it was not installed. Libraries that ask once and remember are asked before."""
    from peft.import_utils import is_bnb_4bit_available
    from transformers.utils import is_bitsandbytes_available

    is_bitsandbytes_available()
    with contextlib.suppress(Exception):  # one that is there and does not work is another test's affair
        is_bnb_4bit_available()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)


@pytest.mark.parametrize("option", ["--load_in_4bit", "--load_in_8bit"])
def test_without_bitsandbytes_the_extra_is_named(without_bitsandbytes, refuse, option):
    (problem,) = refuse(option)
    assert all(part in problem for part in (option, "bitsandbytes", "pip install 'llmkit[quant]'"))


def test_a_platform_without_kernels_is_refused(monkeypatch):
    def broken():
        raise RuntimeError("no library for this processor")

    monkeypatch.setattr(adapters, "_import_bitsandbytes", broken)
    (problem,) = problems_of_quantization(True, False)
    assert all(
        part in problem for part in ("--load_in_4bit", "no library for this processor", "leave --load_in_4bit out")
    )
    assert problems_of_quantization(False, False) == []
