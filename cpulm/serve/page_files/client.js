/** What the pages of the server share: asking it, and reading what it streams. The key stands behind the # of the address. */
"use strict";
const $ = (id) => document.getElementById(id);
const key = new URLSearchParams(location.hash.slice(1)).get("key") ?? "";

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
  const { error } = await response.json();
  throw Object.assign(new Error(error.message), { code: error.code });
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

/** Names the page after the model; `ready` is called once the server has answered. */
async function start(ready) {
  try {
    const { data } = await (await ask("v1/models")).json();
    $("name").textContent = document.title = data[0].id;
    ready();
  } catch (error) {
    say(`${error.message}: open the address that cpulm serve printed`, true);
  }
}
