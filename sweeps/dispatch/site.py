"""The site a SLURM sweep is submitted to: what its tasks may ask for, and what it would refuse, a sentence each."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from pathlib import Path

from sweeps.config import ClusterConfig, Config
from sweeps.dispatch.partitions import Partition, max_array_size, minutes, partitions
from sweeps.dispatch.resources import Array, Site
from sweeps.dispatch.slurm import Refused, Silent
from trainer.config import DeviceKind
from trainer.errors import MachineFault, UserError

DAY_HOURS = 24.0
MEMORY_FIX = "set cluster.memory_gb (per device) if it truly takes less"
OWN_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run")
"""Folders that every machine has for itself."""
OWN_FILESYSTEMS = ("tmpfs", "ramfs", "overlayfs")
OURS = ("job_name", "array", "dependency")
"""Of sbatch's options, those that only isoflop can set: by the first it finds its jobs again."""
REASONS = (
    (
        "submit limit|QOS policy|MaxSubmit|QOSMax|AssocMax|Assoc.*Limit",
        "set cluster.max_submit to what the site lets you queue, or ask for less",
    ),
    ("account", "correct cluster.account={account}"),
    ("qos", "correct cluster.qos={qos}"),
    ("reservation", "correct cluster.reservation={reservation}"),
    ("feature|constraint", "correct cluster.constraint={constraint}"),
    (
        "node config|memory spec|cpu count|gres",
        "no node has {need}; lower what a task asks for, or change the partition",
    ),
    ("time limit", "lower cluster.max_hours"),
    ("array", "set cluster.max_submit"),
)
"""What sbatch says, and what to change."""


def find_site(config: Config, root: Path) -> Site:
    """What the site lets tasks ask for.

    Raises
    ------
    UserError
        If there is no sbatch, no such partition, a limit over the partition's, or a root that nodes cannot see.
    MachineFault
        If SLURM does not answer.
    """
    cluster = config.cluster
    if shutil.which("sbatch") is None:
        raise UserError(
            "cluster=slurm, but there is no sbatch on PATH; submit from a login node of the cluster, load its SLURM "
            "module first, or choose cluster=local."
        )
    try:
        known, most = partitions(), max_array_size()
    except (Refused, Silent) as error:
        raise MachineFault(f"SLURM does not answer ({error}); nothing was submitted, try again.") from None
    chosen = _chosen(cluster, known)
    _check_root(cluster, chosen, root)
    if most < 1:
        raise UserError("this SLURM takes no arrays (MaxArraySize=0), which isoflop submits; ask its administrators.")
    gpus = config.device.kind is DeviceKind.cuda
    longest = min((partition.minutes for partition in chosen), default=float("inf")) / 60
    if cluster.max_hours is not None and cluster.max_hours > longest:
        raise UserError(
            f"cluster.max_hours={cluster.max_hours:g} is over the {longest:.3g} hours that partition {_names(chosen)} "
            "allows; lower it, or choose another cluster.partition."
        )
    _check_passed_through(cluster)
    own = str(cluster.sbatch.get("time", ""))
    if own and minutes(own) > longest * 60:
        raise UserError(
            f"cluster.sbatch.time={own} is over the {longest:.3g} hours that partition {_names(chosen)} allows; leave "
            "it out, or choose another cluster.partition."
        )
    ours = not {"mem", "mem_per_cpu", "mem-per-cpu"} & set(cluster.sbatch)
    return Site(
        gpus=gpus,
        devices_per_node=_devices_per_node(cluster, chosen) if gpus else cluster.devices_per_node or 1,
        cpus_per_device=cluster.cpus_per_device or config.trainer.threads,
        memory_gb=cluster.memory_gb,
        max_hours=cluster.max_hours or min(longest, DAY_HOURS),
        margin=cluster.margin,
        pack_hours=cluster.pack_hours,
        per_device=cluster.per_device,
        ceiling=cluster.max_gpus,
        max_tasks=cluster.max_submit,
        max_array=max(1, most - 1),
        cpus=max((partition.cpus for partition in chosen), default=math.inf),
        node_memory_gb=max((partition.memory_mb / 1024 for partition in chosen if ours), default=math.inf),
        nodes=max((partition.nodes for partition in chosen), default=math.inf),
    )


