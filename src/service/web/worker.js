// One session of codes in a Worker: the WebSocket, the codec in WebAssembly, and a port to the worklet that plays or records.
"use strict";
importScripts("/codec.js");

/** Milliseconds between signs of life while nothing is sent, and between two reports. */
const ALIVE = 5000, REPORT = 200;
/** Bytes that may wait to be sent, 2 s at the highest rate: what comes beyond is left out, so that latency cannot creep up. */
const MOST_WAITING = 3000;

let codec = null, session = null;

/** Fetches a file of the codec, which the browser keeps. */
async function fetched({ at, bytes }, token, progress) {
  const answer = await fetch(at, { headers: token ? { Authorization: `Bearer ${token}` } : {} });
  if (!answer.ok) throw new Error(`${at}: ${answer.status} ${(await answer.text()).trim()}`);
  const whole = new Uint8Array(bytes), reader = answer.body.getReader();
  for (let had = 0; ;) {
    const { done, value } = await reader.read();
    if (done) {
      if (had !== bytes) throw new Error(`${at}: ${had} of ${bytes} bytes came`);
      return whole;
    }
    if (had + value.length > bytes) throw new Error(`${at}: more than ${bytes} bytes came`);
    whole.set(value, had);
    had += value.length;
    progress(value.length);
  }
}

async function load({ index, encodes, token }) {
  const files = Object.entries(encodes ? index.publish : index.listen);
  const all = files.reduce((sum, [, file]) => sum + file.bytes, index.module.bytes);
  let had = 0, told = 0;
  const progress = (more) => {
    had += more;
    if (had - told > all / 50 || had === all) {
      told = had;
      postMessage({ type: "loading", had, all });
    }
  };
  const module = await fetched(index.module, token, progress);
  const contents = {};
  for (const [name, file] of files) contents[name] = await fetched(file, token, progress);
  codec = await Codec.load(module, contents, encodes);
  postMessage({ type: "loaded" });
}

/** Sends and plays what a step of the codec made, and ends the session if it came to its end. */
function take(made, { out, pcm, end }) {
  if (made !== session) return;
  if (out.length && made.socket.readyState === WebSocket.OPEN) {
    made.socket.send(out);
    made.sent += out.length;
    made.spoke = performance.now();
  }
  if (pcm.length) {
    made.samples += pcm.length;
    made.port.postMessage(pcm, [pcm.buffer]);
  }
  if (end) ended(made, end);
}

function ended(made, end) {
  if (made !== session) return;
  stop();
  postMessage({ type: "ended", failed: end.failed, text: end.text });
}

function stop() {
  const made = session;
  session = null;
  if (!made) return;
  clearTimeout(made.quiet);
  clearInterval(made.report);
  made.port.onmessage = null;
  made.port.close();
  if (made.socket.readyState === WebSocket.OPEN) made.socket.close(1000);
  else made.socket.onopen = () => made.socket.close(1000);
}

/** Makes silence up when it is due, as nothing comes then. */
function hush(made) {
  clearTimeout(made.quiet);
  if (made !== session || codec.due === null) return;
  made.quiet = setTimeout(() => attempt(made, () => {
    take(made, codec.quiet(performance.now()));
    hush(made);
  }), Math.max(1, codec.due - performance.now()));
}

/** The module stops for good where Rust would have panicked; then the session is over, and so is the module. */
function attempt(made, step) {
  try {
    step();
  } catch (error) {
    codec = null;
    ended(made, { failed: true, text: `The codec failed: ${error.message}` });
  }
}

function start({ url, port, stream, token, stages, kbps, rate, encodes }) {
  stop();
  const socket = new WebSocket(url);
  socket.binaryType = "arraybuffer";
  const made = { socket, port, samples: 0, received: 0, sent: 0, decode: 0, spoke: 0, left: 0, finishing: false };
  session = made;
  const hello = () => take(made, encodes ? codec.publish(stream, token, kbps, rate) : codec.listen(stream, token, stages));
  socket.onopen = () => attempt(made, hello);
  socket.onmessage = ({ data }) => attempt(made, () => {
    if (made !== session || typeof data === "string") return;
    const before = performance.now();
    made.received += data.byteLength;
    take(made, codec.receive(new Uint8Array(data), before));
    made.decode = performance.now() - before;
    hush(made);
  });
  socket.onclose = () => ended(made, { failed: !made.finishing, text: made.finishing ? "Stopped" : "The connection was cut" });
  if (encodes) {
    port.onmessage = ({ data }) => attempt(made, () => {
      if (made !== session || made.finishing) return;
      if (socket.bufferedAmount > MOST_WAITING) { made.left += data.length; return; }
      const before = performance.now();
      take(made, codec.sound(data));
      made.decode = performance.now() - before;
    });
  }
  made.report = setInterval(() => {
    if (encodes && codec.figures.open && performance.now() - made.spoke > ALIVE) attempt(made, () => take(made, codec.alive()));
    postMessage({ type: "heard", ...codec.figures, samples: made.samples, received: made.received, sent: made.sent, left: made.left / (rate || 1), decode_ms: made.decode });
  }, REPORT);
}

/** The last bundle of what is published, and then the end; a daemon that does not answer is not waited for. */
function finish() {
  const made = session;
  if (!made || made.socket.readyState !== WebSocket.OPEN) { stop(); postMessage({ type: "ended", failed: false, text: "Stopped" }); return; }
  attempt(made, () => take(made, codec.finish()));
  made.finishing = true;
  setTimeout(() => ended(made, { failed: false, text: "Stopped" }), 2000);
}

onmessage = async ({ data }) => {
  switch (data.do) {
    case "load":
      try { await load(data); } catch (error) { postMessage({ type: "unable", text: error.message }); }
      break;
    case "start": start(data); break;
    case "stages": if (session) attempt(session, () => take(session, codec.want(data.stages))); break;
    case "finish": finish(); break;
    case "stop": stop(); break;
  }
};
