// The page's own parts: text, tabs, theme, samples, tables. The curves are in curves.js, the model in look.js.

const DATA = JSON.parse(document.getElementById("data").textContent);
const later = []; // charts of panels that are not shown yet

/** An element with attributes and children; texts are inserted as text, never as HTML. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const card = (title, about, ...rest) =>
  el("section", { class: "card" }, el("h2", {}, title), about && el("p", { class: "about" }, about), ...rest);

function significant(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e7 || size < 1e-4) return value.toExponential(digits - 2);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(digits)));
}

function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole}s`;
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h ? `${h}h ${String(m).padStart(2, "0")}m` : `${m}m ${String(s).padStart(2, "0")}s`;
}

const percent = (share) => `${significant(100 * share, 3)} %`;
const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

function table(columns, rows, classes = []) {
  const cell = (tag, value, at) => el(tag, { class: columns[at].kind }, value);
  const titled = columns.some(({ title }) => title);
  const head = titled ? el("thead", {}, el("tr", {}, ...columns.map((column, at) => cell("th", column.title, at)))) : null;
  const body = rows.map((row, number) => el("tr", { class: classes[number] || null }, ...row.map((v, at) => cell("td", v, at))));
  return el("div", { class: "scroll" }, el("table", {}, ...(head ? [head] : []), el("tbody", {}, ...body)));
}

// Charts

/** Draw one specification into `place` at its width; return the view, so that its data can change. */
async function draw(place, spec, datasets) {
  place.dataset.label ??= place.getAttribute("aria-label"); // Vega overwrites it
  const wide = { ...structuredClone(spec), description: place.dataset.label, width: Math.max(place.clientWidth, 200), datasets };
  // A layer without rows would leave its axes without extent; the cursor's layer is in pixels.
  if (wide.layer) wide.layer = wide.layer.filter(({ data }) => !data || data.name === "cursor" || datasets[data.name].length);
  const options = { actions: false, renderer: "svg", config: DATA.config, ast: false };
  const drawn = await vegaEmbed(place, wide, options);
  place.dispatchEvent(new CustomEvent("drawn"));
  views.set(place, drawn.view);
  return drawn.view;
}

/** A chart that is drawn when it is needed, and again when the window's width changes. */
function picture(spec, datasets, label) {
  const place = el("div", { class: "picture", role: "img", "aria-label": label });
  later.push({ place, draw: () => draw(place, spec, datasets) });
  return place;
}

let drawing = true; // until the page is filled: nothing has a width before

/** Draw the pending charts, those of the visible panel first, and let the page respond in between. */
async function drawWhatIsLeft() {
  if (drawing) return;
  drawing = true;
  while (later.length) {
    const seen = later.findIndex((task) => task.place.closest(".panel.shown"));
    const [task] = later.splice(Math.max(seen, 0), 1);
    await task.draw().catch(console.error); // a failing chart does not affect the others
    redraws.set(task.place, task.draw);
    await new Promise((resolve) => setTimeout(resolve));
  }
  drawing = false;
  document.documentElement.dataset.drawn = "yes";
}

const redraws = new Map();

function redrawAll() {
  for (const [place, again] of redraws) {
    if (place.isConnected) again();
    else redraws.delete(place);
  }
}

let knownWidth = window.innerWidth;
let resizing = 0;
window.addEventListener("resize", () => {
  if (window.innerWidth === knownWidth) return; // a phone's address bar coming and going
  knownWidth = window.innerWidth;
  clearTimeout(resizing);
  resizing = setTimeout(redrawAll, 150);
});

// Print: every panel is shown, and charts have another width than on the screen

const views = new Map();
const PAPER = 690;

function resizeAll(widthOf) {
  for (const [place, view] of views) {
    if (place.isConnected) view.width(widthOf(place)).run();
    else views.delete(place);
  }
}

window.addEventListener("beforeprint", () => resizeAll(() => PAPER));
window.addEventListener("afterprint", () => resizeAll((place) => Math.max(place.clientWidth, 200)));

// Theme

