"""The command's surface: verbs, help, grammar, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answer
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sweeps.app import from_shell
from sweeps.cli import VERBS

Command = Callable[..., Answer]


def script(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """The installed command, in a process of its own."""
    return subprocess.run(
        [str(Path(sys.executable).parent / "isoflop"), *arguments],
        capture_output=True, text=True, timeout=120, cwd=cwd, env={**os.environ, **env}, check=False,
    )  # fmt: skip


def test_help_names_every_verb() -> None:
    said = script("--help")
    assert said.returncode == 0
    assert all(f"  {verb} " in said.stdout for verb in VERBS)
    assert said.stderr == ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(isoflop: Command, verb: str) -> None:
    said = isoflop(*verb.split(), "--help")
    assert said.code == 0
    assert said.out.startswith(f"isoflop {verb}")
    assert "Values, as these options give them" in said.out


def test_help_tells_what_each_value_is_now_and_means(isoflop: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    said = isoflop("plan", "--help", "sweep=smoke", "trainer.command=python t.py {folder}").out
    assert "  sweep.name=smoke                      Names the sweep's folder under root.\n" in said
    assert "  trainer.command=python t.py {folder}  An external trainer" in said
    assert "One of cosine, linear, wsd." in " ".join(said.split())
    assert "\nmodel: The family of shapes a sweep draws its sizes from (see sweeps.planning.ladder).\n" in said
    assert max(map(len, said.splitlines())) <= 140 and "``" not in said and ":mod:" not in said


def test_help_knows_a_labs_own_options(isoflop: Command, tmp_path: Path) -> None:
    lab = tmp_path / "sweep" / "ours.yaml"
    lab.parent.mkdir()
    lab.write_text("# @package _global_\nsweep: {name: ours_indeed, budgets: [3e14]}\n")
    said = isoflop("plan", "sweep=ours", "--config-dir", str(tmp_path), "--help").out
    assert "chinchilla, lr_probe, ours, quickstart" in said
    assert "sweep.name=ours_indeed" in said and "budgets=[3e14]" in said


def test_help_on_a_wrong_option_is_one_sentence(isoflop: Command) -> None:
    said = isoflop("plan", "sweep=nothing", "--help")
    assert said.code == 2 and "nothing" in said.sentence and not said.out


def test_an_unknown_verb_lists_those_there_are(isoflop: Command) -> None:
    said = isoflop("launch")
    assert said.code == 2
    assert "'launch' is no verb; choose one of run, plan, submit" in said.sentence
    for words in (["data"], ["data", "path=x"]):
        assert "'data' is no verb; choose one of data prepare, data check." in isoflop(*words).sentence


def test_cfg_shows_the_config_and_runs_nothing(isoflop: Command, tmp_path: Path) -> None:
    said = isoflop("run", "sweep=smoke", f"root={tmp_path}", "--cfg", "job")
    assert said.code == 0
    assert "name: smoke" in said.out
    assert not list(tmp_path.iterdir())


def test_a_verb_is_also_a_module(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "sweeps.plan", "sweep=chinchilla", f"root={tmp_path}", "format=json"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert len(json.loads(said.stdout)["points"]) == 81


def test_nothing_is_written_but_what_was_asked_for(tmp_path: Path) -> None:
    """No outputs/, no .hydra, no logs: from any folder."""
    assert script("plan", "sweep=chinchilla", f"root={tmp_path / 'root'}", cwd=tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert sorted(path.name for path in (tmp_path / "root" / "chinchilla").iterdir()) == [
        "pins.json",
        "plan.csv",
        "plan.json",
    ]


def loaded(*arguments: str) -> set[str]:
    """The modules a command has loaded when it leaves."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('LOADED', *sys.modules, file=sys.stderr))\n"
        "from sweeps.cli import main\n"
        "main()"
    )
    command = [sys.executable, "-c", code, *arguments]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "LOADED" in said.stderr
    return set(said.stderr.rpartition("LOADED")[2].split())


