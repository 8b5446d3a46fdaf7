"""A real SLURM cluster in a folder, as any user: accounting, four nodes with eight pretended GPUs each.

    python tests/slurm_cluster.py start FOLDER     # prints the line that points SLURM's commands at it
    python tests/slurm_cluster.py stop FOLDER

Partitions: ``main`` (preempts the next two), ``scavenge`` (ten seconds of grace and a signal), ``nograce``, ``short``
(a minute at most). Account ``lab``. Programs that stop daemons know them by the pid files in the folder.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slurm_files import Ports, write_files

from trainer.lock import process_birth

PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacctmgr")
PACKAGES = "slurm-wlm slurmdbd munge mariadb-server"
NODES = ("n1", "n2", "n3", "n4")
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", *NODES)
"""In the order of their start."""
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
"""Daemons live where the PATH of ordinary users does not look."""
DATABASE = """\
CREATE DATABASE slurm_acct;
CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';
GRANT ALL ON slurm_acct.* TO 'slurm'@'127.0.0.1';
"""
ACCOUNTS = (
    "add cluster sweep",
    "add account lab Description=lab Organization=lab",
    "add user {user} Account=lab",
)


def missing() -> str | None:
    """Why no cluster can run here, and what helps; None where one can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if not absent:
        return None
    return f"no {', '.join(absent)} here; on Debian: apt-get install --no-install-recommends {PACKAGES}"


