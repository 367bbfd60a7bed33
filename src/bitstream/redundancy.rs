//! Coarse copies: a bundle of a lossy transport can carry the first stages of the frames before it, so that a lost one is
//! rebuilt coarsely from the next.

use std::collections::VecDeque;

use super::{BitstreamError, Bundle};
use crate::profile::Profile;
use crate::units::{OutOfRange, StageCount};

/// Stages of the copies that datagrams of QUIC carry.
pub const COPY_STAGES: u8 = 2;

/// How much is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redundancy {
    /// Stages of every repeated frame.
    pub stages: StageCount,
    /// Frames before the bundle, 1 to 50.
    pub frames: u8,
}

impl Redundancy {
    ///
    /// # Errors
    /// `OutOfRange` unless 1 to 50 frames.
    pub fn new(stages: StageCount, frames: u8) -> Result<Self, OutOfRange> {
        if (1..=Profile::MAX_FRAMES_PER_BUNDLE).contains(&frames) {
            Ok(Self { stages, frames })
        } else {
            let what = "redundant frames";
            Err(OutOfRange { what, got: frames.to_string(), allowed: "1 to 50" })
        }
    }
}

/// The sender's memory of the frames to repeat.
#[derive(Debug)]
pub struct RedundancyWriter {
    how: Redundancy,
    /// Codes of the last frames, and the number of the one after them.
    sent: VecDeque<Vec<u16>>,
    next: u64,
}

impl RedundancyWriter {
    /// Before the first bundle.
    pub fn new(how: Redundancy) -> Self {
        Self { how, sent: VecDeque::new(), next: 0 }
    }

    /// Repeats so many frames from now on, at most 50.
    pub fn set_frames(&mut self, frames: u8) {
        self.how.frames = frames.min(Profile::MAX_FRAMES_PER_BUNDLE);
        while self.sent.len() > usize::from(self.how.frames) {
            self.sent.pop_front();
        }
    }

    /// Appends the copies that travel with `bundle` to `out`: frames (1 byte), stages (1 byte), packed codes; a single zero if
    /// there is nothing to repeat. Then remembers the bundle's own frames.
    pub fn write(&mut self, bundle: &Bundle, out: &mut Vec<u8>) {
        if bundle.first_frame != self.next {
            self.sent.clear();
        }
        let stages = self.sent.iter().map(Vec::len).min().unwrap_or(0);
        match StageCount::new(stages as u8) {
            Ok(stages) => {
                let codes = self.sent.iter().flat_map(|f| &f[..stages.index()]).copied().collect();
                let frames = self.sent.len() as u8;
                out.extend_from_slice(&[frames, stages.value()]);
                Bundle { first_frame: 0, frames, stages, codes }.pack_into(out);
            }
            Err(_) => out.push(0),
        }
        for frame in bundle.by_frame() {
            self.sent.push_back(frame[..frame.len().min(self.how.stages.index())].to_vec());
        }
        while self.sent.len() > usize::from(self.how.frames) {
            self.sent.pop_front();
        }
        self.next = bundle.first_frame.saturating_add(u64::from(bundle.frames));
    }
}

/// Reads the copies that came with a bundle that starts at `first_frame`; None if there are none. The decoder takes from them
/// only what it has not got. What follows the copies has no meaning.
///
/// # Errors
/// [`BitstreamError::Bundle`] for bytes that no sender writes.
pub fn read_redundancy(first_frame: u64, bytes: &[u8]) -> Result<Option<Bundle>, BitstreamError> {
    let error = |reason: String| BitstreamError::Bundle { first_frame, reason };
    match bytes {
        [0, ..] => Ok(None),
        [frames, stages, payload @ ..] => {
            let stages = StageCount::new(*stages).map_err(|e| error(format!("redundancy: {e}")))?;
            let length = Bundle::payload_len(*frames, stages);
            let payload = payload.get(..length).unwrap_or(payload);
            let first = first_frame.checked_sub(u64::from(*frames));
            let first = first.ok_or_else(|| error(format!("redundancy of {frames} frames before the first")))?;
            Bundle::unpack(first, *frames, stages, payload).map(Some)
        }
        _ => Err(error(format!("redundancy of {} bytes", bytes.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(first_frame: u64, frames: u8, stages: u8) -> Bundle {
        let stages = StageCount::new(stages).unwrap();
        let codes = (0..usize::from(frames) * stages.index()).map(|i| (first_frame as usize * 31 + i) as u16 % 1024);
        Bundle::new(first_frame, frames, stages, codes.collect()).unwrap()
    }

    #[test]
    fn copies_are_the_first_stages_of_the_frames_before() {
        let mut writer = RedundancyWriter::new(Redundancy::new(StageCount::new(2).unwrap(), 3).unwrap());
        let mut sent = Vec::new();
        for b in [bundle(0, 2, 6), bundle(2, 2, 6), bundle(4, 2, 1), bundle(6, 1, 6), bundle(20, 1, 6)] {
            let mut bytes = Vec::new();
            writer.write(&b, &mut bytes);
            sent.push((read_redundancy(b.first_frame, &bytes).unwrap(), bytes.len()));
        }
        assert_eq!(sent[0], (None, 1));
        assert_eq!(sent[1], (Some(bundle(0, 2, 6).truncated(StageCount::new(2).unwrap())), 2 + 5));
        let three = sent[2].0.clone().unwrap();
        assert_eq!((three.first_frame, three.frames, three.stages.value()), (1, 3, 2));
        assert_eq!(three.codes[2..], bundle(2, 2, 6).truncated(StageCount::new(2).unwrap()).codes);
        // Frames of one stage limit what is repeated, and a gap empties the memory.
        assert_eq!(sent[3].0.as_ref().unwrap().stages.value(), 1);
        assert_eq!(sent[4].0, None);
    }

    #[test]
    fn foreign_bytes_are_errors() {
        for bytes in [
            &[][..],
            &[1],
            &[1, 0, 0],
            &[1, 25, 0],
            &[60, 1, 0],
            &[2, 1, 0],
            &[9, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert!(read_redundancy(5, bytes).is_err(), "{bytes:?}");
        }
        assert!(Redundancy::new(StageCount::MAX, 0).is_err());
    }
}
