// Curves of one run or of many: one x axis for all, linked zoom and cursor, values at the mouse.

const state = { by: "steps", zoom: null, log: false, hidden: new Set() };
const AXES = { steps: "step", tokens: "tokens", seconds: "time", flops: "FLOPs" };
const charts = DATA.charts.map((chart) => ({ ...chart, view: null, rows: [] }));

/** The divisor and the title of the x axis. */
function unit() {
  if (state.by !== "seconds") return [1, { steps: "step", tokens: "tokens trained", flops: "FLOPs" }[state.by]];
  const last = Math.max(...DATA.runs.flatMap((run) => Object.values(run.curves).map((c) => c.seconds.at(-1) ?? 0)));
  if (last > 7200) return [3600, "hours of training"];
  return last > 180 ? [60, "minutes of training"] : [1, "seconds of training"];
}

function places(line) {
  const run = DATA.runs[line.run];
  const curve = run.curves[line.curve];
  const [divisor] = unit();
  if (state.by === "flops") return curve.tokens.map((t) => t * run.flops_per_token);
  return divisor === 1 ? curve[state.by] : curve[state.by].map((x) => x / divisor);
}

/** Points and dots of one chart: those within the zoom, and one more on either side. */
function rowsOf(chart) {
  const [points, dots] = [[], []];
  const alone = DATA.runs.length === 1;
  chart.lines.forEach((line) => {
    if (state.hidden.has(line.series)) return;
    const curve = DATA.runs[line.run].curves[line.curve];
    const xs = places(line);
    let [from, to] = [0, xs.length];
    if (state.zoom) {
      from = Math.max(0, xs.findIndex((x) => x >= state.zoom[0]) - 1);
      const behind = xs.findIndex((x) => x > state.zoom[1]);
      to = behind < 0 ? xs.length : behind + 1;
    }
    const push = (values, raw) => {
      for (let at = from; at < to; at++) {
        const y = values[at];
        if (y === null || (state.log && chart.log && y <= 0)) continue;
        points.push({ x: xs[at], y, series: line.series, raw });
        if (!raw && to - from <= DATA.dots && inZoom(xs[at])) dots.push({ x: xs[at], y, series: line.series });
      }
    };
    if (curve.smooth && alone) push(curve.values, 1);
    push(curve.smooth ?? curve.values, 0);
  });
  return { points, dots };
}

function marks() {
  const [divisor] = unit();
  const all = DATA.runs[0].marks.map((mark) => ({ x: (mark[state.by] ?? 0) / divisor, text: mark.text }));
  return all.filter(({ x }) => inZoom(x));
}

function everything() {
  const xs = charts.flatMap((chart) => chart.lines.map((line) => places(line)));
  const filled = xs.filter((each) => each.length);
  return filled.length ? [Math.min(...filled.map((x) => x[0])), Math.max(...filled.map((x) => x.at(-1)))] : [0, 1];
}

async function drawChart(chart) {
  const spec = structuredClone(chart.spec);
  const domain = state.zoom ?? everything();
  for (const layer of spec.layer) {
    const { x, y } = layer.encoding;
    if (!y?.scale) continue;
    Object.assign(x, { title: unit()[1], scale: { ...x.scale, domain } });
    if (state.log && chart.log) y.scale = { type: "log" };
  }
  chart.view = null;
  const view = await draw(chart.place, spec, { ...rowsOf(chart), marks: marks(), cursor: [] });
  let brushed = null;
  view.addSignalListener("brush", (_, value) => { brushed = value.x ?? null; });
  view.addEventListener("pointermove", (event) => point(chart, event));
  view.addEventListener("pointerdown", () => {
    brushed = null;
    const released = () => {
      if (brushed && brushed[1] - brushed[0] > (domain[1] - domain[0]) / 100) zoomTo(brushed);
      else if (brushed) view.data("brush_store", []).runAsync();
    };
    window.addEventListener("pointerup", () => setTimeout(released), { once: true });
  });
  chart.view = view;
}

function zoomTo(domain) {
  state.zoom = domain;
  document.getElementById("reset").hidden = !domain;
  charts.forEach((chart) => {
    drawChart(chart);
    readOut(chart);
  });
}

const inZoom = (x) => !state.zoom || (x >= state.zoom[0] && x <= state.zoom[1]);

// Cursor

let pointed = 0;

function point(chart, event) {
  const root = chart.place.querySelector("svg > g");
  if (!root || !chart.view) return;
  const local = new DOMPoint(event.clientX, event.clientY).matrixTransform(root.getScreenCTM().inverse());
  const x = chart.view.scale("x").invert(local.x);
  cancelAnimationFrame(pointed);
  pointed = requestAnimationFrame(() => charts.forEach((each) => readOut(each, x)));
}

function nearest(xs, x) {
  let [low, high] = [0, xs.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle;
    else high = middle;
  }
  return x - xs[low] <= xs[high] - x ? low : high;
}

