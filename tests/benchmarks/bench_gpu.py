"""Training on a GPU: how much of its peak a step reaches, many small runs on one device, and memory against the model.

    .venv/bin/python tests/benchmarks/bench_gpu.py [--mfu] [--memory] [--runs] [--seconds 3] [--small]

Without a part's flag all are done, in under ten minutes on an H100. ``--mfu``: the share of the peak (every matrix
product, attention in full) at four sizes, of each way to compute torch's step and of the usual one beside it: a
tutorial's nn.Module under bf16 autocast with torch's fused AdamW. ``--memory``: the peak of the same steps against what
plans expect. ``--runs``: small runs one after another, stacked as one model, and as processes that share the device
(under CUDA's multi-process service, where it is at hand). Every measurement has a process of its own, so that one that
fails costs one line. On a CPU, or with ``--small``, shapes are small: it shows that everything runs, not a speed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from bench_speed import Plain, peak, run_config
from torch import nn

from sweeps.dispatch.mps import shared_gpus
from trainer.adamw import FlatAdamW
from trainer.config import DeviceKind, Precision, Way
from trainer.engine import DeviceMemory, TorchEngine, choose_kernels, open_engine, prepare_device, processor
from trainer.kernels import Attention
from trainer.memory import peak_bytes
from trainer.model import groups, initial_params, slots
from trainer.runfolder import RunConfig
from trainer.shape import Shape
from trainer.together import _Stack
from trainer.ways import said

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16, of the SXM boards."""
SIZES = {  # layers, width, heads, sequences of 1,024 tokens a step
    "10M": (6, 384, 6, 64),
    "100M": (14, 768, 12, 32),
    "300M": (24, 1024, 16, 16),
    "1B": (20, 2048, 32, 8),
}
SMALL = {"0.1M": (2, 64, 2, 4), "0.4M": (2, 128, 2, 4), "0.8M": (4, 128, 2, 2), "3M": (4, 256, 4, 2)}
MANY, MANY_SMALL = (5, 128, 2, 16), (2, 32, 2, 4)
"""The small runs: layers, width, heads, sequences of 256 (64) tokens a step; bytes."""
RUNS, RUNS_SMALL = 16, 4
GPU = torch.cuda.is_available()


def config_of(layers: int, width: int, heads: int, sequences: int, sequence: int, vocabulary: int) -> RunConfig:
    shape = Shape(
        layers=layers, d_model=width, heads=heads, head_size=width // heads, ffw=4 * width,
        vocabulary=vocabulary, sequence=sequence,
    )  # fmt: skip
    config = run_config(shape, Precision.bf16)
    optim = replace(config.recipe.optim, batch=sequences * sequence)
    device = DeviceKind.cuda if GPU else DeviceKind.cpu
    return replace(config, recipe=replace(config.recipe, optim=optim), runtime=replace(config.runtime, device=device))


def sized(name: str) -> RunConfig:
    return config_of(*SIZES[name], 1024, 32_768) if name in SIZES else config_of(*SMALL[name], 128, 256)


def small_run(small: bool) -> RunConfig:
    return config_of(*MANY_SMALL, 64, 256) if small else config_of(*MANY, 256, 256)


def windows(config: RunConfig, *runs: int) -> torch.Tensor:
    shape, recipe = config.recipe.model, config.recipe
    found = torch.randint(shape.vocabulary, (*runs, recipe.sequences, shape.sequence + 1))
    return found.to("cuda" if GPU else "cpu")


def speed(step: Callable[[], Any], tokens: int, seconds: float) -> float:
    """Tokens per second, by the median of bursts that each end with the device's work."""

    def wait() -> None:
        if GPU:
            torch.cuda.synchronize()

    for _ in range(3):
        step()
    wait()
    start = time.perf_counter()
    step()
    wait()
    burst = max(1, round(seconds / 8 / (time.perf_counter() - start)))
    took, began = [], time.perf_counter()
    while time.perf_counter() - began < seconds or len(took) < 3:
        start = time.perf_counter()
        for _ in range(burst):
            step()
        wait()
        took.append((time.perf_counter() - start) / burst)
    return tokens / statistics.median(took)


