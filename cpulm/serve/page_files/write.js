/** The page that writes with the model of its server. */
"use strict";
let writing = null;

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

start(() => {
  $("write").onclick = write;
  $("stop").onclick = () => writing?.abort();
  $("prompt").onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !writing) write();
  };
  $("write").disabled = false;
});