/** Show the values at `x` above the chart and in it; without `x`, the newest ones. */
function readOut(chart, x) {
  const found = chart.lines.filter((line) => !state.hidden.has(line.series)).map((line) => {
    const curve = DATA.runs[line.run].curves[line.curve];
    const xs = places(line);
    const at = nearest(xs, x ?? (state.zoom ? state.zoom[1] : Infinity));
    return { x: xs[at], y: curve.values[at], drawn: (curve.smooth ?? curve.values)[at], step: curve.steps[at], line };
  });
  const where = x === undefined || !found.length ? [] : [el("span", {}, `step ${found[0].step.toLocaleString("en-US")}`)];
  const alone = DATA.runs.length === 1;
  const values = found.map(({ y, line }) =>
    el("span", { title: line.series }, el("i", { class: "dot", style: `background: var(--series-${line.colour})` }), alone ? `${line.series} ` : "", el("b", {}, significant(y))));
  // The legend of several runs is above the charts; their values are shown only at the mouse.
  chart.readout.replaceChildren(...where, ...(alone ? values : x === undefined ? [] : values.slice(0, 8)));
  if (chart.view && x !== undefined) {
    const [across, up] = [chart.view.scale("x"), chart.view.scale("y")];
    const rows = found.filter((row) => row.drawn !== null && inZoom(row.x)).map((row, at) => ({ x: across(row.x), y: up(row.drawn), series: row.line.series, first: at === 0 }));
    chart.view.data("cursor", rows).runAsync();
  }
}

function forgetCursor() {
  cancelAnimationFrame(pointed);
  for (const chart of charts) {
    readOut(chart);
    if (chart.view) chart.view.data("cursor", []).runAsync();
  }
}

// The panel

function switches() {
  const names = Object.keys(AXES).filter((by) => by !== "flops" || (DATA.runs.length > 1 && DATA.runs.every((run) => run.flops_per_token)));
  const by = names.map((name) => el("button", { type: "button", "data-by": name, "aria-pressed": String(name === state.by), onclick: () => {
    state.by = name;
    for (const button of by) button.setAttribute("aria-pressed", String(button.dataset.by === name));
    zoomTo(null);
  } }, AXES[name]));
  const log = el("button", { type: "button", id: "log", "aria-pressed": "false", onclick: () => {
    state.log = !state.log;
    log.setAttribute("aria-pressed", String(state.log));
    charts.filter((chart) => chart.log).forEach(drawChart);
  } }, "log scale");
  const reset = el("button", { type: "button", id: "reset", hidden: "", onclick: () => zoomTo(null) }, "whole run");
  return el("div", { class: "bar" }, el("span", {}, "over ", ...by), log, reset);
}

/** With several runs: one button per run, which hides or shows its curves. */
function legend() {
  if (DATA.runs.length === 1) return null;
  return el("div", { class: "legend" }, ...DATA.runs.map(({ name }, at) => {
    const button = el("button", { type: "button", "aria-pressed": "true", onclick: () => {
      const hidden = state.hidden.has(name);
      if (hidden) state.hidden.delete(name);
      else state.hidden.add(name);
      button.setAttribute("aria-pressed", String(hidden));
      charts.forEach((chart) => {
        drawChart(chart);
        readOut(chart);
      });
    } }, el("i", { class: "dot", style: `background: var(--series-${(at % DATA.colours) + 1})` }), name);
    return button;
  }));
}

function curves() {
  for (const chart of charts) {
    chart.place = el("div", { class: "picture", role: "img", "aria-label": chart.title, ondblclick: () => zoomTo(null) });
    chart.readout = el("div", { class: "readout" });
    chart.box = el("section", { class: "card chart", id: `chart-${chart.name}`, onpointerleave: forgetCursor },
      el("div", { class: "head" }, el("h2", {}, chart.title, el("small", {}, chart.unit)), chart.readout), chart.place);
    later.push({ place: chart.place, draw: () => drawChart(chart) });
    readOut(chart);
  }
  if (charts.length % 2 && charts.length) charts[0].box.classList.add("wide");
  const grid = el("div", { class: "grid" }, ...charts.map((chart) => chart.box));
  const hint = el("p", { class: "hint" }, "Drag across a chart to zoom all of them; double-click to reset.");
  return charts.length ? [switches(), legend(), grid, hint] : [el("div", { class: "card" }, "Nothing has been recorded yet.")];
}

/** All matrices over time, one measure at a time. */
function layers(run) {
  const words = { weight_norm: "Norm of the weights", grad_norm: "Norm of the gradients", update_ratio: "Update-to-weight ratio" };
  const measures = Object.keys(run.layers);
  const place = el("div");
  const fill = (measure) => {
    const { parts, edges, values } = run.layers[measure];
    const rows = parts.flatMap((part, p) => values[p].flatMap((value, at) =>
      (value === null ? [] : [{ part, from: edges[at], to: edges[at + 1], value }])));
    const sized = rows.map(({ value }) => value).filter((value) => value > 0);
    const spec = structuredClone(DATA.pictures.layers.spec);
    spec.height *= parts.length;
    const scale = spec.encoding.fillOpacity.scale;
    scale.domain = sized.length ? [Math.min(...sized), Math.max(...sized)] : [0.1, 1];
    const least = `${significant(scale.domain[0], 3)} is lightest, ${significant(scale.domain[1], 3)} darkest`;
    place.replaceChildren(card(words[measure] ?? measure, `Each row is one matrix, from the embedding to the head; each cell is the largest value of a span of steps, on a log scale: ${least}.`,
      picture(spec, { points: rows }, words[measure])));
    drawWhatIsLeft();
  };
  const buttons = measures.map((measure) => el("button", { type: "button", "aria-pressed": "false", onclick: (event) => {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button === event.currentTarget));
    fill(measure);
  } }, words[measure] ?? measure));
  buttons.at(-1).setAttribute("aria-pressed", "true");
  fill(measures.at(-1));
  return el("div", {}, el("div", { class: "bar" }, el("span", {}, ...buttons)), place);
}
