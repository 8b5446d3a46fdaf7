"""What SLURM says of its partitions and limits."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

from sweeps.dispatch.slurm import ask


@dataclass(frozen=True)
class Partition:
    """What sinfo says of a partition's largest nodes."""

    name: str
    default: bool
    minutes: float
    """Longest a job may take; infinite where there is no limit."""
    gpus: int
    cpus: int
    memory_mb: int
    nodes: int
    here: bool
    """Whether every node has an address of this machine alone."""


def partitions() -> dict[str, Partition]:
    """Every partition, from one sinfo."""
    found: dict[str, Partition] = {}
    for line in ask("sinfo", "--all", "--noheader", "--format=%P|%l|%c|%m|%G|%o|%D").splitlines():
        parts = line.strip().split("|")
        if len(parts) != 7:
            continue
        name = parts[0].removesuffix("*")
        one = Partition(
            name,
            parts[0].endswith("*"),
            minutes(parts[1]),
            sum(int(number) for number in re.findall(r"gpu(?::[^:(,]+)?:(\d+)", parts[4])),
            int(re.sub(r"\D", "", parts[2]) or 0),
            int(re.sub(r"\D", "", parts[3]) or 0),
            int(parts[6]),
            set(parts[5].split(",")) <= {"127.0.0.1", "localhost", os.uname().nodename},
        )
        known = found.get(name, one)
        found[name] = replace(
            one,
            gpus=max(one.gpus, known.gpus),
            cpus=max(one.cpus, known.cpus),
            memory_mb=max(one.memory_mb, known.memory_mb),
            nodes=one.nodes + (known.nodes if name in found else 0),
            here=one.here and known.here,
        )
    return found


def max_array_size() -> int:
    """Tasks of one array, at most."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.MULTILINE)
    return int(match[1]) if match else 1001


def minutes(limit: str) -> float:
    """SLURM's ``[days-]hours:minutes:seconds``, or shorter, in minutes; infinite for what is none."""
    days, _, rest = limit.rpartition("-")
    parts = rest.split(":")
    if limit.isdigit():
        return int(limit)
    if not all(part.isdigit() for part in parts):
        return float("inf")
    numbers = [int(part) for part in parts]
    if days:
        numbers += [0] * (3 - len(numbers))
    else:
        numbers = [0] * (3 - len(numbers)) + numbers
    return int(days or 0) * 1440 + numbers[0] * 60 + numbers[1] + numbers[2] / 60
