"""From text, machine and budget to the numbers of a run: what was given stays, and everything else follows as stated."""

import functools
import math
import re
import runpy
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM

import llmkit.training.budget as budget_module
from llmkit.errors import UserError
from llmkit.modeling.models import LONGEST_PLAIN_CONTEXT, choose_attention, new_model
from llmkit.modeling.sizes import Shape, shape_of_config, shape_of_depth
from llmkit.options import Setting, Settings, parse_options
from llmkit.tokenization.bpe import vocabulary_for
from llmkit.training import plan
from llmkit.training.budget import parse_budget, steps_within
from llmkit.training.trainer import PretrainArguments

SPECIAL_IDS = SimpleNamespace(
    bos_token_id=None, eos_token_id=0, pad_token_id=1
)  # all that a shape asks a tokenizer for
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DERIVED_NAMES = (
    *("depth", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "context_length"),
    *(
        "per_device_train_batch_size",
        "muon_learning_rate",
        "learning_rate",
        "weight_decay",
        "initializer_range",
        "bf16",
    ),
    *("max_steps", "warmup_steps", "lr_scheduler_type", "lr_scheduler_kwargs", "logging_steps", "eval_steps"),
    *("save_steps", "torch_compile"),
)


@functools.cache
def defaults() -> Settings:
    """The recipe's own settings when no option is given."""
    recipe = runpy.run_path(str(ROOT / "recipes" / "pretrain_gpt.py"))
    return parse_options(recipe["PretrainOptions"], PretrainArguments, "", [])[2]


def settings_with(source: str = "command line", **given: object) -> Settings:
    assert given.keys() <= defaults().keys()
    return Settings(defaults() | {name: Setting(value, source) for name, value in given.items()})


def planned(settings: Settings, seconds: float | None = None, continues: bool = False, tokens: int = 10**6) -> Shape:
    """Every step of the plan, as `plan_run` makes them without its measurements."""
    context = plan.plan_context(settings, CPU)
    shape = plan.plan_shape(settings, 512, context, tokens, 1e11, seconds)
    samples = plan.plan_batch(settings, 3_000_000, context, 1, tokens // context)
    plan.plan_precision(settings, shape.hidden_size, True)
    plan.plan_learning(settings, shape.hidden_size, samples * context, continues)
    plan.plan_compilation(settings, 1e14, "cpu", True)
    plan.plan_horizon(settings, shape.parameters, samples * context, tokens)
    plan.plan_schedule(settings)
    plan.plan_pace(settings, None)
    return shape


# ---------------------------------------------------------------------------------------------- the size dial


def test_the_smallest_shape_counts_the_parameters_computed_by_hand():
    shape = shape_of_depth(1, 300, 32)
    assert (shape.hidden_size, shape.intermediate_size, shape.vocab_size) == (64, 192, 320)
    attention = 4 * 64 * 64 + 2 * 64  # query, key, value, output; norms of query and key
    swiglu = 3 * 64 * 192
    norms = 2 * 64
    assert shape.parameters == 320 * 64 + attention + swiglu + norms + 64
    assert shape.flops_per_token == 6 * shape.parameters + 12 * 1 * 64 * 32


@pytest.mark.parametrize("vocab_size", [300, 8192])
@pytest.mark.parametrize("depth", [1, 2, 3, 5, 6, 7, 9, 12, 16, 24])
def test_parameters_are_those_of_the_real_model(depth, vocab_size):
    shape = shape_of_depth(depth, vocab_size, 64)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.config(SPECIAL_IDS, 0.02))
    assert shape.parameters == model.num_parameters()
    assert shape_of_config(model.config, 64) == shape


@pytest.mark.parametrize(
    "given",
    [
        {"hidden_size": 96},
        {"hidden_size": 320},
        {"hidden_size": 256, "num_attention_heads": 8},
        {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2},
        {"intermediate_size": 100},
    ],
)
def test_parameters_of_a_shape_of_ones_own_are_those_of_the_real_model(given):
    settings = settings_with(depth=2, **given)
    shape = plan.plan_shape(settings, 512, 64, 10**6, 1e11, None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.config(SPECIAL_IDS, 0.02))
    assert shape.parameters == model.num_parameters()
    assert {name: getattr(model.config, name) for name in given} == given


