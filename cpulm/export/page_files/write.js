/** Writes with the model: text that continues a prompt. */
let writing = null;

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
    for await (const id of generate(engine, ids, number("length"), new Set([codec.endOfText]), choose, pause, stopped)) {
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

function begin() {
  $("prompt").value = model.prompt;
  $("write").onclick = write;
  $("stop").onclick = stop;
  $("prompt").onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !writing) write();
  };
  $("write").disabled = false;
}
