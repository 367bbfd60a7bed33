// Codes on the page: what decodes a stream here instead of in the daemon, and what publishes the microphone.
"use strict";

/** How the Worker's last words begin when its module can no longer be used. */
const BROKEN = "The codec failed";

/** The codec's files as the daemon offers them, and why there are none; asked for once. */
const offer = { index: null, reason: "", asked: null };

/** What of a browser is missing to run the codec; empty if nothing is. */
function lacking() {
  if (!isSecureContext) return "over http only localhost may run it";
  if (typeof WebAssembly !== "object" || typeof Worker !== "function") return "this browser has no WebAssembly";
  if (typeof AudioWorkletNode !== "function") return "this browser has no AudioWorklet";
  // The smallest module with a vector in it: () -> (v128.const 0, drop).
  const vectors = [0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 10, 23, 1, 21, 0, 253, 12, ...Array(16).fill(0), 26, 11];
  return WebAssembly.validate(new Uint8Array(vectors)) ? "" : "this browser's WebAssembly has no SIMD";
}

/** Asks what the daemon offers. Gives whether codes can be used. */
function codesOffered() {
  offer.asked ??= (async () => {
    offer.reason = lacking();
    if (offer.reason) return false;
    try {
      const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
      const answer = await fetch("/codec.json", { headers });
      if (!answer.ok) throw new Error(answer.status === 404 ? "the daemon was built without it" : (await answer.text()).trim());
      offer.index = await answer.json();
    } catch (error) {
      offer.reason = error.message;
      return false;
    }
    return true;
  })();
  return offer.asked;
}

function forgetOffer() {
  offer.asked = null;
  offer.index = null;
}

/** A Worker with the codec. `told` gets its messages once it is loaded. */
class Coder {
  constructor(encodes) {
    this.encodes = encodes;
    this.told = () => {};
    this.loading = null;
  }

  /** Loads the codec, unless it is there; `progress` gets bytes and all bytes. */
  load(progress) {
    this.loading ??= new Promise((resolve, reject) => {
      const failed = (text) => { this.loading = null; this.worker.terminate(); reject(new Error(text)); };
      this.worker = new Worker("/worker.js");
      this.worker.onerror = (event) => { failed(event.message || "the Worker cannot be started"); this.told({ type: "ended", failed: true, text: BROKEN }); };
      this.worker.onmessage = ({ data }) => {
        if (data.type === "loading") progress(data.had, data.all);
        else if (data.type === "loaded") resolve();
        else if (data.type === "unable") failed(data.text);
        else {
          // A module that failed once is not used again.
          if (data.type === "ended" && data.text.startsWith(BROKEN)) failed(data.text);
          this.told(data);
        }
      };
      this.worker.postMessage({ do: "load", index: offer.index, encodes: this.encodes, token: state.token });
    });
    return this.loading;
  }

