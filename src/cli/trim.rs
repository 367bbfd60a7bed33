//! Decoded audio on its way out: the codec's delay is cut off in front, the padding behind.

use anyhow::Result;

use crate::capture::AudioOutput;

/// Streams of samples, one behind the other, to one output.
pub(super) struct Trim {
    output: AudioOutput,
    /// Samples that the codec's delay puts in front of each stream, and those of them still to come.
    delay: u64,
    skip: u64,
    /// Samples that the user does not want from the start, still to come.
    start: u64,
    /// Samples of the current stream that were passed on or left out; of all before it; written.
    passed: u64,
    before: u64,
    written: u64,
    held: Vec<f32>,
    /// Samples kept back so that the padding can be cut off when the end tells the true length.
    hold: usize,
    /// Samples wanted.
    most: Option<u64>,
}

impl Trim {
    pub(super) fn new(output: AudioOutput, delay: usize, frame: usize, start: u64, most: Option<u64>) -> Self {
        let (delay, hold) = (delay as u64, frame);
        Self { output, delay, skip: delay, start, passed: 0, before: 0, written: 0, held: Vec::new(), hold, most }
    }

    /// The current stream begins with its sample `at`.
    pub(super) fn jump(&mut self, at: u64) {
        self.passed = at;
        self.start = self.start.saturating_sub(at);
    }

    pub(super) fn write(&mut self, pcm: &[f32]) -> Result<()> {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(pcm.len());
        self.skip -= skipped as u64;
        self.held.extend_from_slice(&pcm[skipped..]);
        self.release(self.held.len().saturating_sub(self.hold))
    }

    /// Whether all that is wanted was written.
    pub(super) fn is_full(&self) -> bool {
        self.most.is_some_and(|most| self.written >= most)
    }

    /// Samples that were written.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Samples of all streams so far.
    pub(super) fn length(&self) -> u64 {
        self.before + self.passed
    }

    fn release(&mut self, samples: usize) -> Result<()> {
        let out = usize::try_from(self.start).unwrap_or(usize::MAX).min(samples);
        let left = self.most.map_or(u64::MAX, |most| most - self.written);
        let wanted = (samples - out).min(usize::try_from(left).unwrap_or(usize::MAX));
        if wanted > 0 {
            self.output.write(&self.held[out..out + wanted])?;
        }
        self.held.drain(..samples);
        self.start -= out as u64;
        self.passed += samples as u64;
        self.written += wanted as u64;
        Ok(())
    }

    /// Ends a stream of so many samples, if that is known; another may follow.
    pub(super) fn end_stream(&mut self, total: Option<u64>) -> Result<()> {
        let held = self.held.len();
        let left = total.map_or(held, |t| usize::try_from(t.saturating_sub(self.passed)).unwrap_or(held).min(held));
        self.release(left)?;
        self.held.clear();
        self.before += self.passed;
        (self.passed, self.skip) = (0, self.delay);
        Ok(())
    }

    /// The output, after the last stream.
    pub(super) fn into_output(self) -> AudioOutput {
        self.output
    }
}
