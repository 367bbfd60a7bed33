//! Writing a container, record by record, into the caller's buffer.

use super::crc::crc16;
use super::index::{IndexEntry, SeekIndex};
use super::{BitstreamError, Bundle, StreamHeader, tag, varint};

/// Bundles from which on a file gets an index.
const INDEX_FROM: u64 = 64;

/// Bundles between two entries of the index.
const INDEX_STEP: u64 = 10;

/// Writes a container; every call appends whole records, so what was written decodes wherever it is cut.
#[derive(Debug)]
pub struct ContainerWriter {
    header: StreamHeader,
    next_frame: u64,
    written: u64,
    bundles: u64,
    index: SeekIndex,
}

impl ContainerWriter {
    /// Starts a container: appends the header to `out`.
    pub fn new(header: StreamHeader, out: &mut Vec<u8>) -> Self {
        let before = out.len();
        header.write(out);
        let written = (out.len() - before) as u64;
        Self { header, next_frame: 0, written, bundles: 0, index: SeekIndex::default() }
    }

    /// Appends a bundle to `out`.
    ///
    /// Errors: [`BitstreamError::Bundle`] if it starts before the end of the last one or its parts do not fit.
    pub fn write(&mut self, bundle: &Bundle, out: &mut Vec<u8>) -> Result<(), BitstreamError> {
        let error = |reason| BitstreamError::Bundle { first_frame: bundle.first_frame, reason };
        if bundle.first_frame < self.next_frame {
            return Err(error(format!("starts before frame {}, where the last one ended", self.next_frame)));
        }
        let fits = bundle.codes.len() == usize::from(bundle.frames) * bundle.stages.index();
        let end = bundle.first_frame.checked_add(u64::from(bundle.frames)).filter(|_| fits && bundle.frames > 0);
        let end = end.ok_or_else(|| error("frames, stages and codes do not fit together".to_owned()))?;
        if self.bundles.is_multiple_of(INDEX_STEP) {
            self.index.entries.push(IndexEntry { first_frame: bundle.first_frame, offset: self.written });
        }
        let start = out.len();
        let regular = bundle.first_frame == self.next_frame
            && bundle.frames == self.header.frames_per_bundle
            && bundle.stages == self.header.stages;
        if regular {
            out.push(tag::BUNDLE);
        } else {
            out.extend_from_slice(&[tag::BUNDLE_AT, bundle.frames, bundle.stages.value()]);
            varint::put(bundle.first_frame, out);
        }
        bundle.pack_into(out);
        seal(start, out);
        self.written += (out.len() - start) as u64;
        self.next_frame = end;
        self.bundles += 1;
        Ok(())
    }

    /// Ends the container; `total_samples` is the true length of the audio at the codec's rate, if known.
    pub fn finish(self, total_samples: Option<u64>, out: &mut Vec<u8>) {
        let total = total_samples.map_or(0, |t| t.saturating_add(1));
        if self.bundles < INDEX_FROM {
            let start = out.len();
            out.push(tag::END);
            varint::put(total, out);
            seal(start, out);
            return;
        }
        let length = self.index.write(out);
        let start = out.len();
        out.push(tag::END_INDEXED);
        out.extend_from_slice(&total.to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
        seal(start, out);
    }
}

/// Appends the check sum of what was written since `start`.
pub(super) fn seal(start: usize, out: &mut Vec<u8>) {
    let crc = crc16(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
}
