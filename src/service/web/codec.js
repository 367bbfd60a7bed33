// The codec in WebAssembly (bindings/web), as an object. Runs in the page's Workers, and in node for its tests.
"use strict";

/** What this file knows of the module's functions. */
const CODEC_ABI = 1;

/** One model and one session; see bindings/web/src/lib.rs for what its functions mean. */
class Codec {
  /** `bytes` of the module, `files` of the model by name; `encodes` says which of its networks is there. */
  static async load(bytes, files, encodes) {
    const { instance } = await WebAssembly.instantiate(bytes, {});
    const codec = new Codec(instance.exports);
    if (codec.wasm.undertone_abi() !== CODEC_ABI) throw new Error("the daemon's page and its codec are of different versions");
    for (const [name, content] of Object.entries(files)) codec.check(codec.wasm.undertone_file(codec.put(name, content)));
    codec.check(codec.wasm.undertone_model(encodes ? 1 : 0));
    return codec;
  }

  constructor(wasm) { this.wasm = wasm; }

  /** Writes a text and bytes behind it as the next input; gives the length of the text. */
  put(text, bytes = new Uint8Array(0)) {
    const head = new TextEncoder().encode(text);
    const at = this.wasm.undertone_room(head.length + bytes.length);
    // Memory may have grown: its buffer is looked up anew every time.
    const input = new Uint8Array(this.wasm.memory.buffer, at, head.length + bytes.length);
    input.set(head);
    input.set(bytes, head.length);
    return head.length;
  }

  text() { return new TextDecoder().decode(this.made(2, Uint8Array)); }

  made(what, Kind) {
    return new Kind(this.wasm.memory.buffer, this.wasm.undertone_at(what), this.wasm.undertone_length(what)).slice();
  }

  check(result) { if (result < 0) throw new Error(this.text()); }

  /** What a step made: bytes to send, samples, and the words of an end if it came to one. */
  step(result) {
    const out = this.made(0, Uint8Array), pcm = this.made(1, Float32Array);
    return { out, pcm, end: result === 0 ? null : { failed: result < 0, text: this.text() } };
  }

  listen(stream, token, stages) {
    return this.step(this.wasm.undertone_listen(this.put(stream, new TextEncoder().encode(token)), stages));
  }

  publish(stream, token, kbps, rate) {
    return this.step(this.wasm.undertone_publish(this.put(stream, new TextEncoder().encode(token)), kbps, rate));
  }

  receive(bytes, now) { this.put("", bytes); return this.step(this.wasm.undertone_receive(now)); }
  quiet(now) { return this.step(this.wasm.undertone_quiet(now)); }
  want(stages) { return this.step(this.wasm.undertone_want(stages)); }
  alive() { return this.step(this.wasm.undertone_alive()); }
  finish() { return this.step(this.wasm.undertone_finish()); }
  sound(samples) { this.put("", new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength)); return this.step(this.wasm.undertone_sound()); }

  /** When `quiet` is to be called, or null. */
  get due() { const due = this.wasm.undertone_due(); return due < 0 ? null : due; }

  get figures() {
    const [stages, frames, missing, skipped, coded, open] = [0, 1, 2, 3, 4, 5].map((n) => this.wasm.undertone_figure(n));
    return { stages, frames, missing, skipped, coded: coded === 1, open: open === 1 };
  }
}
