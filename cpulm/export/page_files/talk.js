/** The view of a talk: what was said, and a box for the next message. Both pages that talk have it. */
class Talk {
  /** @param answer (messages, signal) => an async iterable of pieces; it may take the oldest messages away */
  constructor(answer) {
    this.answer = answer;
    this.messages = [];
    this.current = null;
    $("send").onclick = () => this.send();
    $("stop").onclick = () => this.current?.abort();
    $("clear").onclick = () => this.clear();
    $("message").onkeydown = (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    };
    $("send").disabled = false;
  }

  clear() {
    this.current?.abort();
    this.messages = [];
    $("talk").replaceChildren();
    say("");
    $("message").focus();
  }

  show(role, text) {
    const bubble = document.createElement("div");
    bubble.className = role;
    bubble.textContent = text;
    $("talk").append(bubble);
    bubble.scrollIntoView({ block: "nearest" });
    return bubble;
  }

  async send() {
    const text = $("message").value;
    if (!text.trim() || this.current) return;
    const mine = (this.current = new AbortController());
    const messages = this.messages;
    const shown = [this.show("user", text), this.show("assistant", "")];
    let written = "";
    messages.push({ role: "user", content: text });
    $("message").value = "";
    document.body.classList.add("writing");
    try {
      for await (const piece of this.answer(messages, mine.signal)) {
        written += piece;
        shown[1].textContent = written;
        shown[1].scrollIntoView({ block: "nearest" });
      }
    } catch (error) {
      if (mine.signal.aborted) say("stopped");
      else say(error.message, true);
    }
    if (written.trim()) messages.push({ role: "assistant", content: written });
    else {
      messages.pop();
      for (const bubble of shown) bubble.remove();
      if (messages === this.messages) $("message").value = text;
      if (!$("status").textContent) say("the model said nothing");
    }
    if (this.current === mine) this.current = null;
    document.body.classList.toggle("writing", this.current !== null);
    $("message").focus();
  }
}

/** Takes the oldest message away, and what follows it up to the next one of the user; false if none is left. */
function forgetOldest(messages) {
  const next = messages.findIndex((message, place) => place > 0 && message.role === "user");
  if (next < 0) return false;
  messages.splice(0, next);
  return true;
}