def test_no_torch_where_a_second_counts(tmp_path: Path) -> None:
    slow = {"torch", "wandb", "pandas", "scipy", "matplotlib", "plotly"}
    sweep = ["sweep=chinchilla", f"root={tmp_path}"]
    waiting = ["trainer.command=true", "sweep.budgets=[6e18]"]
    for verb in ("plan", "submit", "status", "cancel"):
        assert not slow & loaded(verb, *sweep, *waiting), verb
    assert not {"torch", "wandb"} & loaded("predict", "law=hoffmann2022", "flops=1e21")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("isoflop ", {"run", "plan", "predict"}),
        ("isoflop pl", {"plan"}),
        ("isoflop da", {"data"}),
        ("isoflop data ", {"prepare", "check"}),
        ("isoflop data prepare held", {"held_out="}),
        ("isoflop plan swe", {"sweep="}),
        ("isoflop plan sweep=", {"sweep=quickstart", "sweep=chinchilla"}),
        ("isoflop predict law=hoff", {"law=hoffmann2022", "law=hoffmann2022_tex"}),
    ],
)
def test_tab_completes_verbs_and_configs(line: str, words: set[str]) -> None:
    said = script("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert words <= set(said.stdout.split())
    assert "isoflop" in script("-sc", "install=bash").stdout


@pytest.mark.parametrize(
    ("argument", "hydra"),
    [
        ("columns.loss=val", "++columns.loss=val"),
        ("sweep.axes.optim.lr=[1,2]", "++sweep.axes.optim.lr=[1,2]"),
        ("where=decay == 'cosine'", "where='decay == \\'cosine\\''"),
        ("where='x > 1'", "where='x > 1'"),
        ("group_by=a,b", "group_by=[a,b]"),
        ("group_by=[a,b]", "group_by=[a,b]"),
        ("trainer.command=python t.py {folder}", "trainer.command='python t.py {folder}'"),
        ("trainer.command=null", "trainer.command=null"),
        ("path=a=b.csv", "path='a=b.csv'"),
        ("path=[a.txt,b.txt]", "path=[a.txt,b.txt]"),
        ("validation.web=web/*.jsonl", "++validation.web='web/*.jsonl'"),
        ("separator=<|end|>", "separator='<|end|>'"),
        ("separator=\\n\\n", "separator='\\n\\n'"),
        ("path=C:\\it's\\", "path='C:\\it\\'s\\\\'"),
        ("root=${oc.env:HOME}/runs", "root='${oc.env:HOME}/runs'"),
        ("root=/tmp/a(1)", "root='/tmp/a(1)'"),
        ("prompt=", "prompt=''"),
        ("prompt=null", "prompt='null'"),
        ("prompt='a'", "prompt='a'"),
        ("prompt='a", "prompt='\\'a'"),
        ("prompt=${x}", "prompt='\\${x}'"),
        ("optim.lr=3e-4", "optim.lr=3e-4"),
    ],
)
def test_arguments_are_taken_as_a_shell_gives_them(argument: str, hydra: str) -> None:
    assert from_shell(argument) == hydra


@given(
    st.lists(st.sampled_from(["\\", "'", '"', "${", "$", "{", "}", "[", ",", "=", "\n", " ", "a", "雪"])).map("".join)
)
def test_a_prompt_comes_through_as_it_was_typed(text: str) -> None:
    argument = from_shell(f"prompt={text}")
    assume(argument != f"prompt={text}")  # quoted as Hydra has it
    override = OverridesParser.create().parse_override(argument)
    value = OmegaConf.create({"prompt": override.value()})
    assert value.prompt == text


def test_groups_whose_names_look_alike_keep_their_own_folders(isoflop: Command, tmp_path: Path) -> None:
    path = points_csv(tmp_path / "points.csv", kind=["a/b"] * 8 + ["a_b"] * 7)  # type: ignore[arg-type]
    said = isoflop("fit", "source=csv", path, "group_by=kind", f"out={tmp_path / 'o'}", "fit.replicates=20")
    assert said.code == 0, said.err
    assert {"a_b", "a_b_2"} <= {item.name for item in (tmp_path / "o").iterdir()}


def test_a_lab_keeps_its_sweeps_in_its_own_folder(isoflop: Command, tmp_path: Path) -> None:
    (tmp_path / "lab" / "sweep").mkdir(parents=True)
    (tmp_path / "lab" / "law").mkdir()
    (tmp_path / "lab" / "law" / "ours2026.yaml").write_text(
        "defaults: [schema, _self_]\nname: ours2026\nE: 1.7\nA: 400.0\nB: 400.0\nalpha: 0.34\nbeta: 0.28\n"
    )
    (tmp_path / "lab" / "sweep" / "ours.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: gpt\n  - override /data: unspecified\n"
        "sweep:\n  name: ours\n  budgets: [1e18]\n  sizes: 5\n  centre: {law: ours2026}\n"
        "optim: {batch_min: 65536, batch_max: 65536}\n"
    )
    said = isoflop("plan", "--config-dir", str(tmp_path / "lab"), "sweep=ours", f"root={tmp_path}", "format=json")
    assert said.code == 0, said.err
    assert len(said.json["points"]) == 5
    assert said.json["sweep"] == "ours"


def test_predict_from_a_published_law(isoflop: Command) -> None:
    said = isoflop("predict", "law=hoffmann2022_tex", "flops=5.76e23", "format=json")
    (found,) = said.json
    assert found["params"]["value"] == pytest.approx(40.37e9, rel=1e-3)
    assert found["tokens"]["value"] * found["params"]["value"] * 6 == pytest.approx(5.76e23)
    assert found["params"]["low"] is None
    assert found["statement"].startswith("No intervals")
    shown = isoflop("predict", "law=hoffmann2022_tex", "flops=5.76e23").out
    assert "40.4B" in shown
    assert "No intervals" in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["predict", "law=hoffmann2022_tex"], "predict got nothing; give exactly one of flops=, params= and tokens="),
        (["predict", "law=hoffmann2022_tex", "flops=1e20", "params=1e9"], "give exactly one of"),
        (["predict", "law=hoffmann2022_tex", "flops=-1"], "flops=-1.0 is not a positive number"),
        (["predict", "law=hoffmann2022_tex", "flops=nan"], "flops=nan is not a positive number"),
        (["predict", "flops=1e20"], "law=none lacks E, A, B, alpha, beta"),
        (["predict", "law=nobody", "flops=1e20"], "Could not find 'law/nobody'"),
        (["predict", "path=/no/such", "flops=1e20"], "path=/no/such: there is no fit.json"),
        (["fit", "source=csv"], "path is empty; source=csv needs path="),
        (["fit", "source=csv", "path=/no/such.csv"], "path=/no/such.csv does not exist"),
        (["fit", "source=parquet"], "source"),
    ],
)
def test_bad_questions_are_one_sentence(isoflop: Command, arguments: list[str], sentence: str) -> None:
    said = isoflop(*arguments)
    assert said.code == 2
    assert sentence in said.sentence
    assert said.out == ""


