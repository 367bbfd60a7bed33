//! Records of range-coded bundles. What the payload means is the entropy coder's business.

use super::reader::{ContainerReader, Found, Step};
use super::writer::{ContainerWriter, seal};
use super::{BitstreamError, Bundle, IndexEntry, Item, MAX_FRAMES, tag, varint};
use crate::units::StageCount;

/// A bundle whose payload is still coded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodedBundle {
    /// Number of the first frame since the start of the stream.
    pub first_frame: u64,
    /// Frames in the bundle, 1 to 50.
    pub frames: u8,
    /// Stages of every frame; the most that a frame may have if it is graded.
    pub stages: StageCount,
    /// The payload tells the stages of each frame, as the stream's header says.
    pub graded: bool,
    /// It builds on no bundle before it.
    pub restart: bool,
    /// The payload is packed after all, because coding would have made it longer.
    pub packed: bool,
    /// At most as long as a packed payload.
    pub payload: Vec<u8>,
}

const RESTART: u8 = 1;
const PACKED: u8 = 2;

impl CodedBundle {
    /// Whether a payload of `length` bytes is possible.
    fn allows(&self, length: usize) -> bool {
        match (self.graded, self.packed) {
            (true, true) => (1..=Bundle::graded_len(self.frames, self.stages)).contains(&length),
            (true, false) => length < Bundle::graded_len(self.frames, self.stages),
            (false, true) => length == Bundle::payload_len(self.frames, self.stages),
            (false, false) => length < Bundle::payload_len(self.frames, self.stages),
        }
    }

    fn length_fits(&self) -> bool {
        self.allows(self.payload.len())
    }
}

impl ContainerWriter {
    /// Appends a coded bundle to `out`.
    ///
    /// Errors: [`BitstreamError::Bundle`] if it starts before the end of the last one or its parts do not fit.
    pub fn write_coded(&mut self, bundle: &CodedBundle, out: &mut Vec<u8>) -> Result<(), BitstreamError> {
        let fits = bundle.graded == self.graded() && bundle.length_fits();
        let end = self.check(bundle.first_frame, bundle.frames, fits)?;
        if bundle.restart && self.wants_index() {
            self.index_here(bundle.first_frame);
        }
        let start = out.len();
        let regular = self.is_regular(bundle.first_frame, bundle.frames, bundle.stages);
        if regular && !bundle.restart && !bundle.packed {
            out.push(tag::CODED);
        } else {
            let flags = if bundle.restart { RESTART } else { 0 } | if bundle.packed { PACKED } else { 0 };
            out.extend_from_slice(&[tag::CODED_AT, flags, bundle.frames, bundle.stages.value()]);
            varint::put(bundle.first_frame, out);
        }
        varint::put(bundle.payload.len() as u64, out);
        out.extend_from_slice(&bundle.payload);
        seal(start, out);
        self.wrote((out.len() - start) as u64, end);
        Ok(())
    }
}

impl ContainerReader {
    /// A record of the regular shape: tag, length, payload.
    pub(super) fn coded(&mut self, frames: u8, stages: StageCount) -> Found {
        let first = self.next_frame();
        self.coded_payload(
            1,
            CodedBundle {
                first_frame: first,
                frames,
                stages,
                graded: self.graded(),
                restart: false,
                packed: false,
                payload: Vec::new(),
            },
        )
    }

    /// A record that says everything itself: tag, flags, frames, stages, first frame, length, payload.
    pub(super) fn coded_at(&mut self) -> Found {
        let record = self.record();
        let Some(&[flags, frames, stages]) = record.get(1..4).and_then(|r| r.first_chunk::<3>()) else {
            return Ok(None);
        };
        if flags & !(RESTART | PACKED) != 0 {
            return Err(self.error(1, "flags of a coded bundle", flags, "0 to 3"));
        }
        if !(1..=MAX_FRAMES).contains(&frames) {
            return Err(self.error(2, "frames of a bundle", frames, "1 to 50"));
        }
        let stages = StageCount::new(stages).map_err(|e| self.field(3, e))?;
        match varint::get(&record[4..]) {
            varint::Found::Value(first, n) => {
                if first < self.next_frame() || first.checked_add(u64::from(frames)).is_none() {
                    return Err(self.error(4, "first frame", first, "not before the end of the last bundle"));
                }
                let (restart, packed) = (flags & RESTART != 0, flags & PACKED != 0);
                let (graded, payload) = (self.graded(), Vec::new());
                let bundle = CodedBundle { first_frame: first, frames, stages, graded, restart, packed, payload };
                self.coded_payload(4 + n, bundle)
            }
            varint::Found::Incomplete => Ok(None),
            varint::Found::TooLong => Err(self.error(4, "first frame", "more than 64 bits", "64 bits")),
        }
    }

    fn coded_payload(&mut self, head: usize, mut bundle: CodedBundle) -> Found {
        let length = match varint::get(&self.record()[head..]) {
            varint::Found::Value(length, n) => (usize::try_from(length).unwrap_or(usize::MAX), n),
            varint::Found::Incomplete => return Ok(None),
            varint::Found::TooLong => (usize::MAX, 0),
        };
        let (length, head) = (length.0, head + length.1);
        if !bundle.allows(length) {
            return Err(self.error(head, "length of a coded payload", length, "at most that of the packed one"));
        }
        let whole = head + length + 2;
        let Some((body, sum)) = self.body(whole) else { return Ok(None) };
        let payload = body[head..].to_vec();
        let end = bundle.first_frame.saturating_add(u64::from(bundle.frames));
        if let Err(e) = sum {
            return self.damage(e, whole, end);
        }
        bundle.payload = payload;
        self.passed(whole, end);
        Ok(Some(Step::Item(Item::Coded(bundle))))
    }
}

impl ContainerWriter {
    /// Notes the place of the bundle that comes next.
    pub(super) fn index_here(&mut self, first_frame: u64) {
        let offset = self.written();
        self.index_entry(IndexEntry { first_frame, offset });
    }
}
