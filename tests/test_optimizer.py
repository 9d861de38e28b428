"""Muon for hidden matrices and AdamW for the rest, behind one optimizer: the same numbers as each of them alone."""

import copy
import io

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

import llmkit.training.optimizer as optimizer_module
from llmkit.training.optimizer import MuonAdamW, check_coverage, optimizer_groups

ADAMW = {"algorithm": "adamw", "lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-10}
GROUPS = {
    "hidden": {"algorithm": "muon", "lr": 0.02, "weight_decay": 0.1},
    "embeddings": {**ADAMW, "weight_decay": 0.05},
    "vectors": {**ADAMW, "weight_decay": 0.0},
}


def tiny_qwen3(tied: bool = True) -> nn.Module:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=16,
        tie_word_embeddings=tied,
    )
    return Qwen3ForCausalLM(config)


def tiny_gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16))


def backward(model: nn.Module, step: int) -> None:
    """The gradient of a batch that follows from the step alone."""
    ids = torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(step))
    model.zero_grad()
    model.eval()(input_ids=ids, labels=ids).loss.backward()


def names_by_group(model: nn.Module) -> dict[tuple[str, float], set[str]]:
    """Parameter names by (algorithm, weight decay) of their group."""
    name_of = {id(p): name for name, p in model.named_parameters()}
    groups = optimizer_groups(model, **GROUPS)
    found = {(g["algorithm"], g["weight_decay"]): {name_of[id(p)] for p in g["params"]} for g in groups}
    assert sum(len(g["params"]) for g in groups) == sum(map(len, found.values()))
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_qwen3_has_projections_in_muon_embeddings_and_norms_in_adamw(tied):
    model = tiny_qwen3(tied)
    found = names_by_group(model)
    assert found["muon", 0.1] == {
        f"model.layers.{layer}.{matrix}.weight"
        for layer in (0, 1)
        for matrix in [
            *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
            *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        ]
    }
    assert found["adamw", 0.05] == {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert all("norm" in name for name in found["adamw", 0.0])
    assert set.union(*found.values()) == {name for name, _ in model.named_parameters()}


def test_gpt2_has_positions_and_biases_in_adamw():
    model = tiny_gpt2()
    found = names_by_group(model)
    assert found["muon", 0.1] == {
        f"transformer.h.{layer}.{matrix}.weight"
        for layer in (0, 1)
        for matrix in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert found["adamw", 0.05] == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert all(name.endswith("bias") or ".ln_" in name for name in found["adamw", 0.0])
    assert set.union(*found.values()) == {name for name, _ in model.named_parameters()}


def test_frozen_parameters_are_in_no_group_and_stay_as_they_are():
    model = tiny_qwen3()
    model.model.embed_tokens.weight.requires_grad_(False)
    for p in model.model.layers[0].parameters():
        p.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    optimizer = MuonAdamW(optimizer_groups(model, **GROUPS))
    backward(model, 0)
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("times", "words"), [(0, "in 0 groups"), (2, "in 2 groups")])
def test_a_parameter_in_no_group_or_in_two_is_refused_by_name(times, words):
    model = tiny_qwen3()
    groups = optimizer_groups(model, **GROUPS)
    odd = model.model.layers[1].self_attn.q_proj.weight
    groups[0]["params"] = [p for p in groups[0]["params"] if p is not odd]
    groups[1]["params"] = [*groups[1]["params"], *[odd] * times]
    with pytest.raises(ValueError, match=r"model\.layers\.1\.self_attn\.q_proj\.weight is " + words) as refused:
        check_coverage(dict(model.named_parameters()), groups)
    assert "k_proj" not in str(refused.value)


def test_a_parameter_of_another_model_is_refused():
    model = tiny_qwen3()
    groups = optimizer_groups(model, **GROUPS)
    groups[0]["params"] = [*groups[0]["params"], nn.Parameter(torch.zeros(2, 2))]
    with pytest.raises(ValueError, match="stranger"):
        check_coverage(dict(model.named_parameters()), groups)


def test_a_vector_cannot_be_given_to_muon():
    with pytest.raises(ValueError, match="2D"):
        MuonAdamW([{"algorithm": "muon", "params": [nn.Parameter(torch.zeros(3))], "lr": 0.1}])


def assert_equal_updates(p: torch.Tensor, q: torch.Tensor, start: torch.Tensor) -> None:
    """Two optimizers have moved a matrix alike, but for the rounding of bfloat16, in which Newton-Schulz is computed.

    A matrix product in a stack of matrices may round an element otherwise than the same product by itself.
    """
    assert (p - q).norm() <= 2**-8 * (q - start).norm()


@pytest.mark.parametrize("make", [tiny_qwen3, tiny_gpt2])
def test_every_step_equals_muon_and_adamw_run_apart(make):
    together = make()
    apart, start = copy.deepcopy(together), copy.deepcopy(together)
    optimizer = MuonAdamW(optimizer_groups(together, **GROUPS))
    groups = [
        {key: value for key, value in group.items() if key != "algorithm"}
        for group in optimizer_groups(apart, **GROUPS)
    ]
    hidden = {id(p) for p in groups[0]["params"]}
    muon, adamw = torch.optim.Muon(groups[:1]), torch.optim.AdamW(groups[1:])
    for step in range(5):
        backward(together, step)
        for p, q in zip(together.parameters(), apart.parameters(), strict=True):
            q.grad = p.grad.clone()
        optimizer.step()
        muon.step()
        adamw.step()
        for p, q, r in zip(together.parameters(), apart.parameters(), start.parameters(), strict=True):
            if id(q) in hidden:
                assert_equal_updates(p, q, r)
            else:
                assert torch.equal(p, q)


@pytest.mark.parametrize("together", [2**24, 600])
@pytest.mark.parametrize(
    "settings", [{}, {"nesterov": False}, {"adjust_lr_fn": "match_rms_adamw"}, {"momentum": 0.5, "ns_steps": 3}]
)
def test_muon_on_matrices_of_many_shapes_equals_torchs(monkeypatch, settings, together):
    """Matrices of one shape are worked on together, however many fit; a matrix without a gradient is left alone."""
    monkeypatch.setattr(optimizer_module, "_STACKED", together)
    torch.manual_seed(0)
    shapes = [(16, 16), (16, 48), (48, 16), (16, 16), (16, 48), (48, 16), (16, 16), (8, 16)]
    own = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in own]
    optimizer = MuonAdamW([{"algorithm": "muon", "params": own, "lr": 0.02, "weight_decay": 0.1, **settings}])
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, **settings)
    start = [p.detach().clone() for p in own]
    for _ in range(4):
        for number, (p, q) in enumerate(zip(own, theirs, strict=True)):
            p.grad = None if number == 3 else torch.randn_like(p)
            q.grad = None if p.grad is None else p.grad.clone()
        optimizer.step()
        reference.step()
        for p, q, r in zip(own, theirs, start, strict=True):
            assert_equal_updates(p, q, r)
    assert [torch.equal(p, r) for p, r in zip(own, start, strict=True)] == [n == 3 for n in range(len(own))]


