/**
 * What Envoy prints of its configuration, read as it comes: a listener of a thousand chains is twenty megabytes of text, and several
 * times that as objects. Of each resource its name and version are kept, and a hash of its content in which the order of an object's
 * keys does not matter, since Envoy prints maps in any. The hash tells what differs by accident; it is no proof against who wants it
 * to be equal.
 */

/** Keys below an item of `configs`, joined by dots. */
export interface DumpPaths {
  name: string;
  version: string;
  /** undefined: it is not looked at. */
  content: string | undefined;
}

export interface DumpedResource {
  name: string | undefined;
  version: string | undefined;
  /** 16 hexadecimal digits; undefined where there is none. */
  content: string | undefined;
}

interface Open {
  isArray: boolean;
  /** Of what is in it so far. */
  a: number;
  b: number;
  keyA: number;
  keyB: number;
  key: string;
}

const [SEED_A, SEED_B] = [0x811c9dc5, 0x9e3779b9];
const [QUOTE, BACKSLASH, COLON, COMMA] = [0x22, 0x5c, 0x3a, 0x2c];
const [OPEN_ARRAY, CLOSE_ARRAY, OPEN_OBJECT, CLOSE_OBJECT] = [0x5b, 0x5d, 0x7b, 0x7d];
/** The document, `configs`, and an item of it. */
const ITEM_DEPTH = 3;
/** Paths have no more keys than this. */
const MOST_KEYS = 3;

export class ConfigDump {
  readonly resources: DumpedResource[] = [];
  readonly #paths: DumpPaths;
  readonly #open: Open[] = [];
  #item: DumpedResource = { name: undefined, version: undefined, content: undefined };
  /** Of the string or other scalar that is being read. */
  #a = SEED_A;
  #b = SEED_B;
  #isString = false;
  #isEscaped = false;
  #isScalar = false;
  #isKey = false;
  /** Its text, where somebody may ask for it. */
  #text: string | undefined;
  #isDone = false;

  constructor(paths: DumpPaths) {
    this.#paths = paths;
  }

  /** @param text the next part of the answer, however it was cut */
  write(text: string): void {
    let [a, b] = [this.#a, this.#b];
    let from = 0;
    for (let at = 0; at < text.length; at++) {
      const code = text.charCodeAt(at);
      if (this.#isString) {
        if (this.#isEscaped) this.#isEscaped = false;
        else if (code === BACKSLASH) this.#isEscaped = true;
        else if (code === QUOTE) {
          if (this.#text !== undefined) this.#text += text.slice(from, at);
          this.#isString = false;
          this.#ended(a, b);
          continue;
        }
        a = Math.imul(a ^ code, 0x01000193);
        b = Math.imul(((b << 5) | (b >>> 27)) ^ code, 0x85ebca6b);
        continue;
      }
      if (code === QUOTE) {
        [a, b, from] = [SEED_A, SEED_B, at + 1];
        this.#isString = true;
        const depth = this.#open.length;
        this.#text = depth >= ITEM_DEPTH && depth < ITEM_DEPTH + MOST_KEYS ? '' : undefined;
      } else if (code === OPEN_OBJECT || code === OPEN_ARRAY) {
        this.#isKey = code === OPEN_OBJECT;
        this.#open.push({ isArray: code === OPEN_ARRAY, a: code, b: code, keyA: 0, keyB: 0, key: '' });
      } else if (code === COLON) this.#isKey = false;
      else if (code === COMMA || code === CLOSE_OBJECT || code === CLOSE_ARRAY) {
        if (this.#isScalar) this.#scalarEnded(a, b);
        if (code === COMMA) this.#isKey = this.#open.at(-1)?.isArray === false;
        else this.#close();
      } else if (code > 0x20) {
        if (!this.#isScalar) [a, b, this.#isScalar] = [~SEED_A, ~SEED_B, true];
        a = Math.imul(a ^ code, 0x01000193);
        b = Math.imul(((b << 5) | (b >>> 27)) ^ code, 0x85ebca6b);
      }
    }
    if (this.#isString && this.#text !== undefined) this.#text += text.slice(from);
    [this.#a, this.#b] = [a, b];
  }

  /** @throws Error when the answer was not whole */
  end(): readonly DumpedResource[] {
    if (!this.#isDone || this.#open.length > 0) throw new Error("Envoy's dump of its configuration ends in the middle, or is no JSON");
    return this.resources;
  }

  #scalarEnded(a: number, b: number): void {
    this.#isScalar = false;
    this.#text = undefined;
    this.#ended(a, b);
  }

  /** A key, or a value. */
  #ended(a: number, b: number): void {
    const top = this.#open.at(-1);
    if (this.#isKey && top) {
      [top.keyA, top.keyB, top.key] = [a, b, this.#text ?? ''];
      return;
    }
    this.#value(a, b, false);
  }

  #close(): void {
    const closed = this.#open.pop();
    if (!closed) throw new Error("Envoy's dump of its configuration is no JSON");
    this.#isKey = false;
    this.#value(closed.a, closed.b, true);
    if (this.#open.length === ITEM_DEPTH - 1 && this.#open[1]?.isArray) {
      this.resources.push(this.#item);
      this.#item = { name: undefined, version: undefined, content: undefined };
    }
  }

  #value(a: number, b: number, isContainer: boolean): void {
    const top = this.#open.at(-1);
    if (!top) {
      this.#isDone = true;
      return;
    }
    const depth = this.#open.length;
    if (depth >= ITEM_DEPTH && depth < ITEM_DEPTH + MOST_KEYS && !top.isArray) this.#found(a, b, isContainer);
    if (top.isArray) [top.a, top.b] = [mixed(top.a, a, b), mixed(top.b, b, a)];
    else {
      // A sum does not tell its parts' order.
      top.a = (top.a + mixed(mixed(top.keyA, top.keyB, a), b, a)) | 0;
      top.b = (top.b + mixed(mixed(top.keyB, top.keyA, b), a, b)) | 0;
    }
  }

  #found(a: number, b: number, isContainer: boolean): void {
    const path = this.#open.slice(ITEM_DEPTH - 1).map(({ key }) => key).join('.');
    const text = isContainer || this.#text === undefined ? undefined : (JSON.parse(`"${this.#text}"`) as string);
    if (path === this.#paths.name) this.#item.name = text;
    if (path === this.#paths.version) this.#item.version = text;
    if (path === this.#paths.content) this.#item.content = hex(a) + hex(b);
  }
}

function mixed(hash: number, some: number, other: number): number {
  let value = Math.imul(hash ^ some, 0x85ebca6b);
  value = Math.imul(value ^ (value >>> 13) ^ other, 0xc2b2ae35);
  return value ^ (value >>> 16);
}

function hex(value: number): string {
  return (value >>> 0).toString(16).padStart(8, '0');
}