class Cluster:
    """The cluster of one folder; daemons are named as in ``DAEMONS``."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.conf = base / "etc" / "slurm.conf"
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        self.environ |= {"SLURM_CONF": str(self.conf), "PATH": PATH}
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start every daemon that does not run, the first time with a new database; returns when jobs can start."""
        if self.conf.exists():
            self._start(new=False)
            return
        # One new cluster at a time: mariadb-install-db fails beside another.
        with (Path(tempfile.gettempdir()) / f"slurm-cluster-{os.getuid()}.lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            self._start(new=True)

    def _start(self, *, new: bool) -> None:
        if new:
            (self.base / "etc").mkdir(parents=True)
            ports = Ports.free(len(NODES))
            (self.base / "etc" / "ports.json").write_text(json.dumps(asdict(ports)))
            write_files(self.base, ports, getpass.getuser())
            (self.base / "etc" / "munge.key").write_bytes(os.urandom(1024))
            (self.base / "etc" / "munge.key").chmod(0o400)
            self._install_database()
        for name in ("munged", "mariadbd"):
            self.start_daemon(name)
        if new:
            self._ask("mariadb", f"--socket={self.base}/run/mysql.sock", "--user=root", stdin=DATABASE)
        self.start_daemon("slurmdbd")
        if new:
            for words in ACCOUNTS:
                self.sacctmgr(*words.format(user=getpass.getuser()).split())
        for name in ("slurmctld", *NODES):
            self.start_daemon(name)
        until(self.ready, 60)

    def stop(self) -> None:
        """Stop every daemon and whatever its jobs left running."""
        for name in reversed(DAEMONS):
            self.stop_daemon(name)
        for node in NODES:
            for pid in self.processes(node):
                _signal(pid, signal.SIGKILL)

    def start_daemon(self, name: str) -> None:
        """Start a daemon, and what it does not start without, unless it runs; wait until it answers."""
        if self.pid(name) is not None:
            return
        if name == "slurmdbd":
            self.start_daemon("mariadbd")
        if name == "slurmctld":  # killed before it had saved what it knows of accounts, it starts with accounting only
            self.start_daemon("mariadbd")
            self.start_daemon("slurmdbd")
        with suppress(FileNotFoundError):
            self._pid_file(name).unlink()
        with (self.base / "log" / f"{name}.out").open("ab") as out:
            # munged keeps what it inherits: a reader of our pipe would wait for it for ever
            self._started[name] = subprocess.Popen(
                self._command(name),
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                close_fds=True,
                start_new_session=True,
            )
        until(lambda: self.pid(name) is not None and self._answers(name), 60)

    def stop_daemon(self, name: str) -> None:
        """Ask a daemon to end; ten seconds later end it."""
        pid = self.pid(name)
        if pid is None:
            return
        _signal(pid, signal.SIGTERM)
        with suppress(AssertionError):
            until(lambda: self.pid(name) is None, 10)
        self.kill_daemon(name)

    def kill_daemon(self, name: str) -> None:
        """``kill -9`` of a daemon alone: what a dead slurmd had started goes on."""
        if (pid := self.pid(name)) is not None:
            _signal(pid, signal.SIGKILL)
            until(lambda: self.pid(name) is None, 10)

    def fail_node(self, node: str) -> None:
        """What a power cut does: slurmd, its step daemons and every process of its jobs are gone at once."""
        self.kill_daemon(node)
        while pids := self.processes(node):  # again, for what a process began while we looked
            for pid in pids:
                _signal(pid, signal.SIGKILL)
            time.sleep(0.05)

    def pid(self, name: str) -> int | None:
        """The daemon's process; None if it does not run."""
        try:
            number = int(self._pid_file(name).read_text())
            program = Path(f"/proc/{number}/comm").read_text().strip()
        except (OSError, ValueError):
            return None
        wanted = "slurmd" if name in NODES else name
        return number if program == wanted and process_birth(number) is not None else None

    def processes(self, node: str, job: str | None = None) -> list[int]:
        """The step daemons and job processes of a node, or of one of its jobs."""
        log = str(self.base / "log" / f"{node}.log")
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (place / "comm").read_text().strip() == "slurmstepd":
                    ours = any(str(handle.readlink()) == log for handle in (place / "fd").iterdir())
                    title = (place / "cmdline").read_bytes().decode(errors="replace")
                    ours = ours and (job is None or f"[{job}." in title)
                else:
                    words = set((place / "environ").read_bytes().decode(errors="replace").split("\0"))
                    wanted = {f"SLURM_CONF={self.conf}", f"SLURMD_NODENAME={node}"}
                    ours = wanted | ({f"SLURM_JOB_ID={job}"} if job else set()) <= words
                if ours:
                    found.append(int(place.name))
        return found

    def ask(self, *command: str) -> str:
        """What one of SLURM's commands prints."""
        return self._ask(*command)

    def sacctmgr(self, *words: str) -> str:
        """Change accounting; ``-i``, for else it asks on a closed stdin for ever."""
        return self._ask("sacctmgr", "-i", *words)

    def jobs(self) -> dict[str, dict[str, str]]:
        """The queue: job id (``12_3`` in an array) -> state, node, job (the number of its own), partition and name."""
        lines = self._ask("squeue", "--noheader", "--array", "--format=%i|%T|%N|%A|%P|%j").splitlines()
        fields = ("state", "node", "job", "partition", "name")
        return {key: dict(zip(fields, rest, strict=True)) for key, *rest in (line.split("|") for line in lines)}

    def node_states(self) -> dict[str, str]:
        """Node -> state, such as ``idle``, ``mixed`` and ``down*``."""
        lines = self._ask("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T").splitlines()
        return {line.split()[0]: line.split()[1] for line in lines}

    def ready(self) -> bool:
        """Whether every node can take jobs."""
        with suppress(subprocess.CalledProcessError):
            return set(self.node_states().values()) <= {"idle", "mixed", "allocated"}
        return False

    def clear(self) -> None:
        """Mend whatever a test broke: every daemon runs, every node is up, no job is left."""
        self.start()
        self._ask("scancel", "--full", f"--user={getpass.getuser()}")
        for job in {job["job"] for job in self.jobs().values()}:
            with suppress(subprocess.CalledProcessError):
                self._ask("scancel", "--signal=KILL", "--full", job)
        until(lambda: not self.jobs(), 90)
        for node in NODES:
            for pid in self.processes(node):
                _signal(pid, signal.SIGKILL)
        until(lambda: set(self.node_states().values()) == {"idle"}, 60)

    def _pid_file(self, name: str) -> Path:
        return self.base / "run" / f"{name}.pid"

    def _answers(self, name: str) -> bool:
        """Whether a daemon takes requests."""
        asked = {
            "munged": ["munge", "--no-input", f"--socket={self.base}/run/munge.sock"],
            "mariadbd": ["mariadb-admin", f"--socket={self.base}/run/mysql.sock", "--user=root", "ping"],
            "slurmdbd": ["sacctmgr", "--noheader", "list", "cluster"],
            "slurmctld": ["scontrol", "ping"],
        }
        if name in NODES:
            return True
        said = subprocess.run(asked[name], env=self.environ, capture_output=True, timeout=60, check=False)
        return said.returncode == 0

    def _command(self, name: str) -> list[str]:
        base, root = self.base, ["--user=root"] if os.getuid() == 0 else []
        if name == "munged":
            places = {"key-file": "etc/munge.key", "socket": "run/munge.sock", "pid-file": "run/munged.pid"}
            places |= {"log-file": "log/munged.log", "seed-file": "munge/seed"}
            return ["munged", "--force", "--num-threads=4", *(f"--{k}={base / v}" for k, v in places.items())]
        if name == "mariadbd":
            return ["mariadbd", f"--defaults-file={base}/etc/my.cnf", *root]
        if name not in NODES:
            return [name]
        return [*_own_hostname(name), "slurmd", "-N", name]

    def _install_database(self) -> None:
        root = ["--user=root"] if os.getuid() == 0 else []
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        self._ask("mariadb-install-db", f"--defaults-file={self.base}/etc/my.cnf", *root, *options)

    def _ask(self, *command: str, stdin: str = "") -> str:
        said = subprocess.run(
            command, env=self.environ, input=stdin, capture_output=True, text=True, timeout=120, check=False
        )
        if said.returncode:
            raise subprocess.CalledProcessError(said.returncode, command, said.stdout, said.stderr)
        return said.stdout


def until(condition: Callable[[], Any], seconds: float) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{condition} did not come true in {seconds:g} s"
        time.sleep(0.1)


def _own_hostname(name: str) -> list[str]:
    """What gives a command a host name, so that locks see several machines; nothing where the kernel forbids it."""
    user = [] if os.getuid() == 0 else ["--map-current-user", "--keep-caps"]
    command = ["unshare", *user, "--uts", "sh", "-c", f'hostname {name} && exec "$@"', "sh"]
    allowed = subprocess.run([*command, "true"], capture_output=True, env={"PATH": PATH}, check=False)
    return command if allowed.returncode == 0 else []


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def main() -> None:
    """Start or stop a cluster by hand."""
    verb, folder = sys.argv[1:]
    if (reason := missing()) is not None:
        raise SystemExit(reason)
    cluster = Cluster(Path(folder).absolute())
    cluster.start() if verb == "start" else cluster.stop()
    print(f"export SLURM_CONF={cluster.conf}")


if __name__ == "__main__":
    main()
