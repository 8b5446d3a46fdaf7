"""Compiles the step for this processor, once per machine: the library is kept in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from trainer.config import Precision
from trainer.shape import Shape

SOURCES = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread")
COMPILERS = ("g++", "clang++", "c++")
NATIVE = "native"
"""The C++ step's name among a run's kernels."""
SWITCH = "ISOFLOP_NATIVE"
"""Environment variable: 0 leaves the C++ step out."""

CHUNK_TOKENS = 512
"""Whole sequences of about so many tokens are taken through the C++ step together. On cores with 1 MiB of cache this is
within 3 % of the best for models of 50 thousand to 3 million parameters; a rule, as the choice moves the last bits."""


class Spec(ctypes.Structure):
    """``struct Spec`` of step.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layers", "width", "heads", "head_size", "ffw", "vocabulary")),
        *((name, ctypes.c_int64) for name in ("sequence", "activation", "learned_positions", "tied_head", "params")),
        ("query_scale", ctypes.c_double),
        ("z_loss", ctypes.c_double),
        ("angles", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
    ]


def chunk_of(shape: Shape) -> int:
    """Sequences that the C++ step takes through a model together."""
    return max(1, CHUNK_TOKENS // shape.sequence)


def knows(shape: Shape) -> bool:
    """Whether the step can compute all that a shape asks for."""
    return not shape.qk_norm


def compiler_for(precision: str) -> str | None:
    """What would compile the step here; None where there is none, or no such arithmetic, or it is switched off."""
    if os.environ.get(SWITCH) == "0" or (precision == Precision.bf16 and "avx512_bf16" not in _processor_flags()):
        return None
    return next(filter(None, map(shutil.which, COMPILERS)), None)


@functools.cache
def library(precision: str) -> ctypes.CDLL | None:
    """The step in ``fp32``, ``bf16`` or ``fp64``; None where there is no compiler, or no such arithmetic."""
    compiler = compiler_for(precision)
    if compiler is None:
        return None
    try:
        found = ctypes.CDLL(str(_compiled(compiler, precision)))
    except (OSError, RuntimeError, subprocess.CalledProcessError):  # no home, a full disk, a compiler that cannot
        return None
    found.isoflop_make.argtypes = [ctypes.POINTER(Spec), ctypes.c_int64, ctypes.c_int64]
    found.isoflop_make.restype = ctypes.c_void_p
    found.isoflop_free.argtypes = [ctypes.c_void_p]
    found.isoflop_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    found.isoflop_run.restype = ctypes.c_double
    return found


def cache_folder() -> Path:
    """Where compiled libraries lie."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "isoflop"


def _compiled(compiler: str, precision: str) -> Path:
    """The library's path; compiled first if it is not there. Several processes may do so at once."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    parts = [source.read_text() for source in sorted(SOURCES.glob("*.?pp"))]
    key = hashlib.sha256("\0".join([*parts, *FLAGS, version, _processor_flags(), precision]).encode()).hexdigest()[:16]
    path = cache_folder() / f"step-{precision}-{key}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            command = [compiler, *FLAGS, f"-DPRECISION={precision}", str(SOURCES / "step.cpp"), "-o", str(made)]
            subprocess.run(command, capture_output=True, check=True)
            made.replace(path)
    return path


@functools.cache
def _processor_flags() -> str:
    """What this processor can, as Linux says; elsewhere nothing is known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