def test_the_dial_turns_one_way():
    """A greater depth is a wider and a larger model, whose heads divide its width and whose key-value heads the heads."""
    shapes = [shape_of_depth(depth, 512, 256) for depth in range(1, plan.DEEPEST + 1)]
    for small, large in pairwise(shapes):
        assert large.hidden_size >= small.hidden_size
    for small, large in pairwise(shapes[:22]):  # above, a prime number of heads weighs more than the next one in groups
        assert large.parameters > small.parameters
        assert large.flops_per_token > small.flops_per_token
    for shape in shapes:
        assert shape.num_attention_heads * shape.head_dim == shape.hidden_size
        assert shape.num_attention_heads % shape.num_key_value_heads == 0
        assert shape.intermediate_size % 64 == shape.vocab_size % 64 == 0
        assert shape.intermediate_size >= 8 * shape.hidden_size / 3


def test_more_tokens_at_a_time_take_more_memory_and_bfloat16_takes_less():
    shape = shape_of_depth(4, 512, 256)
    assert shape.training_bytes(8192, True) > shape.training_bytes(4096, True) > 4 * 3 * shape.parameters
    assert shape.training_bytes(4096, True) < shape.training_bytes(4096, False)


def test_a_new_model_starts_with_layers_that_change_nothing():
    torch.manual_seed(0)
    model = new_model(shape_of_depth(2, 300, 32), SPECIAL_IDS, 0.05).eval()
    ids = torch.arange(10)[None]
    with torch.no_grad():
        logits = model(ids).logits
        expected = model.lm_head(model.model.norm(model.model.embed_tokens(ids)))
    assert torch.equal(logits, expected)
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(0.05, rel=0.05)


# ---------------------------------------------------------------------------------------------- the time budget


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300),
        ("90s", 90),
        ("1h30m", 5400),
        ("1h30m15s", 5415),
        ("2h", 7200),
        ("300", 300),
        ("1.5h", 5400),
        ("0.5m", 30),
        ("1m30", 90),
        (" 5M ", 300),
        ("1h0m1s", 3601),
    ],
)
def test_a_budget_is_read(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "0", "0s", "0h0m", "-5", "-5m", "five", "5x", "m", "5 minutes", "nan", "1m2h"]
)
def test_what_is_no_duration_is_refused_with_an_example(text):
    with pytest.raises(UserError, match="--time_budget") as refused:
        parse_budget(text)
    assert text in str(refused.value)
    assert "5m" in str(refused.value)


def test_steps_fill_what_the_budget_leaves_but_for_a_margin(monkeypatch):
    # (100 - 20 - 10) seconds x 0.96 / 0.5 seconds = 134.4 steps
    monkeypatch.setattr(budget_module, "MARGIN", 0.04)
    assert steps_within(100, 20, 10, 0.5) == 134


def test_steps_end_inside_the_budget_and_no_step_is_given_away():
    for budget, spent, reserve, step in [(300, 17.3, 11.2, 0.037), (60, 20, 8, 1.9), (3600, 40, 90, 2.6)]:
        steps = steps_within(budget, spent, reserve, step)
        assert spent + reserve + steps * step <= budget
        assert spent + reserve + (steps + 1) * step > budget - budget_module.MARGIN * (budget - spent - reserve)


@pytest.mark.parametrize(
    ("budget", "spent", "reserve", "step"),
    [(30, 25, 8, 0.1), (10, 25, 8, 0.01), (40, 25, 8, 30.0), (33, 25.4, 8, 1e-3)],
)
def test_a_budget_that_is_too_short_is_refused_with_one_that_suffices(budget, spent, reserve, step):
    with pytest.raises(UserError) as refused:
        steps_within(budget, spent, reserve, step)
    assert f"{budget}s" in str(refused.value)
    enough = parse_budget(re.search(r"at least (\S+)", str(refused.value))[1])
    assert enough > budget
    assert steps_within(enough, spent, reserve, step) >= 1


# ---------------------------------------------------------------------------------------------- what follows from what


