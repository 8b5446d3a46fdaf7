"use strict";
// Everything shown is set as text, never as markup.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b5f66", "#000000"];
const REFRESH = 2000;
let last = null;

const byId = id => document.getElementById(id);
function make(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
function count(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= size) return Number((value / size).toPrecision(3)) + unit;
  return String(Number(value.toPrecision(3)));
}
const flops = value => value === null ? "–" : value.toExponential(2).replace(/\.?0+e\+?/, "e").replace("e+", "e");
const loss = value => value === null || value === undefined ? "–" : value.toFixed(4);
function duration(hours) {
  const seconds = hours * 3600;
  if (seconds < 100) return seconds.toFixed(seconds < 10 ? 1 : 0) + "s";
  if (seconds < 6000) return Math.floor(seconds / 60) + "m" + String(Math.floor(seconds % 60)).padStart(2, "0") + "s";
  return hours < 100 ? Math.floor(hours) + "h" + String(Math.floor(seconds / 60 % 60)).padStart(2, "0") + "m" : (hours / 24).toFixed(1) + "d";
}
function table(heads, rows) {
  const made = make("table"), top = made.createTHead().insertRow(), body = made.createTBody();
  heads.forEach(([name, kind]) => top.append(make("th", name, kind)));
  for (const row of rows) {
    const line = body.insertRow();
    row.forEach((cell, number) => {
      const one = make("td", cell instanceof Node ? undefined : cell, heads[number][1]);
      if (cell instanceof Node) one.append(cell);
      line.append(one);
    });
  }
  return made;
}
function track(share) {
  const bar = make("span", undefined, "track"), inner = make("i");
  inner.style.width = Math.round(100 * share) + "%";
  bar.append(inner);
  bar.title = Math.round(100 * share) + "% of the FLOPs";
  return bar;
}
// charts: logarithmic axes, drawn anew each time
function svg(tag, given, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(given)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
function ticks(low, high, most) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const digit of [1, 2, 5]) if (digit * 10 ** power >= low && digit * 10 ** power <= high) found.push(digit * 10 ** power);
  if (found.length >= 2) return found.filter((_, n) => n % Math.ceil(found.length / most) === 0);
  return [0, 1, 2, 3].map(n => low * (high / low) ** (n / 3));
}
function chart(id, series, joined) {
  const box = byId(id), points = series.flatMap(one => one.points);
  box.replaceChildren();
  if (!points.length) { box.append(svg("text", {x: 240, y: 150, "text-anchor": "middle"}, "nothing yet")); return; }
  const span = index => { const all = points.map(p => p[index]); const low = Math.min(...all), high = Math.max(...all); return low < high ? [low / 1.03, high * 1.03] : [low / 1.1, high * 1.1]; };
  const [x0, x1] = span(0), [y0, y1] = span(1);
  const x = value => 52 + 418 * Math.log(value / x0) / Math.log(x1 / x0), y = value => 268 - 256 * Math.log(value / y0) / Math.log(y1 / y0);
  for (const value of ticks(x0, x1, 6)) box.append(svg("line", {x1: x(value), x2: x(value), y1: 12, y2: 268, stroke: "#eef1f4"}), svg("text", {x: x(value), y: 284, "text-anchor": x(value) > 455 ? "end" : "middle"}, count(value)));
  for (const value of ticks(y0, y1, 6)) box.append(svg("line", {x1: 52, x2: 470, y1: y(value), y2: y(value), stroke: "#eef1f4"}), svg("text", {x: 46, y: y(value) + 4, "text-anchor": "end"}, String(Number(value.toPrecision(3)))));
  for (const one of series) {
    const sorted = [...one.points].sort((a, b) => a[0] - b[0]);
    box.append(svg("polyline", {points: sorted.map(p => x(p[0]) + "," + y(p[1])).join(" "), fill: "none", stroke: one.colour, "stroke-width": joined ? 1.5 : 1, "stroke-opacity": joined ? 1 : .4}));
    if (!joined) for (const p of sorted) {
      const dot = svg("circle", {cx: x(p[0]), cy: y(p[1]), r: 4, fill: one.colour});
      dot.append(svg("title", {}, one.name + ": " + count(p[0]) + " parameters, loss " + loss(p[1])));
      box.append(dot);
    }
  }
}
function show(seen) {
  last = seen;
  document.title = seen.sweep + " · isoflop";
  byId("name").textContent = seen.sweep;
  const counts = {};
  for (const state of seen.states) counts[state.state] = (counts[state.state] || 0) + 1;
  let said = Object.entries(counts).map(([name, number]) => number + " " + name).join(", ");
  said += "; spent " + duration(seen.spent_hours) + " of planned " + duration(seen.planned_hours);
  if (seen.price_per_hour) said += ", " + (seen.spent_hours * seen.price_per_hour).toFixed(2) + " of " + (seen.planned_hours * seen.price_per_hour).toFixed(2);
  if (seen.eta_seconds) said += "; ETA " + duration(seen.eta_seconds / 3600);
  byId("summary").textContent = said;
  byId("summary").className = "";
  const colour = new Map(seen.budgets.map((budget, number) => [budget.flops, COLOURS[number % COLOURS.length]]));
  byId("budgets").replaceChildren(table(
    [["budget"], ["done"], ["progress", "text"], ["running"], ["failed"], ["best loss"], ["at N non-emb"]],
    seen.budgets.map(one => [flops(one.flops), one.done + "/" + one.points, track(one.progress), one.running || "", one.failed || "", loss(one.best_loss), count(one.best_params)])));
  chart("valleys", seen.budgets.map(one => ({name: flops(one.flops), colour: colour.get(one.flops),
    points: seen.states.filter(s => s.budget === one.flops && s.state === "done" && s.loss > 0).map(s => [s.params_non_embedding, s.loss])})), false);
  const running = new Map(seen.states.filter(s => s.state === "running").map(s => [s.run_id, s]));
  byId("curves").parentElement.hidden = !running.size;
  chart("curves", Object.entries(seen.curves).filter(([run]) => running.has(run)).map(([run, points]) => ({name: run, colour: colour.get(running.get(run).budget), points: points.filter(p => p[0] > 0 && p[1] > 0)})), true);
  byId("legend").replaceChildren(...seen.budgets.map(one => {
    const label = make("span"), dot = make("i");
    dot.style.background = colour.get(one.flops);
    label.append(dot, flops(one.flops) + " FLOPs");
    return label;
  }));
  const fit = seen.fit;
  if (fit === null) byId("fit").replaceChildren(make("p", seen.fitting ? "being made" : "none yet: too few points are done"));
  else if (fit.refused) byId("fit").replaceChildren(make("p", fit.refused));
  else byId("fit").replaceChildren(make("p", "of " + fit.points + " points" + (seen.fitting ? "; another is being made" : "")),
    table([["approach", "text"], ["a: N* ~ C^a", "text"], ["b: D* ~ C^b", "text"], ["remark", "text wrap"]], fit.lines.map(one => [one.approach, one.a, one.b, one.remark])));
  if (fit && fit.target) byId("fit").append(make("p", "target: " + fit.target));
  points();
  const made = seen.figures.join(" ");
  if (byId("figures").dataset.made !== seen.made + made) {
    byId("figures").dataset.made = seen.made + made;
    byId("links").replaceChildren(...(seen.report ? [link("/report", "the report of the last fit")] : []));
    byId("figures").replaceChildren(...(seen.figures.length ? seen.figures.map(name => {
      const figure = make("figure"), image = make("img"), whole = link("/figures/" + encodeURIComponent(name), "");
      image.src = whole.href + "?" + seen.made; image.alt = name; image.loading = "lazy";
      whole.append(image); figure.append(whole, make("figcaption", name));
      return figure;
    }) : [make("p", "none yet: `isoflop fit` draws them")]));
  }
}
function link(target, text) { const made = make("a", text); made.href = target; return made; }
function points() {
  const wanted = byId("filter").value, states = last.states.filter(s => !wanted || s.state === wanted);
  byId("points").replaceChildren(table(
    [["point", "text"], ["state", "text"], ["done"], ["loss"], ["tokens/s"], ["ETA"], ["spent"], ["planned"], ["cause", "text wrap"]],
    states.map(s => [s.point_id, make("span", s.state, s.state), Math.round(100 * s.progress) + "%", loss(s.loss), count(s.tokens_per_second),
      s.eta_seconds === null ? "–" : duration(s.eta_seconds / 3600), duration(s.spent_hours), duration(s.hours), s.cause || ""])));
}
async function refresh() {
  let pause = REFRESH;
  try {
    const answer = await fetch("/overview.json", {cache: "no-store"});
    if (!answer.ok) throw new Error(answer.status === 503 ? await answer.text() : "the board answers " + answer.status);
    const seen = await answer.json();
    show(seen);
    if (seen.ended && !seen.fitting) pause = 5 * REFRESH;
  } catch (error) {
    byId("summary").textContent = "not up to date: " + (error instanceof TypeError ? "the board does not answer" : error.message);
    byId("summary").className = "lost";
  }
  setTimeout(refresh, pause);
}
byId("filter").addEventListener("change", () => last && points());
refresh();
