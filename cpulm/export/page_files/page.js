/** The page around the model: reads it, writes with it, and shows what it is. */
const $ = (id) => document.getElementById(id);
const model = JSON.parse($("model").textContent);
const codec = new TextCodec(model.vocabulary);
let engine = null;
let writing = null;

function fromBase64(text) {
  const [part, pieces] = [1 << 20, []];
  let length = 0;
  for (let at = 0; at < text.length; at += part) {
    const binary = atob(text.slice(at, at + part));
    const piece = Uint8Array.from(binary, (character) => character.charCodeAt(0));
    pieces.push(piece);
    length += piece.length;
  }
  const all = new Uint8Array(length);
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}

/** Lets the browser draw and answer; setTimeout would wait 4 ms each time. */
function pause() {
  return new Promise((resolve) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      channel.port1.close();
      resolve();
    };
    channel.port2.postMessage(null);
  });
}

function number(id) {
  const [field, value] = [$(id), Number($(id).value)];
  if (field.value.trim() === "" || !field.checkValidity()) {
    throw new Error(`${field.labels[0].textContent.trim()}: ${field.validationMessage || "give a number."}`);
  }
  return value;
}

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

async function write() {
  const mine = (writing = {});
  const output = $("text");
  output.replaceChildren();
  try {
    const prompt = $("prompt").value;
    const ids = codec.encodePrompt(prompt);
    const choose = sampler(number("temperature"), number("top-k"));
    const decode = codec.decoder();
    const opening = document.createElement("span");
    opening.className = "opening";
    opening.textContent = prompt;
    const text = document.createTextNode(model.vocabulary.kind === "word" && prompt ? " " : "");
    output.append(opening, text);
    document.body.classList.add("writing");
    say("reading the prompt");
    let [made, began] = [0, performance.now()];
    const stopped = () => writing !== mine;
    for await (const id of generate(engine, ids, number("length"), codec.endOfText, choose, pause, stopped)) {
      text.appendData(decode(id));
      made++;
      const seconds = (performance.now() - began) / 1000;
      say(`${made} tokens, ${(made / seconds).toFixed(0)} a second`);
    }
    text.appendData(decode());
    if (!made) say("the model ended the text at once");
  } catch (error) {
    say(error.message, true);
  }
  if (writing === mine) writing = null;
  document.body.classList.toggle("writing", writing !== null);
}

function stop() {
  writing = null;
}

function start() {
  for (const [name, value] of model.facts) {
    const row = $("facts").insertRow();
    row.insertCell().textContent = name;
    row.insertCell().textContent = value;
  }
  engine = new Engine(model, fromBase64($("weights").textContent), fromBase64($("wasm").textContent));
  $("weights").remove();
  $("prompt").value = model.prompt;
  $("write").onclick = write;
  $("stop").onclick = stop;
  $("prompt").onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !writing) write();
  };
  $("write").disabled = false;
  say(`${model.size} of weights are in this page: it needs no network.`);
  document.documentElement.dataset.ready = "yes";
}

try {
  start();
} catch (error) {
  say(`This browser cannot run the model: ${error.message}`, true);
}