def usual_speed(config: RunConfig, seconds: float) -> dict[str, Any]:
    device = prepare_device(DeviceKind.cpu) if not GPU else torch.device("cuda")  # as people have it: not repeatable
    recipe, shape = config.recipe, config.recipe.model
    memory = DeviceMemory(device)
    model = Plain(shape.layers, shape.d_model, shape.heads, shape.sequence, shape.vocabulary).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    batch = windows(config)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            _, loss = model(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {"usual": {"speed": speed(step, recipe.optim.batch, seconds), "peak": memory.peak(), "first": 0.0}}


def our_speeds(config: RunConfig, seconds: float, ways: list[Way]) -> dict[str, Any]:
    """Each way in turn on one set of parameters; what fails says why."""
    device = prepare_device(config.runtime.device)
    recipe, found = config.recipe, {}
    memory = DeviceMemory(device)
    start = initial_params(recipe.model, 0).to(device)
    attention = Attention.sdpa if GPU else Attention.manual
    engine = TorchEngine(recipe, start, attention=attention, micro_batch=recipe.sequences)
    batch = windows(config)
    for way in ways:
        try:
            compute, began = engine.step(way), time.perf_counter()

            def step(compute: Any = compute) -> None:
                compute(batch)
                engine.optimizer.update(1e-3, tokens=recipe.optim.batch)

            step()
            first = time.perf_counter() - began
            reached = speed(step, recipe.optim.batch, seconds)
            found[way.value] = {"speed": reached, "peak": memory.peak(), "first": first}
        except Exception as error:
            found[way.value] = {"error": said(error)}
        compute = None
        if GPU:
            torch.cuda.empty_cache()
            memory = DeviceMemory(device)
    return found


def one_after_another(config: RunConfig, seconds: float) -> dict[str, Any]:
    """Our best single-run path."""
    device = prepare_device(config.runtime.device)
    config = replace(config, kernels=choose_kernels(config, device))
    engine, batch = open_engine(config, device), windows(config)

    def step() -> None:
        engine.gradient(batch)
        engine.optimizer.update(1e-3, tokens=config.recipe.optim.batch)

    reached = speed(step, config.recipe.optim.batch, seconds)
    return {
        "speed": reached,
        "how": "/".join(str(config.kernels[key]) for key in ("step", "way") if key in config.kernels),
    }


def stacked(config: RunConfig, seconds: float, runs: int) -> dict[str, Any]:
    """All as one model, each with its own update, as the runs' threads make them; without what their loops do."""
    device = prepare_device(config.runtime.device)
    recipe = config.recipe
    stack = _Stack(config, device, runs)
    layout = groups(slots(recipe.model))
    optimizers = []
    for number in range(runs):
        stack.master[number] = initial_params(recipe.model, number).to(device)
        rows = stack.gradients[number], stack.params[number]
        optimizers.append(
            FlatAdamW(stack.master[number], recipe.optim, groups=layout, dtype=stack.params.dtype, rows=rows)
        )
    batch, numbers = windows(config, runs), list(range(runs))

    def step() -> None:
        stack.gradient(numbers, batch)
        for optimizer in optimizers:
            optimizer.update(1e-3, tokens=recipe.optim.batch)

    reached = speed(step, runs * recipe.optim.batch, seconds)
    return {"speed": reached, "how": f"torch/{stack.kernels.get('way', 'eager')}"}


def processes(runs: int, arguments: list[str]) -> dict[str, Any]:
    """As many processes as runs at once, each as it would train one; they begin to count together."""
    with shared_gpus(GPU) as note:
        pool = [started("alone", arguments, wait=True) for _ in range(runs)]
        for process in pool:
            assert process.stdout
            process.stdout.readline()
        for process in pool:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in pool]
    how = f", {note or 'multi-process service'}" if GPU else ""
    return {"speed": sum(one["speed"] for one in found), "how": found[0]["how"] + how}


