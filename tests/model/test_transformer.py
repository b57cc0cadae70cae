"""Properties of the model for every combination of its parts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cpulm.model.transformer import Transformer
from cpulm.settings import ModelSettings, changed

VOCAB = 37
SMALL = ModelSettings(n_layer=2, n_head=4, n_kv_head=2, n_embd=32, block_size=16)
GPT2 = changed(SMALL, norm="layernorm", position="learned", mlp="gelu", bias=True, qk_norm=False)

NORMS = ("rmsnorm", "layernorm")
POSITIONS = ("rope", "learned", "sinusoidal", "none")
MLPS = ("swiglu", "gelu", "gelu_erf", "relu", "relu2")
PARTS = list(itertools.product(NORMS, POSITIONS, MLPS, (False, True)))


def model_of(settings: ModelSettings, seed: int = 0) -> Transformer:
    model = Transformer(settings, VOCAB)
    model.init_weights(seed)
    return model


def tokens(rows: int = 2, length: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def gradients(model: Transformer) -> dict[str, Tensor]:
    model.zero_grad()
    model(tokens(), tokens(seed=1)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def with_parts(norm: str, position: str, mlp: str, flag: bool) -> ModelSettings:
    """``flag`` turns on biases and untied embeddings, and turns off QK-norm and grouped queries."""
    return changed(
        SMALL,
        norm=norm,
        position=position,
        mlp=mlp,
        bias=flag,
        qk_norm=not flag,
        tie_embeddings=not flag,
        n_kv_head=4 if flag else 2,
    )


@pytest.mark.parametrize(("norm", "position", "mlp", "flag"), PARTS)
def test_every_combination_is_causal_and_learns_everywhere(
    norm: str, position: str, mlp: str, flag: bool
) -> None:
    model = model_of(with_parts(norm, position, mlp, flag))
    idx = tokens()
    later = idx.clone()
    later[:, 9] = (later[:, 9] + 1) % VOCAB
    with torch.no_grad():
        before, after = model(idx), model(later)
    assert before.shape == (2, 16, VOCAB)
    assert before.dtype == torch.float32
    torch.testing.assert_close(before[:, :9], after[:, :9], atol=0, rtol=0)
    assert (before[:, 9:] != after[:, 9:]).any(dim=-1).all()

    grads = gradients(model)
    assert grads.keys() == dict(model.named_parameters()).keys()
    for name, grad in grads.items():
        assert grad.isfinite().all(), name
        if name.endswith("qkv.bias"):  # softmax does not see what is added to every key alike
            q, _, v = grad.split([32, model.settings.kv_heads * 8, model.settings.kv_heads * 8])
            assert q.any()
            assert v.any()
        else:
            assert grad.any(), name


@pytest.mark.parametrize("settings", [SMALL, GPT2], ids=["qwen3", "gpt2"])
def test_loss_is_the_mean_cross_entropy_of_the_logits(settings: ModelSettings) -> None:
    model = model_of(settings)
    targets = tokens(seed=1)
    targets[0, :5] = -100
    expected = F.cross_entropy(model(tokens()).flatten(0, 1), targets.flatten(), ignore_index=-100)
    torch.testing.assert_close(model(tokens(), targets), expected)


def test_last_only_gives_the_last_position() -> None:
    model = model_of(SMALL)
    torch.testing.assert_close(model(tokens(), last_only=True), model(tokens())[:, -1:])


def test_sequences_of_a_batch_do_not_see_each_other() -> None:
    model = model_of(SMALL)
    torch.testing.assert_close(model(tokens())[1:], model(tokens()[1:]))


@pytest.mark.parametrize("position", ["rope", "learned", "sinusoidal"])
def test_positions_tell_the_order(position: str) -> None:
    idx = tokens(rows=1)
    swapped = idx[:, [1, 0, *range(2, 16)]]
    for kind, tells in ((position, True), ("none", False)):
        model = model_of(changed(SMALL, n_layer=1, position=kind))
        same = torch.allclose(model(idx)[:, 5:], model(swapped)[:, 5:], atol=1e-6)
        assert same is not tells


def test_rope_theta_and_norm_eps_have_an_effect() -> None:
    logits = model_of(SMALL)(tokens())
    for other in (changed(SMALL, rope_theta=100.0), changed(SMALL, norm_eps=1e-2)):
        assert not torch.allclose(model_of(other)(tokens()), logits)


def test_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = model_of(SMALL, seed=3)
    state = torch.get_rng_state()
    second = model_of(SMALL, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.wte.weight, model_of(SMALL, seed=4).wte.weight)


@pytest.mark.parametrize("settings", [SMALL, GPT2], ids=["qwen3", "gpt2"])
def test_fresh_model_is_nearly_undecided(settings: ModelSettings) -> None:
    loss = model_of(settings)(tokens(8), tokens(8, seed=1)).item()
    assert loss == pytest.approx(torch.tensor(VOCAB).log().item(), abs=0.1)


@pytest.mark.parametrize("settings", [SMALL, GPT2], ids=["qwen3", "gpt2"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_gives_the_same_gradients(settings: ModelSettings, dropout: float) -> None:
    grads = []
    for recompute in (False, True):
        torch.manual_seed(8)  # the same dropout
        grads.append(
            gradients(model_of(changed(settings, dropout=dropout, activation_checkpointing=recompute)))
        )
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_of_one_batch_after_another_add_up(tied: bool) -> None:
    """The second one finds gradients, to which the embedding adds only the rows that it met."""
    model = model_of(changed(SMALL, tie_embeddings=tied))
    batches = [(tokens(seed=seed), tokens(seed=seed + 10)) for seed in range(3)]
    apart = []
    for x, y in batches:
        model.zero_grad()
        model(x, y).backward()
        apart.append([p.grad for p in model.parameters()])
    expected = [sum(grad for grad in grads if grad is not None) for grads in zip(*apart, strict=True)]
    runs = []
    for _ in range(2):
        model.zero_grad()
        for x, y in batches:
            model(x, y).backward()
        runs.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(runs[0], expected)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True) if a is not None and b is not None)
    assert model.wte.weight.grad is not None
    assert not model.wte.weight.grad.is_sparse


def test_dropout_acts_in_training_only() -> None:
    model = model_of(changed(SMALL, dropout=0.5))
    assert not torch.equal(model(tokens()), model(tokens()))
    model.eval()
    assert torch.equal(model(tokens()), model(tokens()))
    torch.testing.assert_close(model(tokens()), model_of(SMALL).eval()(tokens()))


@pytest.mark.parametrize("settings", [SMALL, GPT2], ids=["qwen3", "gpt2"])
def test_traced_whole_by_the_compiler_with_equal_results(settings: ModelSettings) -> None:
    torch.compiler.reset()
    model = model_of(settings)
    traced = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = gradients(model)
    model.zero_grad()
    traced(tokens(), tokens(seed=1)).backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    torch.testing.assert_close(found, expected)


def test_bf16_autocast_runs_and_stays_near() -> None:
    model = model_of(SMALL)
    expected: Any = model(tokens(), tokens(seed=1))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(tokens(), tokens(seed=1))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=0.02)


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="17 tokens, and the limit is 16"):
        model_of(SMALL)(tokens(length=17))
