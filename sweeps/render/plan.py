"""A plan as the terminal shows it."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape

from analysis.text import count_text, flops_text
from sweeps.config import Format
from sweeps.paths import SweepFolder
from sweeps.planning.packing import packing_text
from sweeps.planning.points import Plan
from sweeps.terminal import print_json, say, seconds, stdout, table


def show_plan(plan: Plan, form: Format, folder: SweepFolder) -> None:
    """The plan on stdout; where it was written and what was refused on stderr."""
    if form is Format.json:
        print_json(plan.to_dict(), levels=2)
    else:
        stdout().print(_plan_table(plan))
    say_refused(plan)
    say(f"written: {folder.plan_path} and plan.csv")


def say_refused(plan: Plan) -> None:
    """The points the design asked for that no run can be made of."""
    for refusal in plan.refused:
        budget = "" if refusal["budget"] is None else f" at {flops_text(refusal['budget'])} FLOPs"
        say(f"refused: {count_text(refusal['params_non_embedding'])} parameters{budget}: {refusal['reason']}")


def _plan_table(plan: Plan) -> RenderableType:
    loss = any(point.predicted_loss is not None for point in plan.points)
    price = any(point.price for point in plan.points)
    head = ["<point", "budget", "N non-emb", "N total", "L x d", "D", "D/N", "steps", "batch", "rate", "FLOPs", "off"]
    tail = ["loss"] * loss + ["devices", "memory", "time"] + ["price"] * price
    shown = table(*head, *tail, title=f"plan of {escape(plan.sweep)}: N in parameters, D and batch in tokens, "
                  "FLOPs by the matmul count, time and memory of one device")  # fmt: skip
    for point in plan.points:
        row, shape = point.row(), point.run.recipe.model
        cells = [
            point.point_id,
            flops_text(row["budget"]),
            count_text(shape.params_non_embedding),
            count_text(shape.params_total),
            f"{shape.layers}x{shape.d_model}",
            count_text(row["tokens"]),
            count_text(row["tokens"] / shape.params_total),
            str(row["steps"]),
            count_text(row["batch"]),
            f"{row['lr']:.2e}",
            flops_text(row["flops_matmul"]),
            "–" if point.budget_error is None else f"{point.budget_error:+.2%}",
        ]
        cells += ["–" if point.predicted_loss is None else f"{point.predicted_loss:.3f}"] * loss
        cells += [str(row["devices"]), f"{point.memory_gb:.2g} GB", seconds(point.hours * 3600)]
        cells += [f"{point.price:,.2f}"] * price
        shown.add_row(*cells)
    totals = plan.totals
    line = (
        f"{totals['points']} points, {count_text(totals['tokens'])} tokens, "
        f"{flops_text(totals['flops_matmul'])} FLOPs, {totals['device_hours']:.3g} device-hours"
    )
    line += f", price {totals['price']:,.2f}" if price else ""
    packing = packing_text({point.run.run_id: point.run.runtime.together for point in plan.points})
    return Group(shown, *filter(None, (line, packing)))
