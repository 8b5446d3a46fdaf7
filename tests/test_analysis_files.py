from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.config import Fill, FitConfig
from analysis.ingest.files import read_file
from analysis.ingest.fill import fill_missing
from analysis.ingest.frames import flat, read_frame
from analysis.ingest.tables import CURVE_COLUMNS, Tables
from analysis.study import Study, comparable_curves
from trainer.errors import UserError
from trainer.shape import ParamCount

POINTS = pd.DataFrame(
    {"n": [1e8, 2e8, 4e8], "tokens": [2e9, 4e9, 8e9], "c": [10**24, 2 * 10**24, 10**20], "val": [3.5, 3.1, 2.9]}
)
COLUMNS = {"params": "n", "flops": "c", "loss": "val"}


def _file(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _in_every_kind(folder: Path) -> list[Path]:
    """POINTS as each kind of file."""
    rows = POINTS.astype(object).to_dict("records")
    text, lines = POINTS.to_csv(index=False), "".join(json.dumps(row) + "\n" for row in rows)
    POINTS.astype({"c": float}).set_index("n").to_parquet(folder / "e.parquet")  # an index is a column like others
    return [
        _file(folder / "a.csv", text),
        _file(folder / "b.CSV.gz", gzip.compress(text.encode())),
        _file(folder / "c.jsonl", lines),
        _file(folder / "d.jsonl.gz", gzip.compress(lines.encode())),
        folder / "e.parquet",
        _file(folder / "f.csv", b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()),
    ]


def test_every_kind_of_file_gives_the_table_of_the_data_frame(tmp_path: Path) -> None:
    wanted = read_frame(POINTS, columns=COLUMNS)
    assert wanted.points["flops_logged"].tolist() == [1e24, 2e24, 1e20]
    assert wanted.points["flops_6nd"].tolist() == pytest.approx([1.2e18, 4.8e18, 1.92e19])
    assert wanted.points["point_id"].tolist() == ["row 1", "row 2", "row 3"]
    assert wanted.curves.empty and list(wanted.curves)[: len(CURVE_COLUMNS)] == list(CURVE_COLUMNS)
    for path in _in_every_kind(tmp_path):
        tables = read_file(path, COLUMNS)
        columns = ["point_id", "params_total", "tokens", "flops_logged", "flops_6nd", "loss"]
        pd.testing.assert_frame_equal(tables.points[columns], wanted.points[columns], check_exact=True)
        assert tables.source == str(path)


def test_nested_values_have_dotted_names(tmp_path: Path) -> None:
    rows = [{"model": {"n": 10**8 * i, "name": "a"}, "tokens": 2e9, "eval": {"c4": {"loss": 3.0 / i}}} for i in (1, 2)]
    columns = {"params": "model.n", "loss": "eval.c4.loss"}
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    lines = _file(tmp_path / "a.jsonl", "\n\n".join(map(json.dumps, rows)))
    for path in (tmp_path / "a.parquet", lines):
        points = read_file(path, columns).points
        assert points["params_total"].tolist() == [1e8, 2e8] and points["loss"].tolist() == [3.0, 1.5]
        assert points["model.name"].tolist() == ["a", "a"]


@given(st.dictionaries(st.text("ab", min_size=1), st.integers() | st.dictionaries(st.text("cd"), st.integers())))
def test_flat_keeps_every_value(record: dict[str, Any]) -> None:
    values = [value for item in record.values() for value in (item.values() if isinstance(item, dict) else [item])]
    assert sorted(flat(record).values()) == sorted(values)


def test_lines_of_jsonl_that_are_no_objects_are_listed(tmp_path: Path) -> None:
    good = '{"params": 1e8, "tokens": 2e9, "loss": 3.5}\n'
    path = _file(tmp_path / "a.jsonl", good + '{"params": 1e8, "tok\n[1]\n\n' + good.replace("3.5", "3.4"))
    tables = read_file(path)
    assert tables.points["loss"].tolist() == [3.5, 3.4]
    assert [(out.row, out.reason) for out in tables.excluded] == [
        ("line 2", "it is no JSON object"),
        ("line 3", "it is no JSON object"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.xlsx",
            b"PK\x03\x04",
            r"a\.xlsx is of no kind that is read here; give a \.csv, \.jsonl .* or \.parquet file",
        ),
        ("a.parquet.gz", b"", "is of no kind"),
        ("a.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "cannot be read as CSV .*it holds binary data"),
        ("a.csv", b"params,tokens,loss\n\xff\xfe,1,1\n", "cannot be read as CSV"),
        ("a.csv.gz", b"params,tokens,loss\n", "cannot be read as CSV .*[Nn]ot a gzip"),
        ("a.csv.gz", gzip.compress(b"params,tokens,loss\n1,1,1\n" * 9, mtime=0)[:-9], "cannot be read as CSV"),
        ("a.parquet", b"params,tokens,loss\n1,1,1\n", "cannot be read as parquet"),
        ("a.jsonl", b"params,tokens,loss\n1,1,1\n", "holds no JSON object; write one object per line"),
        ("a.jsonl", b"\xff\xfe\n", "cannot be read as lines of JSON"),
        ("a.csv", b"", r"a\.csv is empty"),
        ("a.jsonl", b" \n", r"a\.jsonl is empty"),
        ("a.csv", b"params,tokens,loss\n", "a header but no rows"),
        ("a.csv", b"params;tokens;loss\n1;1;1\n", "separates its columns with ';'; write it with commas"),
        ("a.csv", b"loss, loss,tokens\n1,1,1\n", "has two columns named loss; rename one"),
        ("a.csv", b"params;tokens;loss\n1;1,5;2,5\n", "separates its columns with ';'"),
        ("a.csv", b"loss,loss,tokens\n1,1,1\n", "has two columns named loss; rename one"),
        ("a.csv", b"params,tokens,loss\n1,1,1,5\n", "rows of more cells than its header has names"),
    ],
)
def test_files_of_the_wrong_kind_are_refused_in_one_sentence(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_file(_file(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_file(tmp_path / "none.csv")
    with pytest.raises(UserError, match=r"is a folder, not a file; .*source=runs for run folders"):
        read_file(tmp_path)


@pytest.mark.parametrize(
    ("header", "columns", "words"),
    [
        ("n,tokens,loss", {}, r"no column params, only n, tokens, loss; .*columns\.params=<its column>\.$"),
        ("n,d,x", {}, r"no column params, tokens, loss, only n, d, x"),
        ("params,tokens,loss", {"loss": "val"}, r"columns\.loss=val: .* only params, tokens, loss"),
        ("params,tokens,loss", {"los": "loss"}, r"columns\.los=loss: there is no column los here"),
        ("params,flops,loss", {}, r"no column tokens, .* or take it from C = 6 N D with fit\.fill=tokens\.$"),
        ("tokens,flops,loss", {}, r"no column params, .* with fit\.fill=params\.$"),
        ("flops,loss", {}, r"no column params, tokens, only flops, loss; say [^,]*$"),
        (",".join(f"x{i}" for i in range(60)), {}, r"x39, \.\.\. \(20 more\); say"),
    ],
)
def test_columns_that_are_not_found_are_named(header: str, columns: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_frame(pd.DataFrame({name: [1.0] for name in header.split(",")}), columns=columns)


def test_a_data_frame_is_left_as_it_was() -> None:
    frame = pd.DataFrame({" params ": [1e8, 2e8], "tokens": [1e9, 2e9], "loss": ["3.5", "3.4"]}, index=[7, 7])
    before = frame.copy(deep=True)
    points = read_frame(frame, source="mine").points
    pd.testing.assert_frame_equal(frame, before)
    assert points["loss"].tolist() == [3.5, 3.4] and points.index.tolist() == [0, 1]


def test_what_was_assumed_is_told() -> None:
    notes = read_frame(POINTS[["n", "tokens", "val"]], columns={"params": "n", "loss": "val"}, source="mine").notes
    assert any(note == "mine gives no FLOPs, so C = 6 N D with N = params_total." for note in notes)
    assert any(
        "N is taken for all parameters" in note
        for note in read_frame(POINTS.rename(columns={"n": "params", "val": "loss"})).notes
    )


def test_a_column_mapped_to_non_embedding_is_not_total_as_well() -> None:
    frame = pd.DataFrame({"params": [1e8], "tokens": [2e9], "loss": [3.5]})
    points = read_frame(frame, columns={"params_non_embedding": "params"}).points
    assert points["params_non_embedding"].tolist() == [1e8]
    assert points["params_total"].isna().all()


def test_an_overflowed_flops_6nd_is_counted_anew(shared_data: Path) -> None:
    tables = read_file(shared_data / "gadre_models.csv", {"params_non_embedding": "params_no_embed"})
    points = tables.points
    assert (points["flops_6nd"] == 6 * points["params_total"] * points["tokens"]).all()
    assert any("counted anew" in note for note in tables.notes)


# curves


def _curve(run: str, rows: int = 4, **further: Any) -> pd.DataFrame:
    step = np.arange(1, rows + 1)
    return pd.DataFrame(
        {"run_id": run, "step": step, "params": 1e8, "tokens": step * 1e6, "loss": 5.0 - step / 10}
    ).assign(**further)


def test_curves_in_a_file(shared_data: Path) -> None:
    columns = {"run_id": "run", "loss": "loss_c4_en", "params_non_embedding": "params"}
    tables = read_file(shared_data / "olmo_ladder_curves.csv", columns)
    assert len(tables.points) == 30 and len(tables.curves) == 3569
    assert (tables.points["verdict"] == "done").all()
    by_run = tables.curves.groupby("run_id", observed=True)
    assert by_run["progress"].max().tolist() == [1.0] * 30
    assert (by_run["val_loss"].last().to_numpy() == tables.points.sort_values("run_id")["loss"]).all()


def test_a_curve_that_stops_early_by_its_progress_is_unfinished() -> None:
    frame = pd.concat([_curve("a", progress=[0.25, 0.5, 0.75, 0.97]), _curve("b", progress=[0.1, 0.2, 0.3, 0.4])])
    points = read_frame(frame).points
    assert points["verdict"].tolist() == ["done", "unfinished: its last row is before the end of its schedule"]


def test_progress_is_counted_from_the_horizon_where_there_is_one() -> None:
    tables = read_frame(_curve("a", horizon=8e6))
    assert tables.curves["progress"].tolist() == [0.125, 0.25, 0.375, 0.5]
    assert not any("progress" in note for note in tables.notes)
    assert any("each run's last row" in note for note in read_frame(_curve("a")).notes)


def test_curves_apart_from_points_give_the_same_as_together() -> None:
    together = pd.concat([_curve("b", rows=6), _curve("a")])
    ends = together.groupby("run_id").tail(1)[["run_id", "params", "tokens", "loss"]]
    one, two = read_frame(together), read_frame(ends, together[["run_id", "step", "tokens", "loss"]])
    assert two.points.set_index("run_id")["loss"].to_dict() == one.points.set_index("run_id")["loss"].to_dict()
    columns = ["run_id", "step", "tokens", "val_loss", "progress"]
    pd.testing.assert_frame_equal(one.curves[columns], two.curves[columns])
    crashed = read_frame(ends, together[together["tokens"] < 5e6][["run_id", "tokens", "loss"]])
    assert crashed.points.set_index("run_id")["verdict"].to_dict() == {
        "a": "done",
        "b": "unfinished: its last row is before the end of its schedule",
    }
    with pytest.raises(UserError, match=r"the curves of mine have no column tokens, run_id \(of the points\)"):
        read_frame(ends.drop(columns="run_id"), together[["run_id", "loss"]], source="mine")


def test_points_whose_own_curves_stop_early_are_unfinished_unless_they_failed() -> None:
    curves = pd.concat(
        [_curve(run, progress=[0.2, 0.4, 0.6, last]) for run, last in (("a", 1), ("b", 0.8), ("c", 0.8))]
    )
    points = pd.DataFrame(
        {"run_id": ["a", "b", "c"], "params": 1e8, "tokens": 4e6, "loss": 4.6, "verdict": ["", "", "diverged"]}
    )
    verdicts = read_frame(points, curves).points["verdict"].tolist()
    assert verdicts == ["done", "unfinished: its last row is before the end of its schedule", "diverged"]


# rows that only look like curves


def _fails(words: str, *frames: pd.DataFrame, **columns: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_frame(*frames, columns=columns, source="mine")
    assert "\n" not in str(caught.value)


def test_points_whose_run_ids_are_reused_are_not_taken_for_curves() -> None:
    points = pd.DataFrame({"run_id": ["a", "b"] * 3, "step": 1000, "params": 1e8, "tokens": 1e9, "loss": 3.0})
    _fails(
        r"^in mine several rows of run_id=a, read as one curve, have a loss at step=1000; .* rename run_id if", points
    )
    _fails(r"several rows of run_id=a, .* at progress=1; ", points.drop(columns="step").assign(progress=1.0))
    sizes = points.assign(step=np.arange(6), params=1e8 * np.arange(1, 7))
    _fails(r"the rows of run_id=a, .* several params_total \(1e\+08 to 5e\+08\); give each run a run_id of its", sizes)
    curve = _curve("a")
    assert "8 rows are taken as the curves of 2 runs." in read_frame(pd.concat([curve, _curve("b")])).notes
    logged_apart = pd.concat([curve, curve.assign(loss=np.nan, train_loss=5.0)])  # as loggers write them
    assert len(read_frame(logged_apart).points) == 1


def test_several_evaluations_of_one_curve_are_refused() -> None:
    both = pd.concat([_curve("a", eval="c4"), _curve("a", eval="code")])
    _fails(r"run_id=a, .* at step=1; .*filter the file to one first, as where= and group_by= choose among", both)
    ends = _curve("a").tail(1).drop(columns="step")
    _fails(r"^in the curves of mine several rows of run_id=a", ends, both.drop(columns="params"))
    resumed = pd.concat([_curve("a"), _curve("a").tail(1)])
    assert len(read_frame(ends, resumed).curves) == 5


def test_a_curve_is_of_the_loss_that_its_points_have() -> None:
    frame = _curve("a").assign(val_loss=lambda rows: rows["loss"] + 0.3)
    _fails(
        r"the columns loss and val_loss, which differ \(run_id=a ends at 4\.6 and 4\.9\); .* columns\.loss=val", frame
    )
    assert read_frame(frame.assign(val_loss=frame["loss"])).points["loss"].tolist() == [4.6]
    for name, end in (("loss", 4.6), ("val_loss", 4.9)):
        tables = read_frame(frame, columns={"loss": name})
        assert (tables.points["loss"].iloc[0], tables.curves["val_loss"].iloc[-1]) == pytest.approx((end, end))
    other = read_frame(frame.rename(columns={"loss": "c4"}), columns={"loss": "c4"})
    assert other.points["loss"].iloc[0] == other.curves["val_loss"].iloc[-1] == 4.6
    ends = frame.tail(1)[["run_id", "params", "tokens", "val_loss"]]
    assert read_frame(ends, frame).curves["val_loss"].iloc[-1] == pytest.approx(4.9)
    _fails(r"the columns loss and val_loss, which differ", ends.rename(columns={"val_loss": "loss"}), frame)


def test_a_last_row_without_a_loss_does_not_cost_the_run() -> None:
    frame = _curve("a", rows=100)
    late = read_frame(frame.assign(loss=frame["loss"].where(frame["step"] < 98))).points
    assert (late["tokens"].tolist(), late["loss"].tolist()) == ([97e6], pytest.approx([5 - 9.7]))
    edge = [_curve(f"r{i}", rows=20, tokens=np.linspace(0.05, 1, 20) * 7.3e6 * i) for i in range(1, 30)]
    blank = pd.concat(edge).assign(loss=lambda rows: rows["loss"].where(rows["step"] < 20))
    assert set(read_frame(blank).points["verdict"]) == {"done"}
    early = read_frame(frame.assign(loss=frame["loss"].where(frame["step"] <= 40))).points
    assert early["verdict"].tolist() == ["unfinished: its last loss is at 40% of its tokens, and later rows have none"]
    assert read_frame(frame.assign(loss=np.nan)).points["loss"].isna().tolist() == [True]


def test_integers_that_a_blank_made_floats_are_still_the_same_runs(tmp_path: Path) -> None:
    curves = pd.concat([_curve(1), _curve(2)])  # type: ignore[arg-type]
    ends = curves[curves["step"] == 4].drop(columns="step")
    points = _file(tmp_path / "points.csv", ends.to_csv(index=False))
    file = _file(tmp_path / "curves.csv", curves[["run_id", "tokens", "loss"]].to_csv(index=False) + ",5,3\n")
    tables = read_file(points, curves=file)
    assert tables.curves["run_id"].tolist() == ["1"] * 4 + ["2"] * 4
    assert not any("no run of the points" in note for note in tables.notes)
    others = read_frame(ends.assign(run_id=["x", "y"]), curves.drop(columns=["params", "step"]))
    assert any(note.startswith("The curves are of no run of the points (run_id=1 beside x)") for note in others.notes)


def test_a_negative_rate_is_an_unknown_one() -> None:
    runs = [_curve(f"r{i}", params=1e8 * i, lr=-1.0) for i in (1, 2, 3)]
    study = Study(*_compared(read_frame(pd.concat(runs))), FitConfig())
    lr = study.curves(ParamCount.total, "6nd").lr
    assert lr is not None and np.isnan(lr).all()


def _compared(tables: Tables) -> tuple[pd.DataFrame, pd.DataFrame]:
    return tables.points, comparable_curves(tables)[0]


def test_progress_in_words_is_refused() -> None:
    _fails(r"^progress=25% is not a number; write it as a share", _curve("a", progress=["25%", "50%", "75%", "100%"]))
    assert read_frame(_curve("a", progress=["0.25", None, "", "1"])).points["verdict"].tolist() == ["done"]


# missing numbers


@pytest.mark.parametrize(("fill", "column"), [(Fill.tokens, "tokens"), (Fill.params, "params_total")])
def test_a_missing_number_is_taken_from_c_only_when_told(fill: Fill, column: str) -> None:
    frame = pd.DataFrame({"params_total": [1e8, 2e8, 4e8], "tokens": [2e9, 4e9, 8e9], "loss": [3.5, 3.3, 3.1]})
    whole = frame.assign(flops=6 * frame["params_total"] * frame["tokens"])
    some = whole.assign(**{column: whole[column].where([True, False, True])})
    tables = read_frame(some)
    assert np.isnan(tables.points[column][1]) and np.isnan(tables.points["flops_6nd"][1])
    later = fill_missing(tables, fill)
    assert later.points[column].tolist() == pytest.approx(whole[column].tolist(), rel=1e-12)
    assert later.points["flops_6nd"].tolist() == pytest.approx(whole["flops"].tolist(), rel=1e-12)
    assert later.notes[-1] == f"fit.fill={fill}: {column} of 1 of 3 rows was missing and is taken from C = 6 N D."
    assert fill_missing(later, fill) is later and fill_missing(tables, Fill.none) is tables
    absent = read_frame(whole.drop(columns=column), fill=fill)
    assert absent.points[column].tolist() == pytest.approx(whole[column].tolist(), rel=1e-12)
    assert any("3 of 3 rows" in note for note in absent.notes)


def test_c_is_needed_only_for_what_is_missing() -> None:
    frame = pd.DataFrame({"params": [1e8], "tokens": [2e9], "loss": [3.5]})
    assert read_frame(frame, fill=Fill.tokens).points["tokens"].tolist() == [2e9]
    with pytest.raises(UserError, match=r"no column flops, only params, loss; say .*columns\.flops="):
        read_frame(frame.drop(columns="tokens"), fill=Fill.tokens)


def test_a_missing_size_is_filled_in_the_convention_of_the_others() -> None:
    frame = pd.DataFrame({"params_non_embedding": [1e8, None], "tokens": 1e9, "flops": 6e17, "loss": [3.5, 3.4]})
    points = read_frame(frame, fill=Fill.params).points
    assert points["params_non_embedding"].tolist() == [1e8, 1e8] and points["params_total"].isna().all()


def test_curves_without_tokens_can_be_read_when_told() -> None:
    frame = _curve("a").assign(flops=lambda rows: 6 * rows["params"] * rows["tokens"]).drop(columns="tokens")
    tables = read_frame(frame, fill=Fill.tokens)
    assert tables.curves["tokens"].tolist() == [1e6, 2e6, 3e6, 4e6] and tables.points["tokens"].tolist() == [4e6]


def test_text_is_read_or_told_but_never_filled() -> None:
    frame = pd.DataFrame({"params": 1e8, "tokens": ["1,234,567", "1.5B", None], "flops": 6e17, "loss": "3.5"})
    tables = read_frame(frame, fill=Fill.tokens)
    assert tables.points["tokens"].tolist() == pytest.approx([1234567, np.nan, 1e9], nan_ok=True)
    assert tables.points["verdict"].tolist() == ["", "tokens='1.5B' is text, not a number", ""]
    assert tables.notes[0].startswith("fit.fill=tokens: tokens of 1 of 3 rows was missing")


def test_a_comma_at_the_end_of_rows_shifts_nothing(tmp_path: Path) -> None:
    points = read_file(_file(tmp_path / "a.csv", "params,tokens,loss\n1e8,2e9,3.5,\n2e8,2e9,3.4,\n")).points
    assert points[["params_total", "tokens", "loss"]].values.tolist() == [[1e8, 2e9, 3.5], [2e8, 2e9, 3.4]]


# the public data sets


@pytest.mark.parametrize(
    ("name", "columns", "rows", "curves"),
    [
        ("chinchilla_fig4_left_epoch.csv", {}, 245, 0),
        ("porian_isoflop_points.csv", {}, 1745, 0),
        ("porian_optimal_pairs.csv", {"params": "n", "tokens": "t"}, 177, 0),
        ("datablations_runs.csv", {}, 296, 0),
        ("gadre_models.csv", {}, 832, 0),
        ("nanochat_isoflop_optima.csv", {"params": "params_opt", "tokens": "tokens_opt", "loss": "val_bpb"}, 12, 0),
        ("olmo_ladder_curves.csv", {"run_id": "run", "loss": "loss_pile"}, 30, 3569),
    ],
)
def test_public_files_are_read(shared_data: Path, name: str, columns: dict[str, str], rows: int, curves: int) -> None:
    tables = read_file(shared_data / name, columns)
    assert (len(tables.points), len(tables.curves)) == (rows, curves) and not tables.excluded
    whole = (tables.points[["params_total", "tokens", "flops_6nd"]] > 0).all(axis=1).sum()
    assert whole == rows - (4 if "pairs" in name else 0)  # Porian's have four budgets without an optimum


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("chinchilla_tables_3_and_A3.csv", "loss"),
        ("chinchilla_table2_exponents.csv", "params, tokens, loss"),
        ("chinchilla_table_a9_architectures.csv", "tokens, loss"),
        ("published_chinchilla_fits.csv", "params, tokens, loss"),
    ],
)
def test_public_files_without_losses_are_refused(shared_data: Path, name: str, missing: str) -> None:
    with pytest.raises(UserError, match=f"has no column {missing}, only "):
        read_file(shared_data / name)
