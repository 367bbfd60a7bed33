// The page: one WebSocket carries the state of the streams, and the sound of the one that is listened to.
"use strict";

const RATE = 24000;
/** Seconds kept before playing, and at most; what comes beyond is dropped, so that latency cannot creep up. */
const AHEAD = 0.25, MOST_AHEAD = 1.2;
/** Points of a chart: a minute of half seconds. */
const POINTS = 120;
const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const state = {
  socket: null, token: null, streams: new Map(), rows: new Map(), playing: null, maxStages: 16, wanted: 16,
  context: null, gain: null, analyser: null, loading: null, at: 0, samples: 0, underruns: 0, dropped: 0, heard: null,
  missing: 0, frames: 0, trip: null, retry: 500, number: 0, bytes: 0, decodes: null, player: null, buffered: 0, received: null, kbps: null,
};
const history = { loss: [], buffer: [], trip: [], decode: [] };

// For tests: what is known, and nothing that changes it.
window.undertone = {
  get playing() { return state.playing; },
  get seconds() { return state.samples / RATE; },
  get clock() { return state.context ? state.context.currentTime : 0; },
  get stages() { return state.heard ? state.heard.stages : 0; },
  get underruns() { return state.underruns; },
  get level() { return state.analyser ? levelOf(state.analyser) : -Infinity; },
  /** Where the spectrum is highest, Hz. */
  get peak() {
    if (!state.analyser) return 0;
    const bins = new Float32Array(state.analyser.frequencyBinCount);
    state.analyser.getFloatFrequencyData(bins);
    return (bins.indexOf(Math.max(...bins)) * RATE) / state.analyser.fftSize;
  },
  get decodes() { return state.decodes; },
  get kbps() { return state.kbps; },
  get heard() { return state.heard; },
  get publishing() { return mic.open ? mic.name : null; },
  get publishingKbps() { return mic.kbps; },
};

/** dB below full scale. */
function levelOf(analyser) {
  const wave = new Float32Array(analyser.fftSize);
  analyser.getFloatTimeDomainData(wave);
  return 10 * Math.log10(wave.reduce((sum, s) => sum + s * s, 0) / wave.length);
}

function connect() {
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
  socket.binaryType = "arraybuffer";
  state.socket = socket;
  socket.onopen = () => { if (state.token) ask({ do: "login", token: state.token }); };
  socket.onmessage = (event) => {
    if (typeof event.data === "string") fromDaemon(JSON.parse(event.data));
    else if (state.decodes === "daemon") play(event.data);
  };
  socket.onclose = () => {
    connection("off", "not connected, trying again");
    stopped();
    show([]);
    setTimeout(connect, state.retry);
    state.retry = Math.min(state.retry * 2, 8000);
  };
}

function ask(message) {
  if (state.socket.readyState === WebSocket.OPEN) state.socket.send(JSON.stringify(message));
}

function connection(lamp, text) {
  $("lamp").className = `lamp ${lamp}`;
  if ($("connection").textContent !== text) $("connection").textContent = text;
}

function say(text) { $("said").textContent = text; }

/** What is said of a stream that is no longer listened to in this way is nothing new. */
function fromDaemon(message) {
  if (state.decodes !== "daemon" && ["playing", "heard", "skipped", "stopped"].includes(message.type)) return;
  told(message);
}

function told(message) {
  switch (message.type) {
    case "login":
      $("login").hidden = false;
      connection("", "waiting for a token");
      show([]);
      $("login-error").textContent = message.reason || "";
      if (message.reason) state.token = null;
      forgetOffer();
      $("token").focus();
      break;
    case "status":
      $("login").hidden = true;
      state.retry = 500;
      connection("on", `connected, undertone ${message.version}`);
      $("slots").textContent = `${message.slots_used} of ${message.slots}`;
      $("effort").hidden = message.effort === null;
      $("effort").lastChild.textContent = `${message.effort} steps`;
      stages(message.max_stages);
      show(message.streams);
      tick();
      ask({ do: "ping", at: performance.now() });
      break;
    case "pong":
      state.trip = performance.now() - message.at;
      break;
    case "playing":
      state.playing = message.stream;
      state.loading = null;
      say("Waiting for sound");
      // The slider may have been moved since the wish was sent.
      askStages();
      buttons();
      break;
    case "heard":
      if (!state.heard || state.heard.stages !== message.stages) say(`Playing ${message.stages} ${message.stages === 1 ? "layer" : "layers"}`);
      state.heard = message;
      rateText();
      break;
    case "skipped":
      say(`Skipped ${(message.frames * 0.02).toFixed(1)} s: this connection does not keep up`);
      break;
    case "stopped":
      say(message.reason);
      stopped();
      break;
  }
}

