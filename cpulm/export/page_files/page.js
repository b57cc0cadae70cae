/** The page around the model: reads it and shows what it is; `begin` lets it be used. */
const $ = (id) => document.getElementById(id);
const model = JSON.parse($("model").textContent);
const codec = new TextCodec(model.vocabulary);
let engine = null;

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

function start() {
  for (const [name, value] of model.facts) {
    const row = $("facts").insertRow();
    row.insertCell().textContent = name;
    row.insertCell().textContent = value;
  }
  engine = new Engine(model, fromBase64($("weights").textContent), fromBase64($("wasm").textContent));
  $("weights").remove();
  begin();
  say(`${model.size} of weights are in this page: it needs no network.`);
  document.documentElement.dataset.ready = "yes";
}

try {
  start();
} catch (error) {
  say(`This browser cannot run the model: ${error.message}`, true);
}
