"""Layer statistics: the right numbers at the right updates, and no effect on the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import of, same, settings_for, train

from cpulm.events import LayerStats, StepDone
from cpulm.model.transformer import Transformer
from cpulm.runlog.tail import Tail
from cpulm.settings import ModelSettings
from cpulm.training.layer_stats import LayerStatistics


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 60, encoding="utf-8")
    return path


def a_model(**values: Any) -> Transformer:
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, **values}
    model = Transformer(ModelSettings.model_validate(shape), 40)
    model.init_weights(0)
    return model


def an_update(model: Transformer, statistics: LayerStatistics, step: int, lr: float) -> LayerStats | None:
    """Plain gradient descent, whose update is known: ``lr`` times the clipped gradient."""
    tokens = torch.arange(17).unsqueeze(0)
    model(tokens[:, :-1], targets=tokens[:, 1:]).backward()
    statistics.before_update(step)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    torch.optim.SGD(model.parameters(), lr=lr).step()
    stats = statistics.after_update()
    model.zero_grad(set_to_none=True)
    return stats


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ({}, ()),
        ({"tie_embeddings": False}, ("lm_head",)),
        ({"position": "learned", "mlp": "gelu", "bias": True, "norm": "layernorm"}, ("wpe",)),
    ],
    ids=["tied", "untied", "gpt2"],
)
def test_every_matrix_is_measured_once_and_nothing_else(kind: dict[str, Any], more: tuple[str, ...]) -> None:
    model = a_model(**kind)
    stats = an_update(model, LayerStatistics(model, 1), 1, 0.1)
    assert stats is not None
    inner = "up" if kind.get("mlp") == "gelu" else "gate_up"
    blocks = [
        f"blocks.{layer}.{part}"
        for layer in (0, 1)
        for part in ("attn.qkv", "attn.out", f"mlp.{inner}", "mlp.down")
    ]
    assert sorted(stats.names) == sorted(["wte", *more, *blocks])
    assert len(stats.names) == len(stats.weight_norms) == len(stats.grad_norms) == len(stats.update_ratios)


def test_norms_are_those_of_the_weights_the_whole_gradient_and_the_update() -> None:
    model, lr = a_model(), 0.5
    tokens = torch.arange(17).unsqueeze(0)
    model(tokens[:, :-1], targets=tokens[:, 1:]).backward()
    parameters = dict(model.named_parameters())
    gradients = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    total = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    model.zero_grad(set_to_none=True)
    stats = an_update(model, LayerStatistics(model, 1), 1, lr)
    assert stats is not None
    for number, name in enumerate(stats.names):
        weight, gradient = parameters[f"{name}.weight"], gradients[f"{name}.weight"]
        clipped = gradient * (0.01 / total)
        assert stats.weight_norms[number] == pytest.approx(float(weight.detach().norm()), rel=1e-3)
        assert stats.grad_norms[number] == pytest.approx(float(gradient.norm()), rel=1e-3)
        ratio = lr * float(clipped.norm() / weight.detach().norm())
        assert stats.update_ratios[number] == pytest.approx(ratio, rel=2e-3)


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 3, 6]), (50, [1])])
def test_the_first_update_and_every_so_manieth_are_measured(every: int, steps: list[int]) -> None:
    model = a_model(n_layer=1)
    statistics = LayerStatistics(model, every)
    measured = [step for step in range(1, 8) if an_update(model, statistics, step, 0.1) is not None]
    assert measured == steps


def test_an_interrupted_update_leaves_no_trace() -> None:
    model = a_model(n_layer=1)
    statistics = LayerStatistics(model, 2)
    statistics.before_update(2)
    statistics.before_update(3)
    assert statistics.after_update() is None


def test_a_run_with_and_without_is_bit_identical(tmp_path: Path, text: Path) -> None:
    with_them, _ = train(settings_for(text, "log.layer_stats_every=2"), tmp_path / "with")
    without, _ = train(settings_for(text, "log.layer_stats_every=0"), tmp_path / "without")
    assert [event.step for event in of(LayerStats, with_them)] == [1, 2, 4, 6, 8, 10, 12]
    assert of(LayerStats, without) == []
    losses = [[event.loss for event in of(StepDone, events)] for events in (with_them, without)]
    assert losses[0] == losses[1]
    assert same(tmp_path / "with" / "latest.pt", tmp_path / "without" / "latest.pt")


def test_they_are_in_the_record_behind_their_step(tmp_path: Path, text: Path) -> None:
    train(settings_for(text, "log.layer_stats_every=5", "train.steps=6"), tmp_path / "run")
    events = list(Tail(tmp_path / "run" / "metrics.jsonl").new_events())
    assert [(event.kind, event.step) for event in events if isinstance(event, (StepDone, LayerStats))] == [
        ("step", 1),
        ("layer_stats", 1),
        ("step", 2),
        ("step", 3),
        ("step", 4),
        ("step", 5),
        ("layer_stats", 5),
        ("step", 6),
    ]
    assert all(ratio > 0 for ratio in of(LayerStats, events)[0].update_ratios)
