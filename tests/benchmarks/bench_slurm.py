"""What SLURM costs a user: submit and status of 1,000 points, Hydra's launcher beside it, job start to first step.

    python tests/benchmarks/bench_slurm.py [points, default 1000] [python with hydra-submitit-launcher]

Needs SLURM's daemons (``tests/slurm_cluster.py`` says which) and starts its own cluster. Calls of SLURM's programs are
counted by scripts before them on PATH; memory is the peak of the command and its children.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from slurm_cluster import PATH, Cluster, missing, until

from sweeps.paths import SweepFolder
from trainer.lock import holder, process_birth
from trainer.runfolder import final_record

REPOSITORY = Path(__file__).parents[2]
ISOFLOP = [sys.executable, "-m", "sweeps.cli"]
ON_SLURM = ["cluster=slurm", "cluster.account=lab", "cluster.partition=main", "cluster.pack_hours=0"]
COUNTED = ("sbatch", "squeue", "sacct", "scontrol", "sinfo", "scancel", "sacctmgr")
HYDRA_APP = """\
import hydra
@hydra.main(version_base=None, config_path=None)
def main(config): pass
main()
"""


@dataclass(frozen=True)
class Measured:
    """One command."""

    seconds: float
    megabytes: float
    calls: dict[str, int]
    out: str

    def __str__(self) -> str:
        called = ", ".join(f"{count} {name}" for name, count in self.calls.items()) or "no call of SLURM"
        return f"{self.seconds:.2f} s, peak {self.megabytes:.0f} MB, {called}"


class Bench:
    """A cluster whose programs are counted."""

    def __init__(self, base: Path) -> None:
        self.base, self.cluster = base, Cluster(base / "cluster")
        self.log, counted = base / "calls", base / "bin"
        counted.mkdir()
        for name in COUNTED:
            real = shutil.which(name, path=PATH)
            (counted / name).write_text(f'#!/bin/sh\necho "{name} $(date +%s.%N)" >>{self.log}\nexec {real} "$@"\n')
            (counted / name).chmod(0o755)
        self.environ = self.cluster.environ | {"PATH": f"{counted}:{PATH}", "PYTHONPATH": str(REPOSITORY)}

    def calls(self) -> dict[str, int]:
        """How often each program was called since the log was cleared."""
        names = [line.split()[0] for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return {name: names.count(name) for name in COUNTED if name in names}

    def measure(self, command: list[str]) -> Measured:
        """Run a command to its end."""
        self.log.unlink(missing_ok=True)
        with (self.base / "out").open("wb") as out:
            began = time.perf_counter()
            process = subprocess.Popen(command, env=self.environ, stdout=out, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - began
        said = (self.base / "out").read_text()
        if status:
            raise SystemExit(f"{' '.join(command)} failed:\n{said}")
        return Measured(seconds, usage.ru_maxrss / 1024, self.calls(), said)

    def partition(self, state: str) -> None:
        """DOWN takes jobs and starts none."""
        self.cluster.ask("scontrol", "update", "partitionname=main", f"state={state}")


def thousand(bench: Bench, points: int) -> Measured:
    """Submit, submit again, status twice; returns the first."""
    seeds = f"sweep.seeds=[{','.join(map(str, range(points // 4)))}]"
    sweep = ["sweep=smoke", "sweep.budgets=[1e10]", seeds, f"root={bench.base / 'runs'}"]
    unspecified = ["data=unspecified", "data.sequence=96", "data.vocabulary=256"]
    external = 'trainer.command="{python} -m trainer.examples.law_trainer {folder}"'
    arguments = [*sweep, *unspecified, external, *ON_SLURM]
    bench.partition("DOWN")
    plan = bench.measure([*ISOFLOP, "plan", *arguments])
    submitted = bench.measure([*ISOFLOP, "submit", *arguments])
    queued = len(bench.cluster.jobs())
    print(f"plan of {points} points:          {plan}")
    print(f"submit of {points} points:        {submitted}; {queued} tasks are queued")
    print(f"submit again:                 {bench.measure([*ISOFLOP, 'submit', *arguments])}")
    status = bench.measure([*ISOFLOP, "status", *arguments, "format=json"])
    states = [point["state"] for point in json.loads(status.out)["points"]]
    print(f"status of {points} points:        {status}; {states.count('queued')} queued")
    pretend_work(SweepFolder.of(str(bench.base / "runs"), "smoke"))
    status = bench.measure([*ISOFLOP, "status", *arguments, "format=json"])
    states = [point["state"] for point in json.loads(status.out)["points"]]
    print(f"status, 200 rows each:        {status}; {states.count('running')} running, {states.count('done')} done")
    bench.cluster.ask("scancel", "--partition=main")
    bench.partition("UP")
    return submitted


def pretend_work(folder: SweepFolder) -> None:
    """Leave what 1,000 runs leave that this process trains; every second one has ended."""
    now, pid = time.time(), os.getpid()
    row = {"tokens": 1, "flops": 1e9, "train_loss": 3.2123456, "lr": 1.23456e-3, "grad_norm": 1.2345678, "attempt": 0}
    rows = [row | {"step": step, "tokens_per_second": 12345.678, "time": now} for step in range(200)]
    for number, run in enumerate(folder.runs()):
        run.start_attempt("benchmark/0", 0)
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if number % 2:
            config = run.read_config()
            ended = {"point_id": run.run_id, "tokens": config.recipe.tokens, "loss": 3.0, "verdict": "done"}
            run.write_point(final_record(config, **ended))
            run.end_attempt(0, "done")
        else:
            held = {"token": "", "host": socket.gethostname(), "pid": pid, "born": process_birth(pid), "job": ""}
            (run.path / "lock").write_text(json.dumps(held))


def hydra(bench: Bench, points: int, python: str) -> float:
    """Seconds until Hydra's launcher has made its last call of sbatch."""
    (bench.base / "app.py").write_text(HYDRA_APP)
    values = ",".join(map(str, range(points)))
    options = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=main", f"+seed={values}"]
    options += [f"hydra.sweep.dir={bench.base / 'multirun'}", "hydra.launcher.array_parallelism=256"]
    bench.partition("DOWN")
    bench.log.unlink(missing_ok=True)
    began = time.time()
    with (bench.base / "hydra.out").open("wb") as out:
        launcher = subprocess.Popen(
            [python, str(bench.base / "app.py"), "-m", *options], env=bench.environ, stdout=out, stderr=out
        )
        try:
            until(lambda: len(bench.cluster.jobs()) == points or launcher.poll() is not None, 600)
        finally:
            launcher.send_signal(signal.SIGKILL)
            launcher.wait()
    made = [float(line.split()[1]) for line in bench.log.read_text().splitlines() if line.startswith("sbatch ")]
    bench.cluster.ask("scancel", "--partition=main")
    bench.partition("UP")
    print(f"Hydra's submitit launcher:    {made[-1] - began:.2f} s to its last of {len(made)} sbatch, then it blocks")
    return made[-1] - began


