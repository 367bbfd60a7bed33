// The worklet that hands the microphone's samples to the Worker that encodes them.
"use strict";

/** Samples that go together: about 20 ms. */
const PIECE = 1024;

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    Object.assign(this, { to: null, piece: new Float32Array(PIECE), at: 0 });
    this.port.onmessage = ({ data }) => { this.to = data.port; };
  }

  process([input]) {
    if (!this.to || !input.length) return true;
    for (let n = 0; n < input[0].length; n += 1) {
      let sum = 0;
      for (const channel of input) sum += channel[n];
      this.piece[this.at] = sum / input.length;
      this.at += 1;
      if (this.at === PIECE) {
        this.to.postMessage(this.piece, [this.piece.buffer]);
        this.piece = new Float32Array(PIECE);
        this.at = 0;
      }
    }
    return true;
  }
}

registerProcessor("undertone-recorder", Recorder);
