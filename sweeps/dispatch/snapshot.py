"""What a submission ran: a copy of the packages that its jobs import, and a record of everything else they found.

Kept once per content under ``<root>/<sweep>/code/<hash>/``: a job that is requeued next week runs what was submitted.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sweeps.paths import SweepFolder
from trainer.files import disk_faults, write_json, write_whole

PACKAGES = ("conf", "sweeps", "trainer", "analysis")
CODE = (".py", ".yaml", ".csv", ".cpp", ".hpp")
"""How the names of their files end, as far as a program reads them."""
HERE = Path(__file__).resolve().parents[2]
"""The folder that holds the packages."""


def take(folder: SweepFolder, source: Path = HERE) -> Path:
    """The snapshot of the code as it is now, made unless the sweep has it."""
    files = {path.relative_to(source): path.read_bytes() for name in PACKAGES for path in _files(source / name)}
    found = versions()
    mark = hashlib.sha256(json.dumps(found, sort_keys=True).encode())
    for name, content in sorted(files.items()):
        mark.update(f"{name}\0{len(content)}\0".encode() + content)
    place = folder.path / "code" / mark.hexdigest()[:12]
    if place.exists():
        return place
    making = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    with disk_faults(place):
        for name, content in files.items():
            (making / name).parent.mkdir(parents=True, exist_ok=True)
            (making / name).write_bytes(content)
        commit, difference = git(source)
        write_whole(making / "changes.diff", difference)
        write_json(making / "versions.json", {"git": commit, "versions": found})
        try:
            making.rename(place)
        except OSError:  # another submit was quicker
            shutil.rmtree(making)
            if not place.exists():
                raise
    return place


def versions() -> dict[str, str]:
    """Python and every distribution installed here, by the names of their ``.dist-info`` folders.

    A thousand times as fast as :mod:`importlib.metadata`, which reads each one's description: every task asks.
    """
    found = {"python": platform.python_version()}
    for place in sys.path:
        with suppress(OSError):  # a zip file, or a folder that is not there
            for entry in os.scandir(place or "."):
                if entry.name.endswith(".dist-info"):
                    name, _, version = entry.name.removesuffix(".dist-info").rpartition("-")
                    found.setdefault(name.lower(), version)
    return found


def changes(place: Path) -> list[str]:
    """How the packages installed here differ from those of the submission; empty where they do not."""
    try:
        then: Mapping[str, str] = json.loads((place / "versions.json").read_text())["versions"]
    except (OSError, ValueError, KeyError):
        return []
    now = versions()
    names = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    return [f"{name} {then.get(name, 'absent')} -> {now.get(name, 'absent')}" for name in names]


def git(source: Path) -> tuple[str | None, str]:
    """The commit of a checkout, and what differs from it; nothing where there is none."""
    said = []
    tracked = ("ls-files", "--error-unmatch", "sweeps/__init__.py")  # not a checkout of something else around us
    for command in (tracked, ("rev-parse", "HEAD"), ("diff", "HEAD", "--", *PACKAGES)):
        try:
            answer = subprocess.run(
                ["git", *command], cwd=source, capture_output=True, text=True, errors="replace", timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None, ""
        if answer.returncode:
            return None, ""
        said.append(answer.stdout)
    return said[1].strip(), said[2]


def _files(package: Path) -> list[Path]:
    return [path for path in package.rglob("*") if path.is_file() and path.suffix in CODE]
