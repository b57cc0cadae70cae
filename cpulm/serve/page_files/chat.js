/** The page that talks with the model of its server. */
"use strict";

async function* answer(messages, signal) {
  say("waiting for the model");
  let [response, forgotten] = [null, false];
  while (response === null) {
    const body = JSON.stringify({
      messages, stream: true, stream_options: { include_usage: true },
      temperature: number("temperature"), top_k: number("top-k"), max_tokens: number("length"),
    });
    try {
      response = await ask("v1/chat/completions", { method: "POST", body, signal });
    } catch (error) {
      if (error.code !== "context_length_exceeded" || !forgetOldest(messages)) throw error;
      forgotten = true;
    }
  }
  const began = performance.now();
  for await (const event of events(response)) {
    if (event.choices.length) yield event.choices[0].delta.content ?? "";
    const seconds = (performance.now() - began) / 1000;
    const made = event.usage?.completion_tokens;
    const speed = made === undefined ? "writing" : `${made} tokens, ${(made / seconds).toFixed(0)} a second`;
    say(forgotten ? `${speed}; the model has forgotten the oldest messages` : speed);
  }
}

start(() => new Talk(answer));