def test_each_parameter_has_the_state_of_its_own_algorithm_and_no_more():
    model = tiny_qwen3()
    groups = optimizer_groups(model, **GROUPS)
    optimizer = MuonAdamW(groups)
    backward(model, 0)
    optimizer.step()
    expected = {"muon": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}
    for group in groups:
        for p in group["params"]:
            assert optimizer.state[p].keys() == expected[group["algorithm"]]
    assert len(optimizer.state) == len(list(model.parameters()))


def test_a_loaded_state_continues_exactly():
    """As a checkpoint does it: saved to a file, read without pickle's freedom, given to a new optimizer."""
    model = tiny_qwen3()
    optimizer = MuonAdamW(optimizer_groups(model, **GROUPS))
    for step in range(3):
        backward(model, step)
        optimizer.step()

    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = copy.deepcopy(model)
    # What the checkpoint holds wins over what the new optimizer was made with.
    resumed_optimizer = MuonAdamW(
        optimizer_groups(resumed, **{name: {**group, "lr": 0.7} for name, group in GROUPS.items()})
    )
    resumed_optimizer.load_state_dict(torch.load(file, weights_only=True))
    fresh = copy.deepcopy(model)
    fresh_optimizer = MuonAdamW(optimizer_groups(fresh, **GROUPS))

    for step in range(3, 6):
        for m, o in ((model, optimizer), (resumed, resumed_optimizer), (fresh, fresh_optimizer)):
            backward(m, step)
            o.step()
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))
    # Without the state it would have gone another way, so the state matters.
    assert not all(torch.equal(p, q) for p, q in zip(model.parameters(), fresh.parameters(), strict=True))


def test_a_scheduler_scales_every_group():
    model = tiny_qwen3()
    optimizer = MuonAdamW(optimizer_groups(model, **GROUPS))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [1.0, 0.5, 0.0].__getitem__)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.01, 0.01]
    backward(model, 0)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.005, 0.005]
    scheduler.step()
    before = copy.deepcopy(model.state_dict())
    backward(model, 1)
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_step_with_a_closure_returns_its_loss():
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = MuonAdamW([{"algorithm": "muon", "params": [p], "lr": 0.1}])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (3 * p).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 12
    assert not torch.equal(p, torch.ones(2, 2))


@pytest.mark.parametrize(("rows", "columns"), [(24, 96), (96, 24), (48, 64)])
def test_an_update_of_a_hidden_matrix_is_nearly_orthogonal(rows, columns):
    """Five steps of Newton-Schulz map each singular value of the normed gradient by a known polynomial.

    The first step's momentum is the gradient itself, so the update's singular values are known. They end near 1 whatever
    they were; a plain gradient step would keep their spread.
    """
    gradient = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    p = nn.Parameter(torch.zeros(rows, columns))
    p.grad = gradient.clone()
    MuonAdamW([{"algorithm": "muon", "params": [p], "lr": 0.02, "weight_decay": 0.0}]).step()

    scale = 0.02 * max(1, rows / columns) ** 0.5  # outputs move equally whatever the shape
    found = torch.linalg.svdvals(p.detach().double() / scale)
    expected = torch.linalg.svdvals((gradient / gradient.norm()).double())
    assert expected.max() / expected.min() > 2.5
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    # Iterations are computed in bfloat16.
    torch.testing.assert_close(found, expected.sort(descending=True).values, atol=0.03, rtol=0)
    assert 0.65 < found.min() <= found.max() < 1.25


def test_weight_decay_shrinks_a_matrix_by_its_rate_and_nothing_else():
    p = nn.Parameter(torch.ones(4, 4))
    p.grad = torch.zeros(4, 4)
    MuonAdamW([{"algorithm": "muon", "params": [p], "lr": 0.5, "weight_decay": 0.1}]).step()
    assert torch.equal(p.detach(), torch.full((4, 4), 1 - 0.5 * 0.1))