  start(node, wishes) {
    const { port1, port2 } = new MessageChannel();
    node.port.postMessage({ port: port1 }, [port1]);
    const url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws?codes=1`;
    this.worker.postMessage({ do: "start", url, port: port2, token: state.token || "", encodes: this.encodes, ...wishes }, [port2]);
  }

  ask(message) { if (this.loading && this.worker) this.worker.postMessage(message); }
}

const decoder = new Coder(false), encoder = new Coder(true);

// --- listening

const megabytes = (bytes) => (bytes / 1e6).toFixed(1);

/** Plays a stream from its codes. Gives false if that is not possible; then the daemon may decode. */
async function listenToCodes(name, isWanted) {
  if (!$("here").checked || !(await codesOffered())) return false;
  try {
    await decoder.load((had, all) => { if (isWanted()) say(`Fetching the decoder, ${megabytes(had)} of ${megabytes(all)} MB, once`); });
    if (!state.player) {
      await state.context.audioWorklet.addModule("/player.js");
      state.player = new AudioWorkletNode(state.context, "undertone-player", { numberOfInputs: 0, outputChannelCount: [1] });
      state.player.port.onmessage = ({ data }) => Object.assign(state, { buffered: data.ahead, underruns: data.underruns, dropped: data.dropped });
      state.player.connect(state.analyser);
    }
  } catch (error) {
    offer.reason = error.message;
    return false;
  }
  if (!isWanted()) return true;
  let skipped = 0;
  decoder.told = (message) => {
    if (!isWanted()) return;
    if (message.type === "ended") {
      stopped();
      say(message.text);
      // The daemon's decoder is another: it goes on with that.
      if (message.text.startsWith(BROKEN)) {
        $("here").checked = false;
        listen(name);
      }
    } else if (message.type === "heard" && message.frames > 0) {
      state.samples = message.samples;
      if (message.skipped > skipped) told({ type: "skipped", frames: message.skipped - skipped });
      skipped = message.skipped;
      received(message.received);
      told(message);
    }
  };
  state.decodes = "here";
  told({ type: "playing", stream: name });
  decoder.start(state.player, { stream: name, stages: state.wanted });
  return true;
}

function stopCodes() {
  decoder.ask({ do: "stop" });
  if (state.player) state.player.port.postMessage({ port: null });
}

// --- the microphone

const mic = { number: 0, name: null, context: null, tracks: null, sent: null, frames: 0, kbps: 0, open: false, analyser: null, timer: null };

function micSays(text, failed) {
  $("mic-said").textContent = text;
  $("mic-said").className = failed ? "error" : "said";
}

function micButtons() {
  const on = mic.name !== null;
  $("mic-button").textContent = on ? "Stop" : "Start the microphone";
  $("mic-button").setAttribute("aria-pressed", on);
  for (const id of ["mic-name", "mic-kbps"]) $(id).disabled = on;
  if (!on) micLevel(null);
}

function micLevel(db) {
  $("mic-fill").style.width = `${db === null ? 0 : Math.max(0, Math.min(100, (db + 60) / 0.6))}%`;
  $("mic-meter").setAttribute("aria-valuenow", db === null ? -60 : Math.max(-60, Math.min(0, db)).toFixed(0));
}

/** What a browser's refusal means. */
function micError(error) {
  switch (error.name) {
    case "NotAllowedError": return "The browser was not allowed to use the microphone.";
    case "NotFoundError": return "There is no microphone.";
    case "NotReadableError": return "The microphone is in use by another program.";
    default: return error.message;
  }
}

async function startMic() {
  const name = $("mic-name").value.trim();
  if (!/^[A-Za-z0-9._-]{1,64}$/.test(name)) { micSays("A name has 1 to 64 of the characters A-Z a-z 0-9 . _ -", true); return; }
  Object.assign(mic, { name, sent: null, frames: 0, kbps: 0, open: false });
  const number = mic.number, isWanted = () => mic.number === number;
  micButtons();
  try {
    if (!(await codesOffered())) throw new Error(`The microphone cannot be published: ${offer.reason}.`);
    if (!navigator.mediaDevices) throw new Error("This browser has no microphone for this page.");
    micSays("Waiting for the microphone", false);
    // As the sound is: what a browser takes out of it the codec cannot bring back.
    const wishes = { channelCount: 1, echoCancellation: true, noiseSuppression: false, autoGainControl: false };
    const tracks = await navigator.mediaDevices.getUserMedia({ audio: wishes });
    // Stopped meanwhile: the browser would show for ever that the microphone is on.
    if (!isWanted()) { for (const track of tracks.getTracks()) track.stop(); return; }
    mic.tracks = tracks;
    await encoder.load((had, all) => { if (isWanted()) micSays(`Fetching the encoder, ${megabytes(had)} of ${megabytes(all)} MB, once`, false); });
    if (!isWanted()) return;
    mic.context = new AudioContext();
    await mic.context.audioWorklet.addModule("/recorder.js");
    const source = mic.context.createMediaStreamSource(mic.tracks);
    const recorder = new AudioWorkletNode(mic.context, "undertone-recorder", { outputChannelCount: [1] });
    mic.analyser = mic.context.createAnalyser();
    // A node that leads nowhere might not be run; the recorder's output is silence.
    source.connect(mic.analyser).connect(recorder).connect(mic.context.destination);
    encoder.told = (message) => micTold(message, isWanted);
    encoder.start(recorder, { stream: name, kbps: Number($("mic-kbps").value), rate: mic.context.sampleRate });
    mic.timer = setInterval(() => micLevel(levelOf(mic.analyser)), 100);
    micSays("Connecting", false);
  } catch (error) {
    if (!isWanted()) return;
    micEnded();
    micSays(micError(error), true);
  }
}

function micTold(message, isWanted) {
  if (!isWanted()) return;
  if (message.type === "ended") {
    micEnded();
    micSays(message.text, message.failed);
  } else if (message.type === "heard" && message.open) {
    const seconds = (message.frames - mic.frames) * 0.02;
    if (mic.sent !== null && seconds > 0) {
      // Bundles come in steps: smoothed over some seconds.
      const kbps = ((message.sent - mic.sent) * 0.008) / seconds;
      mic.kbps += (mic.kbps > 0 ? 0.15 : 1) * (kbps - mic.kbps);
    }
    if (seconds > 0 || mic.sent === null) [mic.sent, mic.frames] = [message.sent, message.frames];
    mic.open = true;
    const left = message.left > 0 ? `, ${message.left.toFixed(1)} s left out: the connection is too slow` : "";
    micSays(`Publishing ${mic.name}, ${mic.kbps.toFixed(1)} kbit/s${left}`, false);
  }
}

function micEnded() {
  clearInterval(mic.timer);
  if (mic.tracks) for (const track of mic.tracks.getTracks()) track.stop();
  if (mic.context) mic.context.close();
  Object.assign(mic, { number: mic.number + 1, name: null, tracks: null, context: null, open: false });
  micButtons();
}

$("mic-form").onsubmit = (event) => {
  event.preventDefault();
  if (mic.name === null) { startMic(); return; }
  encoder.ask({ do: "finish" });
  micEnded();
  micSays("Stopped", false);
};
micButtons();
if (lacking()) micSays(`The microphone cannot be published: ${lacking()}.`, false);