def test_what_was_given_is_never_overridden():
    given = {
        "depth": 3,
        "hidden_size": 96,
        "intermediate_size": 100,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "context_length": 48,
        "per_device_train_batch_size": 5,
        "gradient_accumulation_steps": 3,
        "muon_learning_rate": 0.5,
        "learning_rate": 0.25,
        "weight_decay": 0.125,
        "initializer_range": 0.75,
        "bf16": False,
        "max_steps": 7,
        "warmup_steps": 2,
        "lr_scheduler_type": "cosine",
        "lr_scheduler_kwargs": {},
        "logging_steps": 3,
        "eval_steps": 4,
        "save_steps": 5,
        "torch_compile": False,
    }
    for source in ("command line", "file small.yaml", "inherited from runs/gpt", "derived"):
        settings = settings_with(source, **given)
        shape = planned(settings, seconds=1000.0)
        assert {name: settings[name].value for name in given} == given
        assert {settings[name].source for name in given} == {source}
        assert (shape.num_hidden_layers, shape.hidden_size, shape.head_dim) == (3, 96, 24)
    plan.plan_steps_in_budget(settings, 100, 1000, 10**6, 0.1, 8)
    assert settings["max_steps"].value == 7


@pytest.mark.parametrize("name", DERIVED_NAMES)
def test_what_was_not_given_is_derived_with_a_reason(name):
    settings = settings_with()
    planned(settings, seconds=1000.0)
    assert settings[name].value is not None
    assert settings[name].source == "derived"
    assert len(settings[name].reason) > 10


def test_a_longer_budget_a_faster_machine_and_more_text_never_give_a_smaller_model():
    def depth(seconds: float, flops: float, tokens: int) -> int:
        settings = settings_with()
        plan.plan_shape(settings, 1024, 256, tokens, flops, seconds)
        return settings["depth"].value

    steps = [10.0**n for n in range(14)]
    for depths in (
        [depth(1e-3 * step, 1e11, 10**15) for step in steps],
        [depth(300, 1e6 * step, 10**15) for step in steps],
        [depth(1e12, 1e12, int(100 * step)) for step in steps],
    ):
        assert depths == sorted(depths)
        assert depths[0] == 1
        assert depths[-1] == plan.DEEPEST


def test_the_chosen_model_is_fed_and_the_next_one_would_not_be():
    seconds, flops, tokens = 300.0, 2e11, 10**7
    settings = settings_with()
    depth = plan.plan_shape(settings, 1024, 256, tokens, flops, seconds).num_hidden_layers
    assert 1 < depth < plan.DEEPEST

    def tokens_per_parameter(depth: int) -> float:
        shape = shape_of_depth(depth, 1024, 256)
        return min(seconds * flops / shape.flops_per_token, plan.MOST_PASSES * tokens) / shape.parameters

    assert tokens_per_parameter(depth) >= plan.TOKENS_PER_PARAMETER > tokens_per_parameter(depth + 1)


def test_a_small_text_gives_a_small_vocabulary():
    sizes = [vocabulary_for(10**n) for n in range(13)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 512
    assert sizes[-1] == 65_536
    # the power of two below the root: 1,000 and 1,024 for these two
    assert [vocabulary_for(n) for n in (10**6, 2**20, 0)] == [512, 1024, 512]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"hidden_size": 100, "num_attention_heads": 3}, ["--hidden_size 100", "--num_attention_heads 3"]),
        ({"hidden_size": 60, "num_attention_heads": 4}, ["--hidden_size 60", "even"]),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, ["--num_attention_heads 4", "--num_key_value_heads 3"]),
    ],
)
def test_widths_and_heads_that_do_not_divide_are_refused(given, words):
    with pytest.raises(UserError) as refused:
        plan.plan_shape(settings_with(depth=2, **given), 512, 64, 10**6, 1e11, None)
    assert all(word in str(refused.value) for word in words)


def test_all_that_does_not_divide_is_said_at_once():
    settings = settings_with(depth=2, hidden_size=100, num_attention_heads=3, num_key_value_heads=2)
    with pytest.raises(UserError) as refused:
        plan.plan_shape(settings, 512, 64, 10**6, 1e11, None)
    assert len(refused.value.problems) == 2


