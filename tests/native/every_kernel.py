"""Calls every kernel of a library once or more and compares with torch; run by test_sanitizers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from cpulm.model import fused, int8_head_loss, int8_linear, native_ops
from cpulm.model.cache import KVCache
from cpulm.model.decoding import quantize
from cpulm.model.distillation import TeacherOutput
from cpulm.model.transformer import Transformer, rope_tables
from cpulm.native.int8 import Int8Kernels
from cpulm.native.kernels import AttentionShape, Kernels, QKTransform
from cpulm.native.library import load
from cpulm.optim.muon import Muon
from cpulm.settings import ModelSettings, changed

MODEL = ModelSettings(n_layer=2, n_head=4, n_kv_head=2, n_embd=64, head_dim=32, n_inner=96, block_size=24)


def elementwise(kernels: Kernels) -> None:
    x, weight = torch.randn(7, 96, requires_grad=True), torch.randn(96, requires_grad=True)
    for ours, plain in (
        (native_ops.rms_norm(kernels, x, weight, 1e-6), F.rms_norm(x, (96,), weight, 1e-6)),
        (
            native_ops.layer_norm(kernels, x, weight, weight, 1e-6),
            F.layer_norm(x, (96,), weight, weight, 1e-6),
        ),
        (native_ops.swiglu(kernels, x), fused.swiglu(x)),
        (native_ops.relu2(kernels, x), F.relu(x).square()),
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
        ours.sum().backward()
    native_ops.dropout(kernels, x, 0.3).sum().backward()


def attention(kernels: Kernels) -> None:
    for tokens, dropout in ((1, 0.0), (49, 0.0), (70, 0.2)):
        shape = AttentionShape(4, 2, 32, dropout=dropout, seed=3)
        transform = QKTransform(torch.ones(32), torch.ones(32), *rope_tables(tokens, 32, 1e4))
        qkv = torch.randn(2, tokens, 8 * 32, requires_grad=True)
        first = torch.arange(tokens, dtype=torch.int32).div(2, rounding_mode="floor").repeat(2, 1)
        native_ops.attention(kernels, qkv, shape, transform, first).sum().backward()


def decoding(kernels: Kernels) -> None:
    settings = changed(MODEL, norm="layernorm", position="learned", mlp="gelu", bias=True, qk_norm=False)
    for each in (MODEL, settings):
        model = Transformer(each, 41).eval()
        model.init_weights(1)
        idx = torch.randint(41, (3, 6))
        with torch.inference_mode():
            wanted = model(idx)
            model.use_kernels(kernels)
            cache = KVCache(each, 3, 6)
            found = torch.cat([model(token, cache=cache) for token in idx.split(1, dim=1)], dim=1)
        assert cache.decoder is not None
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        quantize(model, kernels, lambda size: torch.empty(size, dtype=torch.uint8))
        with torch.inference_mode():
            cache = KVCache(each, 3, 6)
            found = torch.cat([model(piece, cache=cache) for piece in idx.split([3, 1, 1, 1], dim=1)], dim=1)
        torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.1)


def int8(kernels: Int8Kernels) -> None:
    x, weight = torch.randn(97, 208, requires_grad=True), torch.randn(80, 208, requires_grad=True)
    y = int8_linear.linear(kernels, x, weight, torch.randn(80))
    y.sum().backward()
    targets = torch.arange(97) % 80
    targets[::9] = -100
    int8_head_loss.head_loss(kernels, x, weight, targets).backward()
    for temperature in (1.0, 2.0):
        head = int8_linear.frozen_weight(kernels, weight)
        teacher = TeacherOutput(x.detach(), weight.detach(), 0.5, temperature, kernels, head)
        int8_head_loss.distilled_head_loss(kernels, x, weight, targets, teacher).objective.backward()
    for shape in ((64, 208), (208, 64)):
        matrices = [torch.nn.Parameter(torch.randn(shape)) for _ in range(3)]
        for count in (1, 3):
            for matrix in matrices[:count]:
                matrix.grad = torch.randn(shape)
            Muon(matrices[:count], kernels=kernels).step()
        assert all(matrix.isfinite().all() for matrix in matrices)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(3)
    kernels = Kernels(Path(sys.argv[1]))
    elementwise(kernels)
    attention(kernels)
    decoding(kernels)
    int8(kernels.int8 or Int8Kernels(load(Path(sys.argv[1])), kernels.lanes))
    sys.stdout.write("all kernels\n")
    sys.stdout.flush()
    if os.environ.get("BEYOND_THE_END"):
        x = torch.ones(4, 64)
        load(Path(sys.argv[1])).cpulm_relu2_forward(x.data_ptr(), 8 * 64, x.data_ptr(), 1)


if __name__ == "__main__":
    main()
