// Runs the module under node as the page's Workers do:
//   node run.js codec.js MODULE MODEL_FOLDER listen|publish INPUT OUTPUT
// INPUT holds pieces: milliseconds (f64), bytes (u32), the bytes; at 0 bytes silence goes on until then. Of a publisher, pieces that
// begin with the letter m are messages of the daemon, those with s samples. OUTPUT are the samples, or the bytes that were sent; the
// time of it all is told on the standard output.
"use strict";
const fs = require("node:fs");
const vm = require("node:vm");

async function main([glue, module, folder, what, from, to]) {
  vm.runInThisContext(`${fs.readFileSync(glue, "utf8")};globalThis.Codec = Codec`);
  const encodes = what === "publish";
  const names = ["manifest.toml", "files.toml", "codebooks.safetensors", "tokens.safetensors", encodes ? "encoder.onnx" : "decoder.onnx"];
  const files = Object.fromEntries(names.map((name) => [name, fs.readFileSync(`${folder}/${name}`)]));
  const loading = performance.now();
  const codec = await Codec.load(fs.readFileSync(module), files, encodes);
  const loaded = performance.now() - loading;
  const input = fs.readFileSync(from), made = [];
  const take = ({ out, pcm, end }) => {
    if (end && end.failed) throw new Error(end.text);
    made.push(Buffer.from(encodes ? out : pcm.buffer));
  };
  take(encodes ? codec.publish("mic", "secret", 6, 48000) : codec.listen("main", "secret", 24));
  const start = performance.now();
  for (let at = 0; at < input.length;) {
    const now = input.readDoubleLE(at), length = input.readUInt32LE(at + 8);
    const piece = new Uint8Array(input.subarray(at + 12, at + 12 + length));
    at += 12 + length;
    if (!encodes) take(length ? codec.receive(piece, now) : codec.quiet(now));
    else if (piece[0] === "m".charCodeAt(0)) take(codec.receive(piece.subarray(1), now));
    else take(codec.sound(new Float32Array(piece.slice(1).buffer)));
  }
  if (encodes) take(codec.finish());
  fs.writeFileSync(to, Buffer.concat(made));
  console.log(JSON.stringify({ load_ms: loaded, ms: performance.now() - start, ...codec.figures }));
}

main(process.argv.slice(2)).catch((error) => { console.error(error); process.exit(1); });
