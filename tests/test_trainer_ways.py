"""Ways to compute torch's step: what is tried, what is taken, and that it trains as eager does.

No GPU is needed: torch's compiler works on CPUs, and a recorder that computes anew stands in for CUDA graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Answer
from test_trainer_together import go
from torch import Tensor
from trainer_runs import make_run, rows, small_corpus, small_shape

from trainer import engine, ways
from trainer.config import DeviceKind, Parametrisation, Precision, Way
from trainer.engine import prepare_device
from trainer.errors import UserError
from trainer.kernels import PRODUCT_ROWS, Attention, cross_entropies, lookup, summed_rows
from trainer.loop import train
from trainer.model import Transformer, initial_params
from trainer.recipe import Scaling
from trainer.runfolder import RunFolder
from trainer.shape import Activation, Positions
from trainer.stacked import StackedTransformer
from trainer.ways import Choice, Recorded, Step, choose_way

EAGER = {"step": "torch", "attention": "manual"}
GRAPHS = {**EAGER, "way": "graph"}


def stand_in(step: Step, windows: Tensor) -> Callable[[], Tensor]:
    """In place of :func:`trainer.ways.record`: the step again, from and into the same memory."""
    losses = step(windows)
    return lambda: losses.copy_(step(windows))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Batches' sizes in the order in which steps were recorded for them."""
    recorded: list[torch.Size] = []

    def record(step: Step, windows: Tensor) -> Callable[[], Tensor]:
        recorded.append(windows.shape)
        return stand_in(step, windows)

    monkeypatch.setattr(ways, "record", record)
    return recorded


# The maths of the other ways


@pytest.mark.parametrize("rows_", [7, PRODUCT_ROWS + 5])
@pytest.mark.parametrize("members", [1, 3])
def test_rows_are_summed_without_a_scatter(rows_: int, members: int) -> None:
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(members * 40, 5, generator=generator)
    own = torch.randint(rows_, (members, 40), generator=generator)
    index = (own + torch.arange(members)[:, None] * rows_).flatten()
    wanted = torch.zeros(members * rows_, 5).index_add_(0, index, grad)
    torch.testing.assert_close(summed_rows(grad, index, members * rows_, members), wanted)
    table = torch.zeros(members * rows_, 5, requires_grad=True)
    (found,) = torch.autograd.grad(lookup(table, index, members), table, grad)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("z", [0.0, 0.1])