def points_csv(path: Path, **columns: list[float]) -> str:
    """A small isoFLOP table of Hoffmann's law; ``columns`` replace or add."""
    import pandas as pd

    from analysis.laws.law import find_law

    law = find_law("hoffmann2022_tex")
    rows = [(n, c / 6 / n) for c in (1e19, 1e20, 1e21) for n in (1e8, 3e8, 1e9, 3e9, 1e10)]
    table = pd.DataFrame(rows, columns=["params", "tokens"])
    table["loss"] = [law.loss(n, d) for n, d in rows]
    for name, values in columns.items():
        table[name] = values
    table.to_csv(path, index=False)
    return f"path={path}"


def test_fit_of_a_csv_writes_where_told(isoflop: Command, tmp_path: Path) -> None:
    path = points_csv(tmp_path / "points.csv")
    said = isoflop("fit", "source=csv", path, f"out={tmp_path / 'out'}", "format=json", "fit.replicates=50")
    assert said.code == 0, said.err
    assert said.json["approaches"]["parametric"]["alpha"]["value"] == pytest.approx(0.33917084, abs=1e-6)
    assert said.json["approaches"]["envelope"] == {"refused": "there are no loss curves, only final losses."}
    names = {item.name for item in (tmp_path / "out").iterdir()}
    assert {"fit.json", "report.html", "figures", "points.csv", "exponents.csv", "exclusions.csv"} <= names
    asked = isoflop("predict", f"path={tmp_path / 'out'}", "flops=1e22", "format=json").json
    assert {found["by"] for found in asked} == {"isoflop", "parametric"}
    three = next(found for found in asked if found["by"] == "parametric")
    assert three["params"]["low"] <= three["params"]["value"] <= three["params"]["high"]


