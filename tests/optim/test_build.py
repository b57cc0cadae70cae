"""Every parameter has one optimizer, one learning rate, and the weight decay of its kind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cpulm.model.transformer import Transformer
from cpulm.optim.build_optimizers import build_optimizers, set_lr_scale
from cpulm.optim.muon import Muon
from cpulm.settings import ModelSettings, TrainSettings, changed

QWEN3 = ModelSettings(n_layer=2, n_head=4, n_kv_head=2, n_embd=32, block_size=16, tie_embeddings=False)
GPT2 = changed(QWEN3, norm="layernorm", position="learned", mlp="gelu", bias=True, qk_norm=False)
BOTH = pytest.mark.parametrize("settings", [QWEN3, GPT2], ids=["qwen3", "gpt2"])


def model_of(settings: ModelSettings) -> Transformer:
    model = Transformer(settings, 29)
    model.init_weights(0)
    return model


def by_parameter(model: nn.Module, train: TrainSettings) -> dict[str, tuple[str, float, float]]:
    """Name of each parameter -> its optimizer, peak rate and decay; every one exactly once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, tuple[str, float, float]] = {}
    for optimizer in build_optimizers(model, train):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                assert name not in found
                found[name] = (type(optimizer).__name__, group["peak_lr"], group["weight_decay"])
    assert found.keys() == set(names.values())
    return found


@BOTH
def test_muon_takes_the_matrices_of_the_blocks(settings: ModelSettings) -> None:
    train = TrainSettings(optimizer="muon", lr=0.003, muon_lr=0.02, weight_decay=0.1)
    for name, kind in by_parameter(model_of(settings), train).items():
        matrix = name.endswith(("qkv.weight", "out.weight", "gate_up.weight", "up.weight", "down.weight"))
        assert kind == (("Muon", 0.02, 0.1) if matrix else ("AdamW", 0.003, 0.0)), name


@BOTH
def test_adamw_takes_everything_and_decays_the_same_matrices(settings: ModelSettings) -> None:
    train = TrainSettings(optimizer="adamw", lr=0.003, weight_decay=0.1)
    for name, kind in by_parameter(model_of(settings), train).items():
        matrix = name.endswith(("qkv.weight", "out.weight", "gate_up.weight", "up.weight", "down.weight"))
        assert kind == ("AdamW", 0.003, 0.1 if matrix else 0.0), name


def test_lr_scale_multiplies_every_peak() -> None:
    optimizers = build_optimizers(model_of(QWEN3), TrainSettings(lr=0.004, muon_lr=0.02))
    for scale in (0.25, 0.5):
        set_lr_scale(optimizers, scale)
        rates = {group["lr"] for optimizer in optimizers for group in optimizer.param_groups}
        assert rates == {0.004 * scale, 0.02 * scale}


def test_settings_reach_the_optimizers() -> None:
    muon, adamw = build_optimizers(model_of(QWEN3), TrainSettings(beta1=0.8, beta2=0.97, momentum=0.9))
    assert isinstance(muon, Muon)
    assert {group["momentum"] for group in muon.param_groups} == {0.9}
    assert {group["betas"] for group in adamw.param_groups} == {(0.8, 0.97)}
    assert all(group["fused"] for group in adamw.param_groups)


@BOTH
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_batch_is_overfitted(settings: ModelSettings, optimizer: str) -> None:
    model = model_of(changed(settings, n_layer=1))
    optimizers = build_optimizers(model, TrainSettings(optimizer=optimizer, lr=0.02))
    tokens = torch.randint(29, (2, 9), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(20):
        loss = model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        loss.backward()
        for each in optimizers:
            each.step()
            each.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(3.37, abs=0.1)  # the logarithm of 29: nothing known
    assert losses[-1] < 0.5


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_restored_state_continues_bit_for_bit(optimizer: str) -> None:
    train = TrainSettings(optimizer=optimizer)
    tokens = torch.randint(29, (4, 17), generator=torch.Generator().manual_seed(1))

    def run(model: Transformer, optimizers: list[torch.optim.Optimizer], steps: int) -> None:
        for _ in range(steps):
            model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()).backward()
            for each in optimizers:
                each.step()
                each.zero_grad()

    straight = model_of(QWEN3)
    optimizers = build_optimizers(straight, train)
    run(straight, optimizers, 2)
    resumed = Transformer(QWEN3, 29)
    resumed.load_state_dict(straight.state_dict())
    others = build_optimizers(resumed, train)
    for new, old in zip(others, optimizers, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))  # state_dict shares memory
    run(straight, optimizers, 2)
    run(resumed, others, 2)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_muon_takes_heads_gate_and_up_apart() -> None:
    model = model_of(QWEN3)
    muon, _ = build_optimizers(model, TrainSettings())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    blocks = {names[id(p)]: group["block_rows"] for group in muon.param_groups for p in group["params"]}
    inner = QWEN3.inner_width
    expected = {"attn.qkv": 8, "attn.out": None, "mlp.gate_up": inner, "mlp.down": None}
    assert blocks == {f"blocks.{i}.{name}.weight": rows for i in (0, 1) for name, rows in expected.items()}