function kbps(stages) { return `${(stages * 0.5).toFixed(1)} kbit/s`; }

function stages(max) {
  if (max === state.maxStages && $("layers").children.length) return;
  if (state.wanted >= state.maxStages) { state.wanted = max; $("rate").value = max; }
  state.maxStages = max;
  $("rate").max = max;
  $("layers").replaceChildren(...Array.from({ length: max }, (_, n) => {
    const item = document.createElement("li"), bar = document.createElement("i"), number = document.createElement("span");
    number.className = "n";
    number.textContent = n + 1;
    item.append(bar, number);
    return item;
  }));
  $("rate").value = state.wanted;
  rateText();
}

// --- the table of streams

function row(name) {
  const line = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = name;
  const cells = Array.from({ length: 8 }, () => document.createElement("td"));
  const meter = document.createElement("div"), bar = document.createElement("span"), fill = document.createElement("span");
  const db = document.createElement("span"), button = document.createElement("button");
  meter.className = "meter";
  meter.setAttribute("role", "meter");
  meter.setAttribute("aria-label", `Level of ${name}`);
  meter.setAttribute("aria-valuemin", -60);
  meter.setAttribute("aria-valuemax", 0);
  bar.className = "bar";
  fill.className = "fill";
  db.className = "db";
  bar.append(fill);
  meter.append(bar, db);
  cells[0].append(meter);
  for (const cell of cells.slice(1, 7)) cell.className = "number";
  ["kbps", "age", "lost", "quiet", "saved", "listeners"].forEach((name, n) => cells[n + 1].classList.add(name));
  button.type = "button";
  button.onclick = () => ((state.playing ?? state.loading) === name ? stop() : listen(name));
  cells[7].append(button);
  line.append(head, ...cells);
  return { line, meter, fill, db, kbps: cells[1], age: cells[2], lost: cells[3], quiet: cells[4], saved: cells[5], listeners: cells[6], button };
}

function show(streams) {
  const now = performance.now(), names = new Set(streams.map((s) => s.name));
  for (const [name, parts] of state.rows) {
    if (!names.has(name)) { parts.line.remove(); state.rows.delete(name); state.streams.delete(name); }
  }
  streams.forEach((stream, place) => {
    let parts = state.rows.get(stream.name);
    if (!parts) { parts = row(stream.name); state.rows.set(stream.name, parts); }
    // Moving a row that has the focus would lose it.
    if ($("streams").children[place] !== parts.line) $("streams").insertBefore(parts.line, $("streams").children[place] || null);
    const before = state.streams.get(stream.name);
    if (before && stream.bundles >= before.bundles) {
      const seconds = (now - before.time) / 1000;
      // Bundles come in steps: smoothed over some seconds.
      const smooth = (bits, n) => 0.75 * (before.rates ? before.rates[n] : bits) + 0.25 * bits;
      stream.rates = stream.bits.map((bits, n) => smooth((bits - before.bits[n]) / seconds, n));
      parts.kbps.textContent = (stream.rates.reduce((a, b) => a + b, 0) / 1000).toFixed(1);
    } else parts.kbps.textContent = "–";
    stream.time = now;
    state.streams.set(stream.name, stream);
    parts.age.textContent = stream.age_ms === null ? "–" : Math.round(stream.age_ms);
    parts.lost.textContent = stream.lost;
    parts.quiet.textContent = (stream.silent_frames * 0.02).toFixed(1);
    parts.saved.textContent = stream.saved_s === null ? "–" : stream.saved_s.toFixed(1);
    // Silence is described, not sent: few bits are no fault then.
    parts.line.classList.toggle("silent", stream.silent);
    parts.kbps.title = stream.silent ? "silence: only its background is described" : "";
    parts.listeners.textContent = stream.listeners;
    level(parts, stream.level);
  });
  $("table").hidden = streams.length === 0;
  $("empty").hidden = streams.length !== 0;
  buttons();
}

function level(parts, db) {
  const known = db !== null, width = known ? Math.max(0, Math.min(100, (db + 60) / 0.6)) : 0;
  parts.meter.classList.toggle("unknown", !known);
  parts.fill.style.width = `${width}%`;
  parts.fill.className = `fill ${db > -3 ? "hot" : db > -10 ? "warm" : ""}`;
  parts.db.textContent = known ? `${db.toFixed(0)} dBFS` : "unknown";
  parts.meter.setAttribute("aria-valuenow", known ? Math.max(-60, Math.min(0, db)).toFixed(0) : -60);
  parts.meter.setAttribute("aria-valuetext", known ? `${db.toFixed(0)} dB below full scale` : "not decoded here");
}