def test_columns_where_and_groups(isoflop: Command, tmp_path: Path) -> None:
    path = points_csv(tmp_path / "points.csv", kind=["a", "b"] * 7 + ["a"])  # type: ignore[arg-type]
    table = (tmp_path / "points.csv").read_text().replace("params,tokens,loss", "n,d,val", 1)
    (tmp_path / "points.csv").write_text(table)
    mapped = ["columns.params=n", "columns.tokens=d", "columns.loss=val", "fit.replicates=20", f"out={tmp_path / 'o'}"]
    said = isoflop("fit", "source=csv", path, *mapped, "where=kind == 'a'", "format=json")
    assert said.json["rows"]["used"] == 8
    assert {out["reason"] for out in said.json["rows"]["excluded"]} == {"where=kind == 'a' leaves it out"}
    grouped = isoflop("fit", "source=csv", path, *mapped, "group_by=kind")
    assert grouped.code == 0, grouped.err
    assert {"a", "b", "summary.csv"} <= {item.name for item in (tmp_path / "o").iterdir()}
    unmapped = isoflop("fit", "source=csv", path)
    assert unmapped.code == 2
    assert "columns." in unmapped.sentence


def test_a_fit_can_be_repeated_from_its_file(isoflop: Command, tmp_path: Path) -> None:
    from analysis import FitConfig, fit_tables, read_file
    from analysis.ingest.clean import keep_where

    path, where = points_csv(tmp_path / "points.csv"), "params_total < 9e9"
    table = (tmp_path / "points.csv").read_text().replace("params,tokens", "params,d", 1)
    (tmp_path / "points.csv").write_text(table)
    asked = ["columns.tokens=d", f"where={where}", "fit.replicates=30", "fit.form=tied", "fit.valley=akima"]
    said = isoflop("fit", "source=csv", path, *asked, f"out={tmp_path / 'out'}", "format=json")
    raw = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert raw == said.json and said.code == 0, said.err
    assert list(raw)[-3:] == ["version", "config", "reading"]
    assert (raw["config"]["form"], raw["config"]["replicates"], raw["config"]["window"]) == ("tied", 30, None)
    reading = raw["reading"]
    assert reading == {
        "source": "csv",
        "path": path.removeprefix("path="),
        "columns": {"tokens": "d"},
        "where": where,
    }
    tables = keep_where(read_file(reading["path"], reading["columns"]), reading["where"])
    again = fit_tables(tables, FitConfig(**raw["config"])).to_dict()
    assert json.loads(json.dumps(again)) == raw | {"reading": {}}
    card = (tmp_path / "out" / "report.html").read_text()
    assert "columns.tokens=d where=params_total &lt; 9e9" in card and "fit.form=tied" in card


def test_curves_in_a_file_of_their_own(isoflop: Command, tmp_path: Path) -> None:
    import numpy as np
    import pandas as pd
    from analysis_surfaces import cosine_curves, isoflop_design

    params, tokens, flops, loss = isoflop_design(np.geomspace(1e18, 1e20, 3), sizes=9)
    made = cosine_curves(params, tokens, rows=20)
    runs = [f"run{i:03d}" for i in range(len(loss))]
    points = pd.DataFrame({"run_id": runs, "params": params, "tokens": tokens, "flops": flops, "val": loss})
    columns = {"tokens": made.tokens, "val": made.loss, "progress": made.progress}
    steps = pd.DataFrame({"run_id": np.array(made.names)[made.run], **columns})
    points.to_csv(tmp_path / "points.csv", index=False)
    steps.to_json(tmp_path / "curves one.jsonl", orient="records", lines=True)
    base = ["fit", "source=csv", f"path={tmp_path / 'points.csv'}", "columns.loss=val", f"out={tmp_path / 'out'}"]
    quick = ["fit.replicates=20", "format=json"]
    alone = isoflop(*base, *quick).json
    assert alone["approaches"]["envelope"] == {"refused": "there are no loss curves, only final losses."}
    said = isoflop(*base, f"curves={tmp_path / 'curves one.jsonl'}", *quick)
    assert said.code == 0, said.err
    envelope = said.json["approaches"]["envelope"]
    assert envelope["a"]["value"] == pytest.approx(0.28 / 0.62, abs=0.02) and envelope["runs"] == 27
    assert said.json["approaches"]["parametric"]["alpha"] == alone["approaches"]["parametric"]["alpha"]
    assert said.json["reading"]["curves"].endswith("curves one.jsonl")
    (tmp_path / "empty.csv").write_text("run_id,tokens,val\n")
    (tmp_path / "bare.csv").write_text("tokens,val\n1e9,3\n")
    for name, words in (
        (
            "none.csv",
            "none.csv does not exist; name a .csv, .jsonl (either may be packed: .gz) or .parquet file",
        ),
        ("empty.csv", "empty.csv has a header but no rows; give a file with one row per logged loss."),
        ("bare.csv", "have no column run_id; rename theirs, or map columns."),
    ):
        refused = isoflop(*base, f"curves={tmp_path / name}")
        assert refused.code == 2 and words in refused.sentence
    refused = isoflop("fit", "source=wandb", f"path={tmp_path}", "curves=x.csv")
    assert refused.code == 2 and "curves=x.csv goes with source=csv" in refused.sentence


