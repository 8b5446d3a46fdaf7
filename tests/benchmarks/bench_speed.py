"""Training speed on CPU: isoflop's step as a pool of one-thread processes, beside the usual step in one process.

    .venv/bin/python tests/benchmarks/bench_speed.py [--nanogpt FOLDER] [--seconds 4]

The usual step is the one people write: nn.Module, autograd, fp32, torch's AdamW, a process that has all cores; the
same shapes, byte vocabulary, tokens per step and operations (GPT-2 without biases: norm, attention, GELU, tied head;
learned positions there, rotary ones here). With ``--nanogpt`` it is that repository's own ``model.py``. Both have the
machine to themselves, in turns. Beside the ratio stands the roofline: what the matrix products that a causal step needs
reach of the processor's peak, as torch's largest product shows it, and the ratio that all of the peak would give.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from trainer.config import Cooldown, Decay, DeviceKind, Keep, Precision, TrackingConfig
from trainer.engine import NATIVE, choose_kernels, open_engine, processor
from trainer.native.build import library
from trainer.recipe import DataRecipe, OptimRecipe, Recipe, ScheduleRecipe
from trainer.runfolder import RunConfig, Runtime
from trainer.shape import Shape

SHAPES = {"55k": (2, 48, 3), "786k": (4, 128, 4), "3.1M": (4, 256, 4)}
TOKENS = 4096
CORES = len(os.sched_getaffinity(0))
DATA = torch.randint(256, (1_000_000,), generator=torch.Generator().manual_seed(0))


def shape_of(name: str, sequence: int) -> Shape:
    layers, width, heads = SHAPES[name]
    return Shape(
        layers=layers,
        d_model=width,
        heads=heads,
        head_size=width // heads,
        ffw=4 * width,
        vocabulary=256,
        sequence=sequence,
    )


class Block(nn.Module):
    """Attention and feed-forward layer, pre-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        q, k, v = (part.view(split).transpose(1, 2) for part in self.qkv(self.norms[0](x)).split(width, dim=2))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).contiguous().view(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


class Plain(nn.Module):
    """GPT-2 without biases, as a tutorial would have it."""

    def __init__(self, layers: int, width: int, heads: int, sequence: int, vocabulary: int = 256) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(sequence, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.02)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            hidden = block(hidden)
        logits = functional.linear(self.norm(hidden), self.tokens.weight)
        return logits, functional.cross_entropy(logits.flatten(0, 1), y.flatten())


def batch(sequence: int) -> torch.Tensor:
    starts = torch.randint(len(DATA) - sequence - 1, (TOKENS // sequence,))
    return torch.stack([DATA[start : start + sequence + 1] for start in starts.tolist()])


def timed(step: Any, seconds: float) -> float:
    """Tokens per second: by the median step, so that a neighbour's burst does not count for either side."""
    for _ in range(2):
        step()
    took, began = [], time.perf_counter()
    while time.perf_counter() - began < seconds or len(took) < 3:
        start = time.perf_counter()
        step()
        took.append(time.perf_counter() - start)
    return TOKENS / statistics.median(took)


def usual_speed(name: str, sequence: int, seconds: float, nanogpt: Path | None) -> float:
    torch.set_num_threads(CORES)
    layers, width, heads = SHAPES[name]
    model: Any
    if nanogpt is None:
        model = Plain(layers, width, heads, sequence)
    else:
        spec = importlib.util.spec_from_file_location("nanogpt", nanogpt / "model.py")
        assert spec and spec.loader
        theirs = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(theirs)
        with contextlib.redirect_stdout(io.StringIO()):
            model = theirs.GPT(theirs.GPTConfig(block_size=sequence, vocab_size=256, n_layer=layers, n_head=heads,
                                                n_embd=width, dropout=0.0, bias=False))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def step() -> None:
        windows = batch(sequence)
        _, loss = model(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return timed(step, seconds)


def run_config(shape: Shape, dtype: Precision) -> RunConfig:
    recipe = Recipe(
        model=shape,
        data=DataRecipe(corpus="none", eval_windows=1),
        optim=OptimRecipe(lr=1e-3, batch=TOKENS, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0),
        schedule=ScheduleRecipe(
            decay=Decay.cosine, warmup_steps=0, cooldown_steps=0, cooldown_shape=Cooldown.linear, final=0.0
        ),
        steps=1, seed=0, dtype=dtype,
    )  # fmt: skip
    runtime = Runtime(
        device=DeviceKind.cpu, threads=1, micro_batch=0, eval_steps=(1,), log_every=1, checkpoint_seconds=1e9,
        keep=Keep.none, tracking=TrackingConfig(),
    )  # fmt: skip
    return RunConfig(sweep="bench", recipe=recipe, runtime=runtime)


def one_of_the_pool(name: str, sequence: int, dtype: Precision, seconds: float) -> float:
    """Tokens per second of one process of the pool: our step, as the training loop calls it."""
    torch.set_num_threads(1)
    config, device = run_config(shape_of(name, sequence), dtype), torch.device("cpu")
    kernels = choose_kernels(config, device)
    engine = open_engine(RunConfig(**(vars(config) | {"kernels": kernels})), device)

    def step() -> None:
        engine.gradient(batch(sequence))
        engine.optimizer.update(1e-3, tokens=TOKENS)

    print("ready", kernels["step"], flush=True)
    sys.stdin.readline()
    return timed(step, seconds)


def pool_speed(name: str, sequence: int, dtype: Precision, seconds: float) -> tuple[float, str]:
    command = [sys.executable, __file__, "--one", name, str(sequence), dtype.value, "--seconds", str(seconds)]
    pool = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(CORES)]
    steps = {process.stdout.readline().split()[1] for process in pool if process.stdout}
    for process in pool:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in pool), "/".join(sorted(steps))


def peak(dtype: torch.dtype, threads: int = CORES) -> float:
    """FLOPs per second of so many cores on a large product."""
    torch.set_num_threads(threads)
    a, b = torch.randn(2, 2048, 2048).to(dtype)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < 1:
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best


def causal_flops(shape: Shape) -> float:
    """FLOPs per token that a causal step needs: the half of attention that is masked left out."""
    return shape.flops_per_token() - 6 * shape.sequence * shape.attention_width * shape.layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT to measure against")
    parser.add_argument("--seconds", type=float, default=4.0, help="per measurement")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(one_of_the_pool(args.one[0], int(args.one[1]), Precision(args.one[2]), args.seconds))
        return
    dtype = Precision.bf16 if library(Precision.bf16) is not None else Precision.fp32
    peaks = {
        Precision.fp32: peak(torch.float32),
        dtype: peak(torch.bfloat16 if dtype is Precision.bf16 else torch.float32),
    }
    speeds = ", ".join(f"{precision} {value / 1e9:.0f} GF/s" for precision, value in peaks.items())
    print(f"{processor(torch.device('cpu'))}, {CORES} cores, torch {torch.__version__}; largest products: {speeds}")
    print(f"{'N':>5} {'T':>4} {'usual tok/s':>12} {'ours tok/s':>11} {'ratio':>6} {'of peak':>8} {'at most':>8}  step")
    for name in SHAPES:
        for sequence in (128, 256):
            usual = usual_speed(name, sequence, args.seconds, args.nanogpt)
            ours, step = pool_speed(name, sequence, dtype, args.seconds)
            flops = causal_flops(shape_of(name, sequence))
            reached, most = ours * flops / peaks[dtype], peaks[dtype] / flops / usual
            print(f"{name:>5} {sequence:>4} {usual:>12,.0f} {ours:>11,.0f} {ours / usual:>5.2f}x "
                  f"{reached:>8.0%} {most:>7.2f}x  {step} {dtype}", flush=True)  # fmt: skip
    if library(dtype) is None:
        print(f"no C++ compiler here: the {NATIVE} step was left out")


if __name__ == "__main__":
    main()
