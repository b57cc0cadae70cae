// The inspected model: one card per question.

const LOOK = DATA.look;
const visible = (token) => token.replaceAll("\n", "↵").replaceAll("\t", "→").replaceAll(" ", "·")
  .replace(/[\u0000-\u001f\u007f-\u009f]/g, (char) => `<0x${char.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")}>`) || "∅";

function passage() {
  const { tokens, kinds, surprise, entropy, rank, alternatives } = LOOK.passage;
  const most = Math.max(Math.log(LOOK.vocabulary.vocab_size), 1);
  const detail = el("div", { class: "detail" });
  const spans = tokens.map((token, at) => {
    const share = Math.min((surprise[at] ?? 0) / most, 1);
    const span = el("span", { style: `--s: ${share.toFixed(3)}`, onpointerenter: () => tell(at), onclick: () => tell(at) }, token);
    return span;
  });
  function tell(at) {
    for (const span of spans) span.classList.remove("chosen");
    spans[at].classList.add("chosen");
    const facts = [["token", visible(tokens[at])], ["kind", kinds[at]], ["surprise", `${significant(surprise[at], 3)} nats`],
      ["expected surprise", `${significant(entropy[at], 3)} nats`], ["rank", rank[at] ? rank[at].toLocaleString("en-US") : "–"]];
    const rows = facts.map(([name, value]) => [name, value]);
    const likely = alternatives[at].map(({ token, probability }) => [visible(token), percent(probability)]);
    detail.replaceChildren(
      table([{ title: "" }, { title: "", kind: "token" }], rows),
      likely.length ? el("h3", {}, "The model's likeliest tokens") : "",
      likely.length ? table([{ title: "token", kind: "token" }, { title: "probability", kind: "number" }], likely) : "");
  }
  const worst = surprise.reduce((best, value, at) => ((value ?? -1) > (surprise[best] ?? -1) ? at : best), 0);
  if (tokens.length) tell(worst);
  const ramp = el("p", { class: "about" }, "low", el("i", { class: "ramp" }), `a surprise of ${significant(most, 3)} nats, that of guessing among all ${LOOK.vocabulary.vocab_size.toLocaleString("en-US")} tokens`);
  const box = card("Surprise, token by token", "", ramp, el("div", { class: "two" }, el("div", { class: "passage" }, ...spans), detail));
  box.classList.add("wide", "long");
  return box;
}

/** A chart whose rows are part of the page. */
function given(name) {
  const { spec, points, title } = DATA.pictures[name];
  return picture(spec, { points }, title);
}

const byPosition = () => card("Loss by context", "How much more context helps; the band is two standard errors.", given("loss_by_context"));

const byKind = () => card("Loss by kind of token", "The thin line is two standard errors to either side.", given("loss_by_kind"));

function nextToken() {
  const { prompt, entropy } = LOOK.next_token;
  return card("Next token", `The distribution has an entropy of ${significant(entropy, 3)} nats, like choosing among ${significant(Math.exp(entropy), 3)} equally likely tokens.`,
    el("pre", {}, prompt ? prompt.slice(-300) : "(the start of a text)"), el("h3", {}, "likeliest next tokens"), given("next_token"));
}

function attention() {
  const { tokens, weights, heads } = LOOK.attention;
  const chosen = { layer: 0, head: 0, figure: "distance" };
  const figures = { distance: "tokens back", entropy: "entropy (nats)", to_previous: "to the previous token", to_first: "to the first token", to_self: "to itself" };
  const shares = ["to_previous", "to_first", "to_self"];
  const name = el("h3");
  const map = el("div", { class: "picture", role: "img", "aria-label": "Attention of one head" });
  const overview = el("div", { class: "picture", role: "img", "aria-label": "All heads" });
  async function drawMap() {
    const rows = weights[chosen.layer][chosen.head];
    name.textContent = `Layer ${chosen.layer}, head ${chosen.head}`;
    const points = rows.flatMap((row, from) => row.map((weight, to) => ({ from, to, weight, what: `${visible(tokens[from])} attends to ${visible(tokens[to])}` })));
    const spec = structuredClone(DATA.pictures.attention.spec);
    spec.params[0].value = tokens.map(visible);
    await draw(map, spec, { points });
  }
  async function drawHeads() {
    const points = heads.map((head) => {
      const value = head[chosen.figure];
      return { layer: head.layer, head: head.head, value, shown: shares.includes(chosen.figure) ? `${Math.round(100 * value)} %` : significant(value, 2) };
    });
    const spec = structuredClone(DATA.pictures.heads.spec);
    spec.layer[0].params[0].value = [{ layer: chosen.layer, head: chosen.head }];
    const view = await draw(overview, spec, { points });
    view.addSignalListener("chosen", (_, value) => {
      if (!value.layer?.length) return;
      [chosen.layer, chosen.head] = [value.layer[0], value.head[0]];
      drawMap();
    });
  }
  const choice = el("select", { "aria-label": "Figure", onchange: (event) => {
    chosen.figure = event.target.value;
    drawHeads();
  } }, ...Object.entries(figures).map(([key, words]) => el("option", { value: key }, words)));
  later.push({ place: map, draw: drawMap }, { place: overview, draw: drawHeads });
  const box = card("Attention", "Click a head to see its map. Rows attend to columns, never to later tokens.",
    el("div", { class: "two" }, el("div", {}, name, map), el("div", {}, el("div", { class: "bar" }, el("span", {}, "all heads: ", choice)), overview)));
  box.classList.add("wide");
  return box;
}