function isDark() {
  const asked = document.documentElement.dataset.theme;
  return asked ? asked === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function nameTheme() {
  document.getElementById("theme").textContent = isDark() ? "Light" : "Dark";
}

document.getElementById("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);

// Tabs

const panels = [];

function addPanel(id, title, ...content) {
  const panel = el("div", { class: "panel", id, role: "tabpanel", "aria-labelledby": `tab-${id}` });
  panel.append(el("h2", { class: "printed" }, title), ...content);
  const tab = el("button", { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": id, onclick: () => show(id) }, title);
  panels.push({ id, tab, panel });
  document.getElementById("tabs").append(tab);
  document.getElementById("panels").append(panel);
}

function show(id) {
  for (const { id: each, tab, panel } of panels) {
    tab.setAttribute("aria-selected", String(each === id));
    tab.tabIndex = each === id ? 0 : -1;
    panel.classList.toggle("shown", each === id);
  }
}

document.getElementById("tabs").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const at = panels.findIndex(({ tab }) => tab === document.activeElement);
  const next = panels[(at + step + panels.length) % panels.length];
  show(next.id);
  next.tab.focus();
});

// Top

function heading() {
  const badge = DATA.runs.length === 1 ? el("span", { class: "badge" }, DATA.runs[0].state) : null;
  document.getElementById("title").append(DATA.title, ...(badge ? [badge] : []));
  document.getElementById("subtitle").textContent = DATA.subtitle;
  document.getElementById("footer").textContent = `Written by cpulm ${DATA.version} on ${DATA.written}. This page loads nothing from the network.`;
  const signs = { good: "✓", note: "i", warning: "!" };
  const findings = DATA.findings.map(({ weight, text }) =>
    el("div", { class: `card finding ${weight}` }, el("b", { title: weight }, signs[weight]), el("div", {}, text)));
  document.getElementById("findings").append(...findings);
  if (DATA.runs.length === 1) {
    document.getElementById("facts").append(...DATA.runs[0].facts.map(({ label, value, note }) =>
      el("div", { class: `fact of-${label}` }, el("span", {}, label), el("b", {}, value), note ? el("small", {}, note) : null)));
  }
}

/** Content for one run at a time; with several runs, a list above it selects the run. */
function perRun(build) {
  const place = el("div");
  const fill = (at) => {
    place.replaceChildren(build(DATA.runs[at]));
    drawWhatIsLeft();
  };
  fill(0);
  if (DATA.runs.length === 1) return [place];
  const choice = el("select", { "aria-label": "Run", onchange: (event) => fill(Number(event.target.value)) },
    ...DATA.runs.map(({ name }, at) => el("option", { value: at }, name)));
  return [el("div", { class: "bar" }, el("span", {}, "Run ", choice)), place];
}

// Samples

function samples(run) {
  const { samples: all } = run;
  if (!all.length) return el("div", { class: "card" }, "This run has no samples.");
  const about = el("p", { class: "about" });
  const text = el("pre");
  const slider = el("input", { type: "range", min: 0, max: all.length - 1, value: all.length - 1, "aria-label": "Sample", oninput: () => tell() });
  const move = (by) => {
    slider.value = Number(slider.value) + by;
    tell();
  };
  function tell() {
    const sample = all[Number(slider.value)];
    const when = `after ${significant(sample.tokens)} tokens, ${duration(sample.seconds)} of training`;
    about.textContent = `Step ${sample.step.toLocaleString("en-US")}, ${when} (${Number(slider.value) + 1} of ${all.length})`;
    text.textContent = sample.text;
  }
  tell();
  const before = el("button", { type: "button", "aria-label": "Earlier", onclick: () => move(-1) }, "←");
  const after = el("button", { type: "button", "aria-label": "Later", onclick: () => move(1) }, "→");
  const box = card("Samples during training", "", el("div", { class: "slider" }, before, slider, after), about, text);
  box.classList.add("samples");
  return box;
}

// What happened

function happened(run) {
  const parts = [];
  if (run.time_parts.length) {
    parts.push(card("Where the time went", "", picture(DATA.pictures.time_parts.spec, { points: run.time_parts }, "Where the time went")));
  }
  const rows = run.timeline.map((h) => [h.clock, h.step.toLocaleString("en-US"), duration(h.seconds), h.kind, h.text]);
  const columns = [{ title: "when" }, { title: "step", kind: "number" }, { title: "trained", kind: "number extra" }, { title: "what", kind: "extra" }, { title: "", kind: "words" }];
  const list = card("What happened", "", rows.length ? table(columns, rows) : "No events.");
  list.classList.add("long");
  const grid = el("div", { class: "grid" }, ...parts, list);
  for (const part of grid.children) part.classList.add("wide");
  return grid;
}

// Settings

const shown = (value) => (value === null || value === undefined || value === "" ? "–" : String(value));

function settings(run) {
  const differs = ([key]) => key in run.changes;
  const ordered = [...run.settings.filter(differs), ...run.settings.filter((row) => !differs(row))];
  const rows = ordered.map(([key, value]) => [key, shown(value), key in run.changes ? shown(run.changes[key]) : ""]);
  const columns = [{ title: "setting", kind: "key" }, { title: "this run", kind: "value" }, { title: "preset" }];
  const body = table(columns, rows, ordered.map((row) => (differs(row) ? "differs" : "")));
  const search = el("input", { type: "search", placeholder: "Find a setting", "aria-label": "Find a setting", oninput: () => {
    const wanted = search.value.toLowerCase();
    for (const row of body.querySelectorAll("tbody tr")) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  } });
  const count = Object.keys(run.changes).length;
  const box = card("Settings", ["All are the preset's.", "One differs from the preset; it is listed first."][count] ?? `${count} differ from the preset; they are listed first.`,
    el("div", { class: "bar" }, search), body);
  box.classList.add("long");
  return box;
}

// Comparison

function comparison() {
  const { columns, rows, about, effects } = DATA.comparison;
  const boxes = [card("The runs, best first", about, table(columns, rows, rows.map((_, at) => (at === 0 ? "best" : ""))))];
  if (effects.length) {
    const titles = ["runs", "mean bits per byte", "best bits per byte"].map((title) => ({ title, kind: "number" }));
    const about_ = "Means over the runs that share a value; the best value of each setting comes first.";
    boxes.push(card("What each setting did", about_, table([{ title: "setting", kind: "key" }, { title: "value" }, ...titles], effects)));
  }
  for (const box of boxes) box.classList.add("wide", "long");
  return el("div", { class: "grid" }, ...boxes);
}