function buttons() {
  for (const [name, parts] of state.rows) {
    const on = (state.playing ?? state.loading) === name;
    parts.button.setAttribute("aria-pressed", on);
    parts.button.setAttribute("aria-label", `Listen to ${name}`);
    parts.button.textContent = on ? "Stop" : "Listen";
  }
  $("player-title").textContent = state.playing ? `Listening to ${state.playing}` : "Nothing is playing";
  const text = state.playing ? `Spectrogram of ${state.playing}` : "Spectrogram: nothing is playing";
  $("spectrogram").setAttribute("aria-label", text);
}

// --- sound

function listen(name) {
  if (!state.context) {
    state.context = new AudioContext({ sampleRate: RATE });
    state.gain = state.context.createGain();
    state.analyser = state.context.createAnalyser();
    state.analyser.fftSize = 1024;
    state.analyser.smoothingTimeConstant = 0.2;
    state.analyser.minDecibels = -110;
    state.analyser.maxDecibels = -25;
    state.analyser.connect(state.gain).connect(state.context.destination);
    volume();
    requestAnimationFrame(draw);
  }
  state.context.resume();
  stopped();
  const number = state.number;
  state.loading = name;
  buttons();
  say("Connecting");
  // Whoever pressed another button meanwhile does not want this any more.
  listenToCodes(name, () => number === state.number).then((taken) => {
    if (taken || number !== state.number) return;
    state.decodes = "daemon";
    ask({ do: "listen", stream: name, stages: state.wanted });
  });
}

function askStages() {
  if (state.decodes === "here") decoder.ask({ do: "stages", stages: state.wanted });
  else ask({ do: "stages", stages: state.wanted });
}

/** Bytes of the stream that came in all, for the rate over the last seconds. */
function received(bytes) {
  const now = performance.now();
  state.received ??= [];
  state.received.push([now, bytes]);
  while (state.received.length > 2 && now - state.received[1][0] > 5000) state.received.shift();
  const [then, before] = state.received[0];
  state.kbps = now - then > 1000 ? ((bytes - before) * 8) / (now - then) : null;
  whereText();
}

function whereText() {
  if (!state.playing) { $("where").textContent = ""; return; }
  const rate = state.kbps === null ? "" : `, ${state.kbps.toFixed(1)} kbit/s received`;
  const why = state.decodes === "daemon" && $("here").checked && offer.reason ? ` (${offer.reason})` : "";
  $("where").textContent = state.decodes === "here" ? `decoded in this browser${rate}` : `decoded by the daemon${rate}${why}`;
}

function stop() {
  say("Stopped");
  stopped();
}

function stopped() {
  if (state.decodes === "here") stopCodes();
  else if (state.decodes === "daemon") ask({ do: "stop" });
  Object.assign(state, { playing: null, loading: null, heard: null, at: 0, missing: 0, frames: 0, decodes: null, received: null, kbps: null });
  state.number += 1;
  for (const points of Object.values(history)) points.length = 0;
  buttons();
  rateText();
  whereText();
  tick();
}

function play(bytes) {
  if (!state.playing || !state.context) return;
  state.bytes += bytes.byteLength;
  received(state.bytes);
  const pcm = new Int16Array(bytes), now = state.context.currentTime;
  if (pcm.length === 0) return;
  if (state.at < now) {
    if (state.at > 0) state.underruns += 1;
    state.at = now + AHEAD;
  }
  if (state.at - now > MOST_AHEAD) { state.dropped += 1; return; }
  const buffer = state.context.createBuffer(1, pcm.length, RATE), wave = buffer.getChannelData(0);
  for (let n = 0; n < pcm.length; n += 1) wave[n] = pcm[n] / 32768;
  const source = state.context.createBufferSource();
  source.buffer = buffer;
  source.connect(state.analyser);
  source.start(state.at);
  state.at += buffer.duration;
  state.samples += pcm.length;
}

function volume() {
  const percent = Number($("volume").value);
  $("volume-text").textContent = `${percent} %`;
  // Loudness is heard in ratios.
  if (state.gain) state.gain.gain.value = (percent / 100) ** 2;
}

function rateText() {
  const now = state.heard ? `, now ${state.heard.stages}` : "";
  const text = `up to ${state.wanted} of ${state.maxStages} layers, ${kbps(state.wanted)}${now}`;
  $("rate-text").textContent = text;
  $("rate").setAttribute("aria-valuetext", `${state.wanted} layers, ${kbps(state.wanted)}`);
}