function embeddings() {
  const { tokens, explained } = LOOK.embedding_map;
  const about = `The ${tokens.length} most frequent tokens in the plane of largest variance of their embeddings, which holds ${percent(explained[0] + explained[1])} of their variance. Hover for a token's name. Drag to move.`;
  const box = card("Map of the embeddings", about, given("embeddings"));
  box.classList.add("wide");
  return box;
}

function neighbours() {
  const rows = LOOK.neighbours.flatMap(({ token, nearest }) => [
    el("b", { class: "token" }, visible(token)),
    el("div", { class: "chips" }, ...nearest.map((other) => el("span", { class: "chip token" }, visible(other.token), el("small", {}, significant(other.cosine, 2))))),
  ]);
  return card("Neighbours", "Tokens with the most similar embeddings, with their cosine.", el("div", { class: "neighbours" }, ...rows));
}

function deadUnits() {
  const dead = LOOK.units.reduce((sum, unit) => sum + unit.never_active + unit.constant, 0);
  const all = LOOK.units.reduce((sum, unit) => sum + unit.units, 0);
  const box = card("Idle MLP units", `${dead} of ${all.toLocaleString("en-US")} MLP units are idle on this text.`,
    ...(dead ? [given("idle_units")] : []));
  if (!dead) box.classList.add("low");
  return box;
}

function unusedTokens() {
  const { unused, rare, note, examples, vocab_size: size } = LOOK.vocabulary;
  const used = unused === null ? "It is unknown which tokens the model never saw." : `${unused.toLocaleString("en-US")} of ${size.toLocaleString("en-US")} tokens were never seen${rare ? `, ${rare.toLocaleString("en-US")} more were seen at most ten times` : ""}.`;
  return card("Unused vocabulary", used, examples.length ? el("h3", {}, note) : el("p", { class: "about" }, note),
    el("div", { class: "chips" }, ...examples.map((token) => el("span", { class: "chip token" }, visible(token)))));
}

function matrices() {
  const columns = [{ title: "matrix", kind: "key" }, ...["shape", "norm", "RMS", "largest singular value", "stable rank"].map((title) => ({ title, kind: "number" }))];
  const rows = LOOK.matrices.map((m) => [m.name, `${m.rows} × ${m.columns}`, ...[m.norm, m.rms, m.spectral_norm, m.stable_rank].map((v) => significant(v, 3))]);
  const box = card("Weight matrices", "The stable rank is about the number of directions a matrix really uses, at most its shorter side.", table(columns, rows));
  box.classList.add("wide", "long");
  return box;
}

function look() {
  const about = `${LOOK.checkpoint} at step ${LOOK.step.toLocaleString("en-US")}, on ${LOOK.text}: a loss of ${significant(LOOK.loss)} nats per token (${significant(LOOK.bits_per_byte)} bits per byte) over ${LOOK.tokens.toLocaleString("en-US")} tokens` +
    (LOOK.tokens < LOOK.text_tokens ? ` of the text's ${LOOK.text_tokens.toLocaleString("en-US")}.` : ".");
  return [el("p", { class: "hint" }, about), el("div", { class: "grid" }, passage(), byPosition(), byKind(), attention(), nextToken(), neighbours(), embeddings(), deadUnits(), unusedTokens(), matrices())];
}
