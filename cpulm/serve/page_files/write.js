/** The page that writes with the model of its server. The key stands behind the # of its address. */
"use strict";
const $ = (id) => document.getElementById(id);
const key = new URLSearchParams(location.hash.slice(1)).get("key") ?? "";
let writing = null;

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

function number(id) {
  const [field, value] = [$(id), Number($(id).value)];
  if (field.value.trim() === "" || !field.checkValidity()) {
    throw new Error(`${field.labels[0].textContent.trim()}: ${field.validationMessage || "give a number."}`);
  }
  return value;
}

async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { Authorization: `Bearer ${key}` } });
  if (response.ok) return response;
  throw new Error((await response.json()).error.message);
}

/** The objects of a stream of server-sent events. */
async function* events(response) {
  const [reader, decoder] = [response.body.getReader(), new TextDecoder()];
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the server ended the text");
    const parts = (held + decoder.decode(value, { stream: true })).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (part === "data: [DONE]") return;
      const event = JSON.parse(part.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function write() {
  const mine = (writing = new AbortController());
  $("text").replaceChildren();
  try {
    const prompt = $("prompt").value;
    const body = JSON.stringify({
      prompt, stream: true, stream_options: { include_usage: true },
      temperature: number("temperature"), top_k: number("top-k"), max_tokens: number("length"),
    });
    const opening = document.createElement("span");
    opening.className = "opening";
    opening.textContent = prompt;
    const text = document.createTextNode("");
    $("text").append(opening, text);
    document.body.classList.add("writing");
    say("waiting for the model");
    const response = await ask("v1/completions", { method: "POST", body, signal: mine.signal });
    const began = performance.now();
    for await (const event of events(response)) {
      if (event.choices.length) text.appendData(event.choices[0].text);
      const seconds = (performance.now() - began) / 1000;
      const made = event.usage?.completion_tokens;
      say(made === undefined ? "writing" : `${made} tokens, ${(made / seconds).toFixed(0)} a second`);
    }
  } catch (error) {
    if (mine.signal.aborted) say("stopped");
    else say(error.message, true);
  }
  if (writing === mine) writing = null;
  document.body.classList.toggle("writing", writing !== null);
}

async function start() {
  const { data } = await (await ask("v1/models")).json();
  $("name").textContent = document.title = data[0].id;
  $("write").onclick = write;
  $("stop").onclick = () => writing?.abort();
  $("prompt").onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !writing) write();
  };
  $("write").disabled = false;
}

start().catch((error) => say(`${error.message}: open the address that cpulm serve printed`, true));