// --- pictures

function tick() {
  const stream = state.streams.get(state.playing), rates = (stream && stream.rates) || [];
  [...$("layers").children].forEach((item, n) => {
    const rate = rates[n] || 0;
    item.firstChild.style.height = `${Math.min(100, rate / 6)}%`;
    item.classList.toggle("off", n >= state.wanted);
    item.title = `layer ${n + 1}: ${rate.toFixed(0)} bit/s${n >= state.wanted && rate ? ", not sent to you" : ""}`;
  });
  if (state.playing && state.heard) {
    const { missing, frames, decode_ms: decode } = state.heard;
    const lost = missing - state.missing, all = frames - state.frames + lost;
    const ahead = state.decodes === "here" ? state.buffered : state.at - state.context.currentTime;
    const buffer = Math.max(0, ahead) * 1000;
    for (const [key, value] of [["loss", all > 0 ? (100 * lost) / all : 0], ["buffer", buffer], ["trip", state.trip || 0], ["decode", decode]]) {
      history[key].push(value);
      if (history[key].length > POINTS) history[key].shift();
    }
    [state.missing, state.frames] = [missing, frames];
  }
  chart("loss", ["loss"], 10, "%");
  chart("latency", ["buffer", "trip", "decode"], 500, "ms");
}

function chart(id, keys, least, unit) {
  const top = Math.max(least, ...keys.flatMap((key) => history[key]));
  const max = unit === "%" ? Math.ceil(top / 10) * 10 : Math.ceil(top / 250) * 250;
  $(`${id}-max`).textContent = `0 to ${max} ${unit}`;
  for (const key of keys) {
    const points = history[key], last = points[points.length - 1];
    const x = (n) => 300 - ((points.length - 1 - n) * 300) / (POINTS - 1);
    const text = points.map((value, n) => `${x(n).toFixed(1)},${(109 - (108 * value) / max).toFixed(1)}`).join(" ");
    document.querySelector(`#${id} .${key}`).setAttribute("points", text);
    $(`${key}-now`).textContent = last === undefined ? "–" : `${last.toFixed(last < 10 ? 1 : 0)} ${unit}`;
  }
  $(`${id}-label`).textContent = keys.map((key) => `${key} ${$(`${key}-now`).textContent}`).join(", ");
}

const canvas = $("spectrogram"), paint = canvas.getContext("2d");
const spectrum = new Uint8Array(512);
let column = 0, drawn = 0;

/** From dark over teal to pale yellow: brightness rises all the way, so it reads without colours, too. */
const COLORS = Array.from({ length: 256 }, (_, n) => {
  const v = n / 255;
  const stops = [[10, 14, 19], [18, 60, 92], [20, 128, 130], [150, 196, 90], [253, 246, 190]];
  const place = v * 4, at = Math.min(3, Math.floor(place)), part = place - at;
  return stops[at].map((from, c) => from + (stops[at + 1][c] - from) * part);
});

function draw(time) {
  requestAnimationFrame(draw);
  // 48 columns a second fill the width in 20 s; who wants less motion gets a cursor that moves instead of the picture.
  if (time - drawn < 1000 / 48 || !state.playing || !state.heard) return;
  drawn = time;
  state.analyser.getByteFrequencyData(spectrum);
  if (!calm.matches) paint.drawImage(canvas, -1, 0);
  column = calm.matches ? (column + 1) % canvas.width : canvas.width - 1;
  const strip = paint.createImageData(1, 256);
  for (let y = 0; y < 256; y += 1) {
    const bin = 2 * (255 - y), color = COLORS[Math.max(spectrum[bin], spectrum[bin + 1])];
    strip.data.set([color[0], color[1], color[2], 255], 4 * y);
  }
  paint.putImageData(strip, column, 0);
  if (calm.matches) {
    paint.fillStyle = "#fdf6be";
    paint.fillRect((column + 1) % canvas.width, 0, 2, 256);
  }
}

$("rate").oninput = () => {
  state.wanted = Number($("rate").value);
  rateText();
  if (state.playing) askStages();
};
// The other way of decoding begins at once.
$("here").onchange = () => { if (state.playing) listen(state.playing); };
$("volume").oninput = volume;
$("login-form").onsubmit = (event) => {
  event.preventDefault();
  // Kept in memory only, and never in an address.
  state.token = $("token").value;
  $("token").value = "";
  ask({ do: "login", token: state.token });
};
paint.fillStyle = "#0a0e13";
paint.fillRect(0, 0, canvas.width, canvas.height);
stages(16);
// The scripts behind this one are there then.
addEventListener("DOMContentLoaded", connect);
