"""What every verb shares: Hydra's flags and grammar, one sentence for the user's mistakes, and the exit codes."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from trainer.errors import MachineFault, UserError

QUIET = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none")
"""Hydra composes; it writes no folders and no logs of its own."""

FREE_KEYS = re.compile(r"(columns|sweep\.axes|cluster\.sbatch)[.=]|validation\.")
"""Overrides of mappings with free keys, to which Hydra adds a key only after ``++``."""
FREE_TEXT = re.compile(
    r"(where|path|curves|root|out|separator|tokenizer|end_of_text|validation\.\w+|data\.path|sweep\.points"
    r"|forecast\.prior|trainer\.command|cluster\.container)=(?!null$|$|['\"\[])"
)
"""Overrides with a text that Hydra's grammar would read otherwise: queries, paths, commands."""
LITERAL = re.compile(r"(prompt)=(?!(['\"]).*\2$)", re.DOTALL)
"""Overrides with a text that means nothing but itself, not even where it looks like a null or an interpolation."""
LISTS = re.compile(r"(group_by)=(?!null$|$|\[)")
"""Overrides with a list that may be written with commas alone."""
SWITCHES = re.compile(r"(forecast)=(?=true$|false$)", re.IGNORECASE)
"""Nodes with a switch ``on``, named for it."""

OVERRIDE = re.compile(r"~|[+]{0,2}[A-Za-z_][^= ]*=")

given: list[str] = []
"""The arguments as the user gave them."""

INTERRUPTED = 130
"""The shells' exit code for Ctrl-C."""


def run_verb(config_name: str, body: Callable[[Any], int], intro: str) -> NoReturn:
    """Compose ``config_name`` from the command line, run ``body`` on it and leave with its exit code.

    ``body`` gets the composed ``DictConfig``; :func:`typed` makes dataclasses of it.
    """
    if sys.stdout is None:  # closed by the shell: there is nobody to tell
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    try:
        code = _compose_and_run(config_name, body, intro)
        sys.stdout.flush()
    except UserError as error:
        code = complain(error, error.exit_code)
    except MachineFault as error:
        code = complain(error, error.exit_code)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        _drop_stdout()
        code = 0
    except OSError as error:
        _drop_stdout()
        place = f" ({error.filename})" if error.filename else ""
        code = complain(f"the machine refuses: {error.strerror or error}{place}.", MachineFault.exit_code)
    sys.exit(code)


def _drop_stdout() -> None:
    """Let what is still buffered go nowhere, so that leaving does not fail over it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def again(verb: str, *more: str) -> str:
    """The command that does ``verb`` for what the user is doing now."""
    return shlex.join(["isoflop", verb, *given, *more])


def complain(error: object, code: int) -> int:
    """Print one sentence to stderr and pass the exit code on."""
    sys.stderr.write(f"isoflop: {error}\n")
    return code


def typed(config: Any) -> Any:
    """The composed config as the dataclasses of its schema.

    Raises
    ------
    UserError
        Naming the key, if a mandatory value is missing.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(sentence(error)) from None


def from_shell(argument: str) -> str:
    """An argument as a shell's user writes it, in Hydra's grammar: ``where=x == 'a'`` -> ``where='x == \\'a\\''``."""
    name, _, value = argument.partition("=")
    if name == "from":  # a Python keyword, so no field's name
        return f"source={value}"
    if LITERAL.match(argument):
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        return f"{name}={_quoted(value)}"
    if FREE_TEXT.match(argument):
        argument = f"{name}={_quoted(value)}"
    if FREE_KEYS.match(argument):
        return f"++{argument}"
    if LISTS.match(argument):
        return f"{name}=[{value}]"
    if SWITCHES.match(argument):
        return f"{name}.on={value}"
    return argument


def config_dirs() -> list[Path]:
    """The folders given with ``--config-dir``: a lab's own configs, which go before the project's."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return []
    sources = HydraConfig.get().runtime.config_sources
    return [Path(source.path) for source in sources if source.schema == "file" and source.provider == "command-line"]


def sentence(error: BaseException) -> str:
    """Hydra's and OmegaConf's messages, which take several lines, in one."""
    cause = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if cause is not None and str(error).startswith("Error merging override"):
        lines = [lines[0] + ":"] + [line.strip() for line in str(cause).splitlines() if line.strip()]
    kept = [line for line in lines if not re.match(r"(full_key|object_type|reference_type|at ):?", line)]
    key = next((line.partition(":")[2].strip() for line in lines if line.startswith("full_key:")), "")
    text = " ".join(kept)
    if key and key not in text:
        text = f"{key}: {text}"
    return text.rstrip(".") + "; see `--help` for what exists and `--cfg job` for the values."


def _compose_and_run(config_name: str, body: Callable[[Any], int], intro: str) -> int:
    if any(arg in ("-m", "--multirun") for arg in sys.argv[1:]):
        raise UserError(
            "-m/--multirun is not supported: list values in sweep.axes (e.g. sweep.axes.optim.lr=[1e-3,3e-3]) and "
            "seeds in sweep.seeds, and every point is planned together."
        )
    import hydra
    from hydra._internal.hydra import Hydra
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    from sweeps.config import register
    from sweeps.help import help_text

    register()
    outcome: list[int] = []
    failures: list[BaseException] = []

    def task(config: Any) -> None:
        # Hydra discards what a task returns and decorates what it raises, so both leave by the side door.
        os.environ.pop("HYDRA_FULL_ERROR", None)  # jobs inherit the environment
        try:
            outcome.append(body(config))
        except BaseException as error:
            failures.append(error)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints its own lines and exits 1
    given[:] = sys.argv[1:]
    overrides = [from_shell(argument) for argument in given if OVERRIDE.match(argument)]
    flags = [argument for argument in given if not OVERRIDE.match(argument)]
    # Hydra composes everything twice, first only to learn that this is no multirun.
    Hydra.get_mode = lambda self, config_name, overrides: RunMode.RUN  # type: ignore[method-assign]
    try:
        if {"-h", "--help"} & set(flags):
            sys.stdout.write(help_text(config_name, overrides, _dirs(flags), intro))
            return 0
        if not {"-sc", "--shell-completion"} & set(flags):
            sys.argv[1:] = [*flags, *QUIET, *overrides]  # argparse wants them apart
        hydra.main(config_path="pkg://conf", config_name=config_name, version_base="1.3")(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(sentence(error)) from None
    except yaml.YAMLError as error:
        raise UserError(f"a config file is no valid YAML: {' '.join(str(error).split())}.") from None
    if failures:
        raise failures[0]
    return outcome[0] if outcome else 0


def _dirs(flags: Sequence[str]) -> list[str]:
    """The folders of ``--config-dir`` among Hydra's flags."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd", action="append", default=[])
    folders: list[str] = parser.parse_known_args(flags)[0].config_dir
    return folders


def _quoted(text: str) -> str:
    """In single quotes; to Hydra a backslash is one more sign unless a quote follows."""
    escaped = re.sub(r"(\\+)(?='|\Z)", r"\1\1", text).replace("'", "\\'")
    return f"'{escaped}'"
