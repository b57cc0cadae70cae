/** Talks with the model. */
async function* answer(messages, signal) {
  let forgotten = false;
  let ids = codec.encodeTalk(messages);
  const block = model.settings.block_size;
  const count = number("length");
  const choose = sampler(number("temperature"), number("top-k"));
  // An answer has at least a quarter of the context.
  while (ids.length > block + 1 - Math.min(count, Math.max(1, Math.floor(block / 4)))) {
    if (!forgetOldest(messages)) throw new Error(`The message is too long: the model sees ${block} tokens.`);
    forgotten = true;
    ids = codec.encodeTalk(messages);
  }
  say("reading the talk");
  const decode = codec.decoder();
  const ends = new Set([codec.endOfText, codec.chat.end]);
  const most = Math.min(count, block + 1 - ids.length);
  let [made, began] = [0, performance.now()];
  for await (const id of generate(engine, ids, most, ends, choose, pause, () => signal.aborted)) {
    yield decode(id);
    made++;
    const seconds = (performance.now() - began) / 1000;
    const speed = `${made} tokens, ${(made / seconds).toFixed(0)} a second`;
    say(forgotten ? `${speed}; the model has forgotten the oldest messages` : speed);
  }
  yield decode();
}

function begin() {
  new Talk(answer);
}