def started(task: str, arguments: list[str], *, wait: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--task", task, *arguments, *(["--wait"] if wait else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)


def measured(task: str, arguments: list[str]) -> dict[str, Any]:
    out, _ = started(task, arguments).communicate()
    return json.loads(out.splitlines()[-1]) if out.strip() else {}


def do_task(task: str, args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    if task == "usual":
        return usual_speed(sized(args.size), args.seconds)
    if task == "ours":
        ways = [way for way in Way if way is not Way.auto and (GPU or not way.records)]
        return our_speeds(sized(args.size), args.seconds, ways)
    if args.wait:
        small_run(args.small)
        print("ready", flush=True)
        sys.stdin.readline()
    if task == "alone":
        return one_after_another(small_run(args.small), args.seconds)
    return stacked(small_run(args.small), args.seconds, args.together)


def show_sizes(args: argparse.Namespace, most: float, *, mfu: bool, memory: bool) -> None:
    print(f"\n{'N':>6} {'way':>14} {'tokens/s':>11} {'MFU':>7} {'of usual':>9} {'first step':>11} "
          f"{'peak memory':>12} {'model':>9} {'ratio':>6}")  # fmt: skip
    for name in SMALL if args.small else SIZES:
        config, common = sized(name), ["--size", name, "--seconds", str(args.seconds)]
        recipe = config.recipe
        model = peak_bytes(recipe.model, recipe.sequences, recipe.dtype, config.runtime.device)
        found = (measured("usual", common) if mfu else {}) | measured("ours", common)
        usual = found.get("usual", {}).get("speed")
        for way, one in found.items():
            if "error" in one:
                print(f"{name:>6} {way:>14} {one['error']}")
                continue
            reached = recipe.model.flops_per_token() * one["speed"] / most
            line = f"{name:>6} {way:>14} {one['speed']:>11,.0f} {reached:>7.1%} "
            line += f"{one['speed'] / usual:>8.2f}x " if usual else f"{'':>10}"
            line += f"{one['first']:>9.1f} s " if way != "usual" else f"{'':>12}"
            line += f"{one['peak'] / 1e9:>9.3f} GB "
            # on a CPU the peak of what went before stays; and the model is of ours
            line += (
                f"{model / 1e9:>6.3f} GB {one['peak'] / model:>5.2f}" if memory and way in ("eager", "compile") else ""
            )
            print(line, flush=True)


def show_runs(args: argparse.Namespace) -> None:
    runs, config = args.together, small_run(args.small)
    common = ["--seconds", str(args.seconds), "--together", str(runs), *(["--small"] if args.small else [])]
    alone = measured("alone", common)
    print(f"\n{runs} runs of {config.recipe.model.params_non_embedding:,} non-embedding parameters, "
          f"{config.recipe.optim.batch:,} tokens a step")  # fmt: skip
    for name, found in (
        ("one after another", alone),
        ("stacked", measured("stacked", common)),
        (f"{runs} processes", processes(runs, common)),
    ):
        if not found:
            print(f"{name:>20}: failed, see above")
            continue
        print(f"{name:>20} {found['speed']:>12,.0f} tokens/s {found['speed'] / alone['speed']:>6.2f}x  {found['how']}",
              flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in ("mfu", "memory", "runs"):
        parser.add_argument(f"--{part}", action="store_true", help="this part alone, or with the others named")
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement")
    parser.add_argument("--small", action="store_true", help="small shapes; always on a CPU")
    parser.add_argument(
        "--peak", type=float, help="FLOPs per second that count as 100 %%; by the device's name if known"
    )
    parser.add_argument("--together", type=int, help=f"small runs ({RUNS}, or {RUNS_SMALL})")
    for hidden in ("--task", "--size"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--wait", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.small = args.small or not GPU
    args.together = args.together or (RUNS_SMALL if args.small else RUNS)
    if args.task:
        print(json.dumps(do_task(args.task, args)))
        return
    name = processor(torch.device("cuda" if GPU else "cpu"))
    known = next((value for key, value in PEAKS.items() if GPU and key in name), None)
    torch.set_num_threads(1)
    most = args.peak or known or _largest_product()
    print(f"{name}, torch {torch.__version__}; 100 % is {most / 1e12:.4g} TFLOP/s "
          f"({'stated' if args.peak or known else 'the largest bf16 product here'})")  # fmt: skip
    every = not (args.mfu or args.memory or args.runs)
    if args.mfu or args.memory or every:
        show_sizes(args, most, mfu=args.mfu or every, memory=args.memory or every)
    if args.runs or every:
        show_runs(args)


def _largest_product() -> float:
    """Of a GPU, or of one core."""
    if not GPU:
        return peak(torch.bfloat16, threads=1)
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192 * speed(lambda: a @ a, 8192 * 8192, 1.0)


if __name__ == "__main__":
    main()