def test_bfloat16_is_taken_where_the_machine_has_it_and_the_model_is_wide():
    """By a rule: a measurement differs from run to run, and the same command must give the same weights."""
    assert plan.plan_precision(settings_with(), 128, True) is torch.bfloat16
    assert plan.plan_precision(settings_with(), 64, True) is None
    assert plan.plan_precision(settings_with(), 128, False) is None
    assert plan.plan_precision(settings_with(bf16=False), 128, True) is None
    assert plan.plan_precision(settings_with(bf16=True), 64, False) is torch.bfloat16
    settings = settings_with(fp16=True)
    assert plan.plan_precision(settings, 128, True) is torch.float16
    assert settings["bf16"].value is False


def test_the_context_is_longer_on_a_gpu():
    assert plan.plan_context(settings_with(), CUDA) > plan.plan_context(settings_with(), CPU)


def test_the_batch_grows_with_the_run_and_is_shared_by_processes():
    def samples(horizon: int, processes: int = 1, available: int = 10**9, **given: object) -> int:
        return plan.plan_batch(settings_with(**given), horizon, 256, processes, available)

    counts = [samples(10**n) for n in range(4, 12)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    assert all(count.bit_count() == 1 for count in counts)
    assert samples(3_000_000) * 256 == plan.BATCH_TOKENS
    assert {samples(3 * 10**6, processes=n) for n in (1, 2, 4)} == {16}
    assert samples(3_000_000, available=5) == 5
    assert samples(3_000_000, per_device_train_batch_size=3, processes=2, gradient_accumulation_steps=4) == 24


def test_a_large_batch_is_taken_in_parts():
    settings = settings_with()
    samples = plan.plan_batch(settings, 10**12, 1024, 1, 10**9)
    at_once, parts = settings["per_device_train_batch_size"].value, settings["gradient_accumulation_steps"].value
    assert parts > 1
    assert at_once <= 32
    assert at_once * parts == samples


def rates(
    batch_tokens: int = 4096, hidden_size: int = 192, continues: bool = False, **given: object
) -> tuple[float, float]:
    settings = settings_with(**given)
    plan.plan_learning(settings, hidden_size, batch_tokens, continues)
    return settings["muon_learning_rate"].value, settings["learning_rate"].value


def test_learning_rates_go_with_the_root_of_the_batch():
    muon, adamw = rates()
    assert rates(batch_tokens=4 * 4096) == pytest.approx((2 * muon, 2 * adamw), abs=1e-6)
    assert rates(batch_tokens=1024) == pytest.approx((muon / 2, adamw / 2), abs=1e-6)


def test_adamws_learning_rate_goes_with_the_inverse_root_of_the_width_and_muons_does_not():
    muon, adamw = rates()
    assert rates(hidden_size=4 * 192) == pytest.approx((muon, adamw / 2), abs=1e-6)


def test_a_model_that_was_trained_before_is_moved_with_smaller_steps_and_not_drawn_anew():
    muon, adamw = rates()
    assert rates(continues=True) == pytest.approx((0.3 * muon, 0.3 * adamw), abs=1e-6)
    settings = settings_with()
    plan.plan_learning(settings, 192, 4096, True)
    assert settings["initializer_range"].value is None


def test_adamw_for_all_learns_more_slowly():
    assert rates(optimizer="adamw")[1] < rates()[1]


def test_the_initial_scale_is_gpt_2s_at_its_width_and_goes_with_the_inverse_root():
    for width, scale in ((768, 0.02), (192, 0.04), (3072, 0.01)):
        settings = settings_with()
        plan.plan_learning(settings, width, 4096, False)
        assert settings["initializer_range"].value == scale


@pytest.mark.parametrize("steps", [1, 8, 30, 100, 1000, 100_000])
def test_the_schedule_warms_up_and_decays_within_the_run(steps):
    settings = settings_with(max_steps=steps, muon_learning_rate=0.02)
    plan.plan_schedule(settings)
    warmup, decay = settings["warmup_steps"].value, settings["lr_scheduler_kwargs"].value["num_decay_steps"]
    assert 10 <= warmup <= 200
    assert decay == max(min(steps // 2, steps - warmup), 1)


def test_weight_decay_forgets_an_equal_share_whatever_the_steps_and_the_rate():
    for steps, rate in ((1000, 0.02), (4000, 0.02), (4000, 0.005)):
        settings = settings_with(max_steps=steps, muon_learning_rate=rate)
        plan.plan_schedule(settings)
        decay = settings["weight_decay"].value
        assert decay * rate * steps == pytest.approx(plan.DECAYS_PER_RUN, rel=0.01)
    settings = settings_with(max_steps=10, muon_learning_rate=0.02)
    plan.plan_schedule(settings)
    assert settings["weight_decay"].value == plan.LARGEST_WEIGHT_DECAY


def test_a_learning_rate_of_zero_has_a_schedule_too():
    settings = settings_with(max_steps=10, muon_learning_rate=0.0)
    plan.plan_schedule(settings)
    assert math.isfinite(settings["weight_decay"].value)


def test_a_budget_that_is_longer_than_the_text_is_good_for_is_not_used_up():
    settings = settings_with()
    plan.plan_steps_in_budget(settings, 1000, 100, 10**3, 0.1, 8)
    assert settings["max_steps"].value == plan.MOST_PASSES * 10**3 // 100
    settings = settings_with()
    plan.plan_steps_in_budget(settings, 7, 100, 10**3, 0.1, 8)
    assert settings["max_steps"].value == 7


def test_without_a_budget_the_run_is_as_long_as_model_and_text_are_good_for():
    settings = settings_with()
    plan.plan_horizon(settings, 1000, 100, 10**9)
    assert settings["max_steps"].value == plan.COMPUTE_OPTIMAL_TOKENS_PER_PARAMETER * 1000 // 100
    settings = settings_with()
    plan.plan_horizon(settings, 10**9, 100, 5000)
    assert settings["max_steps"].value == plan.MOST_PASSES * 5000 // 100


def test_passes_over_the_text_can_be_given_instead_of_steps():
    settings = settings_with(num_train_epochs=2.5)
    plan.plan_horizon(settings, 1000, 100, 10_000)
    assert settings["max_steps"].value == 250
    settings = settings_with(num_train_epochs=2.5, max_steps=7)
    plan.plan_horizon(settings, 1000, 100, 10_000)
    assert settings["max_steps"].value == 7


def test_compiling_has_to_pay_and_needs_a_compiler():
    for device, pays in plan.COMPILE_FLOPS.items():
        assert plan.plan_compilation(settings_with(), 1.1 * pays, device, True)
        assert not plan.plan_compilation(settings_with(), 0.9 * pays, device, True)
        assert not plan.plan_compilation(settings_with(), 1.1 * pays, device, False)


@pytest.mark.parametrize("steps", [1, 5, 30, 1000])
def test_every_run_is_logged_evaluated_and_saved(steps):
    settings = settings_with(max_steps=steps)
    plan.plan_pace(settings, None)
    logging, evaluating, saving = (settings[f"{name}_steps"].value for name in ("logging", "eval", "save"))
    assert all(1 <= pace <= steps for pace in (logging, evaluating, saving))
    assert math.ceil(steps / evaluating) <= plan.EVALUATIONS
    plan.plan_pace(minutely := settings_with(max_steps=steps), 0.5)
    assert minutely["save_steps"].value == 120


@pytest.mark.parametrize(
    ("device", "context", "chosen"),
    [
        (CPU, 64, "eager"),
        (CPU, LONGEST_PLAIN_CONTEXT, "eager"),
        (CPU, LONGEST_PLAIN_CONTEXT + 1, "sdpa"),
        (CUDA, 64, "sdpa"),
    ],
)
def test_attention_is_chosen_by_device_and_context_and_changes_no_logit(device, context, chosen, tmp_path):
    model = new_model(Shape(1, 32, 64, 2, 1, 300, 64, 16), SPECIAL_IDS, 0.02)
    ids = torch.arange(20)[None]
    before = model(ids).logits
    choose_attention(model, device, context)
    assert model.config._attn_implementation == chosen
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert "attn" not in (tmp_path / "config.json").read_text(), "a folder is for any machine"
