"""The configuration files of a SLURM cluster of several nodes that runs on one machine, without root or systemd."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GPU_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "kmsg")
"""SLURM wants a device file per GPU, each another one: these exist everywhere."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """One free TCP port per daemon."""

    slurmctld: int
    slurmdbd: int
    mariadbd: int
    slurmd: tuple[int, ...]

    @classmethod
    def free(cls, nodes: int) -> Ports:
        """A row of ports that nobody listens on now, below those that the kernel gives to whoever asks for any.

        From a random place: a daemon of another cluster that is down for a moment wants its own port back.
        """
        while True:
            first = random.randrange(10_000, 32_000)
            ports = range(first, first + 3 + nodes)
            with suppress(OSError):
                for port in ports:
                    socket.create_server(("127.0.0.1", port)).close()
                slurmctld, slurmdbd, mariadbd, *slurmd = ports
                return cls(slurmctld=slurmctld, slurmdbd=slurmdbd, mariadbd=mariadbd, slurmd=tuple(slurmd))


def write_files(base: Path, ports: Ports, user: str) -> None:
    """Write what the daemons read into ``base/etc``."""
    etc = base / "etc"
    for name in ("etc", "run", "log", "state", "spool", "munge", "mysql"):
        (base / name).mkdir(parents=True, exist_ok=True)
    nodes = [f"n{number + 1}" for number in range(len(ports.slurmd))]
    (etc / "slurm.conf").write_text(_slurm(base, ports, user, nodes))
    (etc / "slurmdbd.conf").write_text(_slurmdbd(base, ports, user))
    (etc / "slurmdbd.conf").chmod(0o600)
    (etc / "my.cnf").write_text(_mariadb(base, ports))
    (etc / "cgroup.conf").write_text("CgroupPlugin=autodetect\n")
    gpus = (f"NodeName={','.join(nodes)} Name=gpu File=/dev/{device}\n" for device in GPU_DEVICES)
    (etc / "gres.conf").write_text("".join(gpus))


def _slurm(base: Path, ports: Ports, user: str, nodes: list[str]) -> str:
    host = socket.gethostname().partition(".")[0]
    every = ",".join(nodes)
    described = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=64 RealMemory=256000 Gres=gpu:8"
        for node, port in zip(nodes, ports.slurmd, strict=True)
    )
    return f"""\
ClusterName=sweep
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports.slurmctld}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CryptoType=crypto/munge
# cred_expire: a requeued job waits that long and a second, 120 s if not stated
AuthInfo=socket={base}/run/munge.sock,cred_expire=5,ttl=300
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports.slurmdbd}
# the socket: without it slurmctld ends with "no TRES"
AccountingStoragePass={base}/run/munge.sock
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES=gres/gpu
MailProg=/bin/true
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,default_queue_depth=2000
SlurmctldParameters=preempt_send_user_signal
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PriorityType=priority/multifactor
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PreemptExemptTime=00:00:00
JobRequeue=1
MaxArraySize=100001
MaxJobCount=120000
MinJobAge=300
SlurmctldTimeout=10
# a lost node is down after 15 s rather than minutes
SlurmdTimeout=3
InactiveLimit=0
KillWait=5
OverTimeLimit=0
MessageTimeout=10
BatchStartTimeout=10
CompleteWait=0
EpilogMsgTime=10
PropagateResourceLimits=NONE
GresTypes=gpu
# lets a laptop be declared as nodes of 64 CPUs
SlurmdParameters=config_overrides
{described}
PartitionName=main Nodes={every} Default=YES MaxTime=2-00:00:00 DefaultTime=60 DefMemPerCPU=100 PriorityTier=10 \
PreemptMode=OFF
PartitionName=scavenge Nodes={every} MaxTime=INFINITE DefaultTime=60 DefMemPerCPU=100 PriorityTier=1 \
PreemptMode=REQUEUE GraceTime=10 LLN=YES
PartitionName=nograce Nodes={every} MaxTime=INFINITE DefaultTime=60 DefMemPerCPU=100 PriorityTier=1 \
PreemptMode=REQUEUE GraceTime=0 LLN=YES
PartitionName=short Nodes={every} MaxTime=00:01:00 DefaultTime=1 DefMemPerCPU=100 PriorityTier=10 PreemptMode=OFF
"""


def _slurmdbd(base: Path, ports: Ports, user: str) -> str:
    return f"""\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={ports.slurmdbd}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={base}/run/munge.sock
LogFile={base}/log/slurmdbd.log
PidFile={base}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports.mariadbd}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
CommitDelay=0
"""


def _mariadb(base: Path, ports: Ports) -> str:
    return f"""\
[mysqld]
datadir={base}/mysql
socket={base}/run/mysql.sock
pid-file={base}/run/mariadbd.pid
log-error={base}/log/mariadbd.log
bind-address=127.0.0.1
port={ports.mariadbd}
skip-name-resolve
skip-log-bin
innodb_buffer_pool_size=128M
innodb_log_file_size=64M
innodb_lock_wait_timeout=900
innodb_flush_log_at_trx_commit=0
performance_schema=OFF
"""