def first_step(bench: Bench) -> None:
    """One run of the project's own trainer: from the birth of its process to its first row, less its imports."""
    root = bench.base / "one"
    run = ["sweep=smoke", "sweep.budgets=[1e11]", "sweep.sizes=1", f"root={root}"]
    imports = [sys.executable, "-c", "import submitit, sweeps.dispatch.worker, trainer.loop, trainer.tracking"]
    imported = min(bench.measure(imports).seconds for _ in range(3))
    bench.measure([*ISOFLOP, "submit", *run, *ON_SLURM])
    folder = SweepFolder.of(str(root), "smoke")
    until(lambda: any(holder_of(path) for path in folder.path.glob("*/lock")), 120)
    (born,) = {holder_of(path) for path in folder.path.glob("*/lock")}
    (path,) = folder.runs()
    until(path.metrics, 120)
    first = path.metrics()[0]
    rows = path.metrics()[0]["step"] + 1
    whole = first["time"] - born
    print(
        f"job start to first row:       {whole:.2f} s, of which imports {imported:.2f} s and {rows} steps; "
        f"the rest {whole - imported:.2f} s"
    )
    bench.cluster.ask("scancel", "--partition=main")


def holder_of(lock: Path) -> float:
    """When the process that holds a lock was born, by the wall clock; 0 if nobody does."""
    who = holder(lock.parent)
    if who is None:
        return 0.0
    (since,) = [line.split()[1] for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime")]
    return float(since) + int(who.born.rpartition("/")[2]) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    if (reason := missing()) is not None:
        raise SystemExit(reason)
    points = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    base = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
    bench = Bench(base)
    try:
        bench.cluster.start()
        ours = thousand(bench, points)
        if len(sys.argv) > 2:
            print(f"ours returns {hydra(bench, points, sys.argv[2]) / ours.seconds:.1f} times faster")
        first_step(bench)
    finally:
        bench.cluster.stop()
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