def check_arrays(arrays: list[Array], site: Site) -> None:
    """Refuse what the limits can never let start.

    Raises
    ------
    UserError
        If a task needs more than a node or the partition has, or is wider than the ceiling, or more tasks are left
        than the site takes.
    """
    needs = [array.resources for array in arrays]
    for what, most, wanted, fix in (
        (
            "CPUs on a node",
            site.cpus,
            [need.cpus for need in needs],
            "lower cluster.cpus_per_device or cluster.per_device",
        ),
        ("GB of memory on a node", site.node_memory_gb, [need.memory_gb or 0 for need in needs], MEMORY_FIX),
        ("nodes", site.nodes, [need.nodes for need in needs], "lower sweep.sizes or sweep.budgets"),
    ):
        if max(wanted, default=0) > most:
            raise UserError(
                f"a point needs {max(wanted)} {what}, but the partition has {most:.4g} at most; {fix}, or choose "
                "another cluster.partition."
            )
    widest = max((array.resources.nodes * array.resources.devices for array in arrays), default=0)
    if site.ceiling is not None and widest > site.ceiling:
        raise UserError(
            f"cluster.max_gpus={site.ceiling}, but a point needs {widest} devices at once; raise it or drop that."
        )
    count = sum(len(array.tasks) for array in arrays)
    if site.max_tasks is not None and count > site.max_tasks:
        raise UserError(
            f"cluster.max_submit={site.max_tasks + site.queued}, of which {site.queued} are taken, but the sweep needs "
            f"{count} tasks more; raise it, or submit again when some have ended."
        )


def _check_passed_through(cluster: ClusterConfig) -> None:
    """Refuse options of sbatch that would undo what isoflop relies on."""
    for name, value in cluster.sbatch.items():
        if name.replace("-", "_") in OURS:
            raise UserError(f"cluster.sbatch.{name}={value} is isoflop's own to set; leave it out.")
    limit = cluster.sbatch.get("time")
    if isinstance(limit, int):
        raise UserError(
            f"cluster.sbatch.time={limit} is a number, as which YAML also reads 12:00:00; quote it, or use "
            "cluster.max_hours."
        )


def refusal(error: Refused, config: Config, array: Array) -> UserError:
    """What sbatch said, as a sentence with the field to change."""
    need = array.resources
    asked = f"{need.devices} devices and {need.cpus} CPUs" + (f" and {need.memory_gb} GB" if need.memory_gb else "")
    fields = {name: getattr(config.cluster, name) for name in ("account", "qos", "reservation", "constraint")}
    fixes = (fix for pattern, fix in REASONS if re.search(pattern, str(error), re.IGNORECASE))
    fix = next(fixes, "change cluster.* so that sbatch takes it")
    return UserError(f"sbatch refused the jobs: {error}; {fix.format(need=asked, **fields)}. Nothing was submitted.")


def _chosen(cluster: ClusterConfig, known: dict[str, Partition]) -> list[Partition]:
    asked = cluster.sbatch.get("partition", cluster.partition)
    wanted = asked.split(",") if asked else [p.name for p in known.values() if p.default]
    for name in wanted:
        if name not in known:
            raise UserError(f"cluster.partition={asked}: there is no partition {name}; choose from {', '.join(known)}.")
    return [known[name] for name in wanted]


def _devices_per_node(cluster: ClusterConfig, chosen: list[Partition]) -> int:
    most = max((partition.gpus for partition in chosen), default=0)
    if {"gres", "gpus", "gpus_per_node", "gpus-per-node"} & set(cluster.sbatch):
        return cluster.devices_per_node or most or 1
    if not most:
        raise UserError(
            f"device.kind=cuda, but the nodes of partition {_names(chosen) or '(none chosen)'} have no GPUs; choose "
            "another cluster.partition, or device=cpu."
        )
    if cluster.devices_per_node > most:
        raise UserError(
            f"cluster.devices_per_node={cluster.devices_per_node}, but the nodes of partition {_names(chosen)} have "
            f"{most} GPUs; lower it, or choose another cluster.partition."
        )
    return cluster.devices_per_node or most


def _check_root(cluster: ClusterConfig, chosen: list[Partition], root: Path) -> None:
    """Refuse a folder that compute nodes have for themselves; one machine that is its own cluster may use any."""
    if not cluster.check_root or all(partition.here for partition in chosen):
        return
    place = root.resolve()
    why = next((f"below {own}" for own in OWN_FOLDERS if place.is_relative_to(own)), None) or _own_filesystem(place)
    if why is not None:
        raise UserError(
            f"root={root} lies {why}, which compute nodes do not share; choose a folder on the shared file system "
            "with root=, or add cluster.check_root=false if they do."
        )


def _own_filesystem(place: Path) -> str | None:
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    try:
        said = subprocess.run(
            ["stat", "-f", "-c", "%T", str(there)], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    kind = said.stdout.strip()
    return f"on a {kind} of this machine" if kind in OWN_FILESYSTEMS else None


def _names(chosen: list[Partition]) -> str:
    return ",".join(partition.name for partition in chosen)