def test_the_gradient_of_the_loss_has_the_same_bits_without_a_scatter(z: float, monkeypatch: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 9, generator=generator).requires_grad_()
    target = torch.randint(9, (12,), generator=generator)

    def gradient() -> Tensor:
        (found,) = torch.autograd.grad(cross_entropies(logits, target, 2, z).sum(), logits)
        return found

    usual = gradient()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(gradient(), usual)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": Activation.swiglu, "tied_head": False, "qk_norm": True},
        {"positions": Positions.learned, "activation": Activation.relu2},
    ],
)
def test_what_is_compiled_is_the_same_model(changes: dict[str, Any]) -> None:
    shape, scaling = small_shape(**changes), Scaling(rule=Parametrisation.completep, width=8, layers=1)
    flat = torch.stack([initial_params(shape, seed, scaling) for seed in range(2)])
    windows = torch.randint(256, (2, 4, shape.sequence + 1), generator=torch.Generator().manual_seed(1))
    usual, plain = (Transformer(shape, flat[0], Attention.sdpa, scaling, 1e-2, plain=plain) for plain in (False, True))
    loss, same = usual.loss(windows[0]), plain.loss(windows[0])
    torch.testing.assert_close(same, loss, rtol=1e-6, atol=0)
    for mine, other in zip(plain.gradient(same), usual.gradient(loss), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    stacked, plain = (
        StackedTransformer(shape, flat, Attention.sdpa, scaling, 1e-2, plain=plain) for plain in (False, True)
    )
    losses, same = stacked.losses(windows), plain.losses(windows)
    torch.testing.assert_close(same, losses, rtol=1e-6, atol=0)
    for mine, other in zip(plain.gradient(same.sum()), stacked.gradient(losses.sum()), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


# The choice


class Rig:
    """Steps whose gradient is the batch's sum times 1, 2, 3, with faults and speeds as wanted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, speeds: dict[Way, float]) -> None:
        self.gradient = torch.zeros(3)
        self.steps: dict[Way, Step] = dict.fromkeys(Way, self.right)
        self.made: list[Way] = []
        self._speeds = {Way.eager: 1.0, Way.graph: 1.0, Way.compile: 1.0, Way.compile_graph: 1.0} | speeds
        self._ways: dict[int, Way] = {}
        monkeypatch.setattr(ways, "_seconds", self._seconds)
        monkeypatch.setattr(ways, "candidates", lambda wanted, device: self.candidates(wanted))

    def candidates(self, wanted: Way) -> tuple[Way, ...]:
        return (Way.graph, Way.compile, Way.compile_graph) if wanted is Way.auto else (wanted,)

    def right(self, windows: Tensor) -> Tensor:
        self.gradient.copy_(windows.sum() * torch.tensor([1.0, 2.0, 3.0]))
        return windows.sum()

    def step(self, way: Way) -> Step:
        self.made.append(way)

        def step(windows: Tensor) -> Tensor:
            return self.steps[way](windows)

        self._ways[id(step)] = way
        self._kept = [*getattr(self, "_kept", []), step]  # so that no id is given twice
        return step

    def _seconds(self, steps: list[Step], batch: Tensor) -> list[float]:
        return [1 / self._speeds[self._ways[id(step)]] for step in steps]

    def choose(self, wanted: Way = Way.auto, updates: float = 1e6) -> Choice:
        batches = [torch.full((2, 2), 1.0), torch.full((2, 2), 2.0)]
        return choose_way(wanted, self.step, batches, self.gradient, [1, 2], Precision.fp32, updates)


def test_the_fastest_way_that_agrees_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, {Way.graph: 2.0, Way.compile: 1.5, Way.compile_graph: 3.0})
    choice = rig.choose()
    assert choice.way is Way.compile_graph
    assert choice.tried == {
        "graph": "2 times as fast as eager",
        "compile": "0.75 times as fast as graph",
        "compile_graph": "1.5 times as fast as graph",
    }


def test_a_way_that_is_not_clearly_faster_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, {Way.graph: 1.09, Way.compile: 1.05, Way.compile_graph: 0.5})
    assert rig.choose().way is Way.eager
    assert rig.choose(Way.compile).way is Way.compile  # who asks for it by name gets it


def test_compiling_is_tried_for_long_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, {Way.graph: 4.0, Way.compile: 9.0, Way.compile_graph: 9.0})
    choice = rig.choose(updates=1000)  # 250 s as a graph
    assert choice.way is Way.graph and rig.made == [Way.eager, Way.graph]
    assert choice.tried["compile"] == "not tried: the run takes 250 s, too short to repay compiling"
    assert rig.choose(Way.compile, updates=1000).way is Way.compile
    assert rig.choose(updates=1300).way is Way.compile


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("raises", "fails: RuntimeError: operation not permitted when stream is capturing"),
        ("loss", "fails: its loss differs from eager's by 0.001 of it, where 1e-05 may be"),
        ("tensor", "fails: the gradient of tensor 1 differs from eager's by 0.0017 of it, where 0.001 may be"),
        ("nan", "fails: its loss differs from eager's by nan of it, where 1e-05 may be"),
        ("nan gradient", "fails: the gradient of tensor 0 differs from eager's by nan of it, where 0.001 may be"),
        ("stale", "fails: its loss differs from eager's by 0.5 of it, where 1e-05 may be"),
    ],
)
def test_what_fails_or_disagrees_is_not_taken_and_told(
    fault: str, says: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rig = Rig(monkeypatch, dict.fromkeys((Way.graph, Way.compile, Way.compile_graph), 9.0))
    first: list[Tensor] = []

    def wrong(windows: Tensor) -> Tensor:
        first.append(windows.clone())
        if fault == "raises":
            raise RuntimeError("\noperation not permitted when stream is capturing\nmore")
        loss = rig.right(first[0] if fault == "stale" else windows)
        if "tensor" in fault:
            rig.gradient[1] *= 1.003
        if fault == "nan gradient":
            rig.gradient[0] = math.nan
        return {"loss": loss * 1.001, "nan": loss * math.nan}.get(fault, loss)

    for way in (Way.graph, Way.compile):
        rig.steps[way] = wrong
    choice = rig.choose()
    assert choice.way is Way.eager
    assert choice.tried == {"graph": says, "compile": says, "compile_graph": "not tried: compile fails"}
    assert f"isoflop: the graph way is not taken, it {says}" in capfd.readouterr().err


def test_without_memory_for_a_comparison_eager_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, {Way.graph: 9.0})

    def full(windows: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    rig.steps[Way.eager] = full
    assert rig.choose() == Choice(Way.eager, {"others": "not tried: no memory for the comparison"})


def test_on_a_cpu_nothing_is_tried_unless_by_name() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert ways.candidates(Way.auto, cpu) == ways.candidates(Way.eager, gpu) == ()
    assert ways.candidates(Way.compile, cpu) == (Way.compile,)
    assert ways.candidates(Way.auto, gpu) == (Way.graph, Way.compile, Way.compile_graph)


def test_steps_are_timed_in_turns() -> None:
    calls: list[str] = []

    def named(name: str, work: int) -> Step:
        def step(windows: Tensor) -> Tensor:
            calls.append(name)
            return torch.ones(work, work) @ torch.ones(work, work)

        return step

    slow, fast = ways._seconds([named("slow", 900), named("fast", 9)], torch.zeros(1))
    assert slow > fast > 0
    assert calls[:6] == ["slow", "fast"] * 3


# What is recorded


def test_a_recorded_step_reads_each_batch_and_gives_losses_of_its_own(recorder: list[torch.Size]) -> None:
    recorded = Recorded(lambda windows: windows.sum(1))
    first, second = torch.ones(2, 3), torch.full((2, 3), 5.0)
    losses = [recorded(first), recorded(second)]
    assert [each.tolist() for each in losses] == [[3.0, 3.0], [15.0, 15.0]]
    assert recorded(torch.ones(1, 3)).tolist() == [3.0]  # a batch of another size is recorded anew
    assert [tuple(size) for size in recorder] == [(2, 3), (1, 3)]


@pytest.mark.parametrize("micro", [0, 4])
def test_a_recorded_run_has_the_bits_of_an_eager_one(tmp_path: Path, micro: int, recorder: list[torch.Size]) -> None:
    corpus = small_corpus(tmp_path)
    eager = make_run(tmp_path, corpus, sweep="eager", kernels=EAGER, micro_batch=micro)
    graphs = make_run(tmp_path, corpus, sweep="graphs", kernels=GRAPHS, micro_batch=micro)
    assert train(eager, tmp_path) == train(graphs, tmp_path) == "done"
    assert rows(graphs) == rows(eager)
    assert [tuple(size) for size in recorder] == [(6, 17)]


def test_runs_trained_together_are_recorded_too_and_anew_when_one_leaves(
    tmp_path: Path, recorder: list[torch.Size]
) -> None:
    corpus = small_corpus(tmp_path)
    folders: dict[str, list[RunFolder]] = {}
    for sweep, kernels in (("eager", EAGER), ("graphs", GRAPHS)):
        folders[sweep] = [
            make_run(tmp_path, corpus, sweep=sweep, kernels=kernels, seed=seed, steps=steps)
            for seed, steps in enumerate((24, 24, 12))
        ]
        assert go(folders[sweep], tmp_path) == ["done"] * 3
    for eager, graphs in zip(folders["eager"], folders["graphs"], strict=True):
        assert rows(graphs) == rows(eager)
    assert [size[0] for size in recorder] == [3, 2]


def test_a_stack_chooses_a_way_for_all(tmp_path: Path, monkeypatch: Any, recorder: list[torch.Size]) -> None:
    corpus = small_corpus(tmp_path)
    folders = [make_run(tmp_path, corpus, seed=seed, steps=6, way=Way.graph) for seed in range(2)]
    assert go(folders, tmp_path) == ["done"] * 2
    for folder in folders:
        kernels = folder.read_config().kernels
        assert kernels["way"] == "graph" and kernels["tried"]["graph"].endswith("times as fast as eager")


# A run in another way


@pytest.fixture(scope="module")
def compiled_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunFolder]:
    """A run that asked for torch's compiler, stopped after nine updates and gone on with."""
    root = tmp_path_factory.mktemp("compiled")
    folder = make_run(root, small_corpus(root), shape=small_shape(layers=1), way=Way.compile)
    stops = iter([None] * 9 + ["on request"])
    assert train(folder, root, should_stop=lambda: next(stops)) == "stopped: on request"
    assert train(folder, root) == "done"
    return root, folder


def test_the_compiler_is_tried_taken_and_kept(compiled_run: tuple[Path, RunFolder]) -> None:
    _, folder = compiled_run
    kernels = folder.read_config().kernels
    assert kernels["step"] == "torch" and kernels["way"] == "compile"
    assert kernels["tried"]["compile"].endswith("times as fast as eager")
    assert [attempt["resume_step"] for attempt in folder.attempts()] == [0, 9]


def test_a_compiled_run_ends_where_an_eager_one_does(compiled_run: tuple[Path, RunFolder]) -> None:
    root, folder = compiled_run
    config = folder.read_config()
    kernels = {key: value for key, value in config.kernels.items() if key not in ("way", "tried")}
    eager = make_run(root, config.recipe.data.corpus, sweep="eager", shape=config.recipe.model, kernels=kernels)
    assert train(eager, root) == "done"
    for mine, other in zip(rows(folder), rows(eager), strict=True):
        assert mine["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert mine.get("val_loss", 0.0) == pytest.approx(other.get("val_loss", 0.0), rel=1e-5)


def test_a_compiled_run_that_was_stopped_has_the_bits_of_one_that_was_not(
    compiled_run: tuple[Path, RunFolder],
) -> None:
    root, folder = compiled_run
    config = folder.read_config()
    whole = make_run(
        root, config.recipe.data.corpus, sweep="whole", shape=config.recipe.model, kernels=dict(config.kernels)
    )
    assert train(whole, root) == "done"
    assert rows(whole) == rows(folder)


def test_a_way_that_fails_on_a_later_attempt_is_left_for_eager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(function: Step) -> Step:
        def fails(windows: Tensor) -> Tensor:
            raise RuntimeError("no C++ compiler here")

        return fails

    monkeypatch.setattr(engine, "compiled", broken)
    corpus = small_corpus(tmp_path)
    eager = make_run(tmp_path, corpus, sweep="eager", kernels=EAGER)
    folder = make_run(tmp_path, corpus, sweep="left", kernels={**EAGER, "way": "compile"})
    assert train(eager, tmp_path) == train(folder, tmp_path) == "done"
    assert rows(folder) == rows(eager)
    said = capfd.readouterr().err
    assert said.count("the compile way, chosen earlier, fails here: RuntimeError: no C++ compiler here; going on") == 1
    fresh = make_run(tmp_path, corpus, sweep="fresh", way=Way.compile)
    assert train(fresh, tmp_path) == "done"
    kernels = fresh.read_config().kernels
    assert kernels["way"] == "eager" and kernels["tried"] == {"compile": "fails: RuntimeError: no C++ compiler here"}


def test_what_fails_after_the_first_batch_fails_the_run() -> None:
    calls = iter([torch.tensor(1.0)])
    guarded = ways.Guarded(lambda windows: next(calls), lambda windows: torch.tensor(2.0), "graph")
    assert guarded(torch.zeros(1)) == 1.0
    with pytest.raises(StopIteration):
        guarded(torch.zeros(1))


def test_a_way_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path, small_corpus(tmp_path), kernels={**EAGER, "way": "auto"})
    with pytest.raises(
        UserError, match=r"kernels\.way='auto' is none of eager, graph, compile, compile_graph; restore"
    ):
        train(folder, tmp_path)


def test_graphs_without_a_gpu_are_refused_by_the_plan(isoflop: Callable[..., Answer], tmp_path: Path) -> None:
    answer = isoflop("plan", "sweep=smoke", f"root={tmp_path}", "trainer.way=graph")
    assert answer.code == 2
    assert answer.sentence == (
        "trainer.way=graph records CUDA graphs, which device.kind=cpu has not; choose device.kind=cuda, or "
        "trainer.way=auto, eager or compile."
    )


def test_on_a_gpu_no_operation_may_vary() -> None:
    """With ``warn_only`` torch's attention on GPUs would."""
    try:
        assert prepare_device(DeviceKind.cuda) == torch.device("cuda")
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
