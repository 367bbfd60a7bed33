// The worklet that plays what the Worker decodes. It computes nothing else, so that the sound does not stutter when the decoder does.
"use strict";

/** Seconds kept before playing, and at most; what comes beyond is dropped, so that latency cannot creep up. */
const AHEAD = 0.25, MOST_AHEAD = 1.2;
/** Blocks of 128 samples between two reports: about 100 ms. */
const REPORT = 20;

class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    Object.assign(this, { from: null, parts: [], at: 0, held: 0, plays: false, played: 0, underruns: 0, dropped: 0, blocks: 0 });
    this.port.onmessage = ({ data }) => {
      // A port for each stream: what an earlier one still sends is not heard.
      if (this.from) { this.from.onmessage = null; this.from.close(); }
      Object.assign(this, { from: data.port, parts: [], at: 0, held: 0, plays: false });
      if (this.from) this.from.onmessage = (event) => this.take(event.data);
    };
  }

  take(samples) {
    if (this.held > MOST_AHEAD * sampleRate) { this.dropped += 1; return; }
    this.parts.push(samples);
    this.held += samples.length;
  }

  process(_, [[out]]) {
    if (!this.plays && this.held >= AHEAD * sampleRate) this.plays = true;
    if (this.plays) this.fill(out);
    this.blocks += 1;
    if (this.blocks % REPORT === 0) {
      this.port.postMessage({ ahead: this.held / sampleRate, played: this.played / sampleRate, underruns: this.underruns, dropped: this.dropped });
    }
    return true;
  }

  fill(out) {
    let n = 0;
    while (n < out.length && this.parts.length) {
      const part = this.parts[0], count = Math.min(out.length - n, part.length - this.at);
      out.set(part.subarray(this.at, this.at + count), n);
      n += count;
      this.at += count;
      if (this.at === part.length) { this.parts.shift(); this.at = 0; }
    }
    this.held -= n;
    this.played += n;
    if (n < out.length) { this.plays = false; this.underruns += 1; }
  }
}

registerProcessor("undertone-player", Player);
