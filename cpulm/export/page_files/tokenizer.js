/** Text to tokens and back, as the `tokenizers` library does it for the vocabularies of cpulm. */
class TextCodec {
  /**
   * @param vocabulary kind, tokens by id, merges as "a b" with the first merge first, pattern, ids of special tokens;
   *   `chat` has those of a conversation's roles and of a message's end
   */
  constructor(vocabulary) {
    this.kind = vocabulary.kind;
    this.tokens = vocabulary.tokens;
    this.special = new Set(vocabulary.special);
    this.ids = new Map(vocabulary.tokens.map((token, id) => [token, id]).filter(([, id]) => !this.special.has(id)));
    this.ranks = new Map(vocabulary.merges.map((merge, rank) => [merge, rank]));
    this.pattern = vocabulary.pattern ? SPLITTING[vocabulary.pattern] : null;
    this.byLetter = new Map(BYTE_LETTERS.map((letter, byte) => [letter, byte]));
    this.startsDocuments = vocabulary.startsDocuments;
    this.beginsRecords = vocabulary.beginsRecords;
    this.endOfText = vocabulary.endOfText;
    this.chat = vocabulary.chat;
  }

  /** Ids of at least one token; an error names what the vocabulary lacks. */
  encodePrompt(text) {
    const ids = this.encode(text);
    if (this.beginsRecords) return [this.endOfText, ...ids];
    if (ids.length) return ids;
    if (this.startsDocuments) return [this.endOfText];
    try {
      const lineEnd = this.encode("\n");
      return lineEnd.length ? lineEnd : [this.endOfText];
    } catch {
      return [this.endOfText];
    }
  }

  /** Ids of a conversation up to where the assistant answers. */
  encodeTalk(messages) {
    const said = ({ role, content }) => [this.chat[role], ...this.encode(content), this.chat.end];
    return [this.endOfText, ...messages.flatMap(said), this.chat.assistant];
  }

  encode(text) {
    if (this.kind === "word") return text.split(WHITE_SPACE).filter(Boolean).map((word) => this.idOf(word));
    if (this.kind === "char") return [...text].map((character) => this.idOf(character));
    const words = this.pattern ? text.match(this.pattern) ?? [] : [text];
    return words.flatMap((word) => this.merged(word)).map((piece) => this.idOf(piece));
  }

  idOf(piece) {
    const id = this.ids.get(piece);
    if (id === undefined) throw new Error(`The model does not know ${JSON.stringify(piece)}.`);
    return id;
  }

  /** A word's bytes, joined by the merges in the order of their ranks. */
  merged(word) {
    let pieces = Array.from(new TextEncoder().encode(word), (byte) => BYTE_LETTERS[byte]);
    while (pieces.length > 1) {
      let [best, at] = [Infinity, -1];
      for (let i = 0; i + 1 < pieces.length; i++) {
        const rank = this.ranks.get(`${pieces[i]} ${pieces[i + 1]}`) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) break;
      pieces.splice(at, 2, pieces[at] + pieces[at + 1]);
    }
    return pieces;
  }

  /** A function that gives the text each further token completes; with no token, what is held back. */
  decoder() {
    const bytes = new TextDecoder("utf-8", { ignoreBOM: true });
    let first = true;
    return (id) => {
      if (id === undefined) return this.kind === "word" || this.kind === "char" ? "" : bytes.decode();
      if (this.special.has(id)) return "";
      const token = this.tokens[id];
      if (this.kind === "char") return token;
      if (this.kind === "word") {
        const text = first ? token : ` ${token}`;
        first = false;
        return text;
      }
      return bytes.decode(Uint8Array.from([...token], (letter) => this.byLetter.get(letter)), { stream: true });
    };
  }
}

/** The printable character for each byte in byte-level vocabularies, as in GPT-2's bytes_to_unicode. */
const BYTE_LETTERS = (() => {
  const isPrintable = (byte) =>
    (byte >= 0x21 && byte < 0x7f) || (byte >= 0xa1 && byte < 0xad) || (byte >= 0xae && byte < 0x100);
  let spare = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(isPrintable(byte) ? byte : spare++));
})();

// JavaScript's \s has U+FEFF, and lacks U+0085.
const BLANKS = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const WHITE_SPACE = new RegExp(`[${BLANKS}]+`, "u");
const CONTRACTIONS = "'(?:[sSſ]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])";
const LIKE_QWEN = (digits) =>
  `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}| ?[^${BLANKS}\\p{L}\\p{N}]+[\\r\\n]*|[${BLANKS}]*[\\r\\n]+` +
  `|[${BLANKS}]+(?![^${BLANKS}])|[${BLANKS}]+`;
const SPLITTING = {
  gpt2: new RegExp(
    `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${BLANKS}\\p{L}\\p{N}]+|[${BLANKS}]+(?![^${BLANKS}])|[${BLANKS}]+`,
    "gu",
  ),
  qwen2: new RegExp(LIKE_QWEN("\\p{N}"), "gu"),
  llama3: new RegExp(LIKE_QWEN("\\p{N}{1,3}"), "gu"),
};