def test_bad_rows_are_left_out_and_named(isoflop: Command, tmp_path: Path) -> None:
    path = points_csv(tmp_path / "points.csv")
    with (tmp_path / "points.csv").open("a") as table:
        table.write("1e9,,2.5\n1e9,1e10,-1\n0,1e10,2.5\n1e9,1e10,nan\n")
    said = isoflop("fit", "source=csv", path, f"out={tmp_path / 'out'}", "format=json", "fit.replicates=20")
    assert said.code == 0
    assert said.json["rows"]["used"] == 15
    assert [out["row"] for out in said.json["rows"]["excluded"]] == ["row 16", "row 17", "row 18", "row 19"]


def test_a_fit_folder_that_cannot_be_written_is_refused_first(isoflop: Command, tmp_path: Path) -> None:
    path = points_csv(tmp_path / "points.csv")
    (tmp_path / "file").write_text("")
    said = isoflop("fit", "source=csv", path, f"out={tmp_path / 'file'}", "fit.replicates=20")
    assert said.code == 2
    assert "cannot be written to (Not a directory); choose another folder" in said.sentence


def test_nothing_to_fit_is_exit_2_with_the_reasons_shown(isoflop: Command, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("params,tokens,loss\n1e8,1e9,3.0\n")
    said = isoflop("fit", "source=csv", f"path={tmp_path / 'one.csv'}", f"out={tmp_path / 'out'}")
    assert said.code == 2
    assert said.out.count("refused: ") == 3
    assert "no approach could be fitted" in said.sentence


def test_a_damaged_fit_is_named(isoflop: Command, tmp_path: Path) -> None:
    path = points_csv(tmp_path / "points.csv")
    isoflop("fit", "source=csv", path, f"out={tmp_path / 'out'}", "fit.replicates=20")
    os.truncate(tmp_path / "out" / "replicates.npz", 300)
    said = isoflop("predict", f"path={tmp_path / 'out'}", "flops=1e21")
    assert said.code == 2
    assert "replicates.npz is damaged" in said.sentence


def test_a_config_that_is_no_yaml_is_named(isoflop: Command, tmp_path: Path) -> None:
    (tmp_path / "lab" / "sweep").mkdir(parents=True)
    (tmp_path / "lab" / "sweep" / "bad.yaml").write_text("sweep: [\n")
    said = isoflop("plan", "--config-dir", str(tmp_path / "lab"), "sweep=bad", f"root={tmp_path}")
    assert said.code == 2
    assert "no valid YAML" in said.sentence
    assert "bad.yaml" in said.sentence


@pytest.mark.parametrize("stdout", [">&-", ">/dev/full"])
def test_a_stdout_that_cannot_be_written_is_no_traceback(tmp_path: Path, stdout: str) -> None:
    command = f"{Path(sys.executable).parent / 'isoflop'} plan sweep=chinchilla root={tmp_path} {stdout}"
    said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in said.stderr
    assert (tmp_path / "chinchilla" / "plan.json").exists()


def test_a_narrow_terminal_keeps_the_columns_that_matter(isoflop: Command) -> None:
    from rich.console import Console

    from sweeps.dispatch.state import PointState, State
    from sweeps.paths import SweepFolder
    from sweeps.render.status import status_table

    state = PointState(
        point_id="c3e12-n55k-d5.4M-0123456789", run_id="r", budget=3e12, params_non_embedding=55_000,
        tokens=10**6, flops=3e12, hours=1.0, state=State.running, loss=1.5, progress=0.5, eta_seconds=61.0,
    )  # fmt: skip
    console = Console(width=70, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(status_table(SweepFolder(Path("/r"), "s"), [state], width=70))
    shown = console.export_text()
    assert all(word in shown for word in ("c3e12-n55k-d5.4M-0123456789", "running", "50%", "1.5000", "61s"))


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    command = f"{Path(sys.executable).parent / 'isoflop'} plan sweep=chinchilla root={tmp_path} | head -1"
    said = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert "Traceback" not in said.stderr
    assert said.stdout.startswith("plan of chinchilla")
