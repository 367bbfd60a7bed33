//! Writing a container, record by record, into the caller's buffer.

use super::coded::{PACKED, RESTART};
use super::crc::seal;
use super::index::{IndexEntry, SeekIndex};
use super::{BitstreamError, Bundle, CodedBundle, PackedBundle, PayloadMode, StreamHeader, tag, varint};
use crate::units::StageCount;

/// Bundles from which on a file gets an index.
const INDEX_FROM: u64 = 64;

/// Bundles between two entries of the index.
const INDEX_STEP: u64 = 10;

/// Writes a container; every call appends whole records, so what was written decodes wherever it is cut.
///
/// # Examples
/// ```
/// use undertone::bitstream::{Bundle, ContainerReader, ContainerWriter, Item, ReaderOptions, StreamHeader};
/// use undertone::{fake, units::StageCount};
///
/// let stages = StageCount::new(2)?;
/// let bundle = Bundle::new(0, 3, stages, vec![5, 1, 4, 1, 3, 1])?;
/// let mut bytes = Vec::new();
/// let mut writer = ContainerWriter::new(StreamHeader::packed(&fake::profile(16), stages, 3), &mut bytes);
/// writer.write(&bundle, &mut bytes)?;
/// writer.finish(None, &mut bytes);
///
/// let mut reader = ContainerReader::new(ReaderOptions::default());
/// reader.push(&bytes);
/// let items: Vec<Item> = std::iter::from_fn(|| reader.next().transpose()).collect::<Result<_, _>>()?;
/// assert!(items.contains(&Item::Bundle(bundle)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ContainerWriter {
    header: StreamHeader,
    next_frame: u64,
    written: u64,
    bundles: u64,
    indexed_at: Option<u64>,
    index: SeekIndex,
}

impl ContainerWriter {
    /// Starts a container: appends the header to `out`.
    pub fn new(header: StreamHeader, out: &mut Vec<u8>) -> Self {
        let before = out.len();
        header.write(out);
        let written = (out.len() - before) as u64;
        Self { header, next_frame: 0, written, bundles: 0, indexed_at: None, index: SeekIndex::default() }
    }

    /// Appends a bundle to `out`.
    ///
    /// # Errors
    /// [`BitstreamError::Bundle`] if it starts before the end of the last one or its parts do not fit.
    pub fn write(&mut self, bundle: &Bundle, out: &mut Vec<u8>) -> Result<(), BitstreamError> {
        let graded = bundle.is_graded();
        let fits = bundle.codes.len() == usize::from(bundle.frames) * bundle.stages.index();
        let fits = fits && (!graded || (self.header.live && self.header.payload_mode == PayloadMode::Packed));
        let end = self.check(bundle.first_frame, bundle.frames, fits)?;
        if self.header.payload_mode == PayloadMode::Packed && self.wants_index() {
            self.index_here(bundle.first_frame);
        }
        let start = out.len();
        if graded {
            out.extend_from_slice(&[tag::GRADED, bundle.frames, bundle.stages.value()]);
            varint::put(bundle.first_frame, out);
            let mut payload = Vec::new();
            bundle.pack_graded_into(&mut payload);
            varint::put(payload.len() as u64, out);
            out.extend_from_slice(&payload);
        } else if self.is_regular(bundle.first_frame, bundle.frames, bundle.stages) {
            out.push(tag::BUNDLE);
        } else {
            out.extend_from_slice(&[tag::BUNDLE_AT, bundle.frames, bundle.stages.value()]);
            varint::put(bundle.first_frame, out);
        }
        if !graded {
            bundle.pack_into(out);
        }
        seal(start, out);
        self.wrote((out.len() - start) as u64, end);
        Ok(())
    }

    /// Appends a description of silence to `out`.
    ///
    /// # Errors
    /// As [`ContainerWriter::write`]; only packed containers of live streams hold such records.
    pub fn write_background(&mut self, bundle: &PackedBundle, out: &mut Vec<u8>) -> Result<(), BitstreamError> {
        let allowed = self.header.live && self.header.payload_mode == PayloadMode::Packed && bundle.is_background();
        let length = Bundle::payload_len(1, bundle.stages);
        let end = self.check(bundle.first_frame, bundle.frames, allowed && bundle.payload.len() == length)?;
        let start = out.len();
        out.extend_from_slice(&[tag::BACKGROUND, bundle.frames, bundle.stages.value()]);
        varint::put(bundle.first_frame, out);
        out.extend_from_slice(&bundle.payload);
        seal(start, out);
        self.wrote((out.len() - start) as u64, end);
        Ok(())
    }

    /// Appends a coded bundle to `out`.
    ///
    /// # Errors
    /// [`BitstreamError::Bundle`] if it starts before the end of the last one or its parts do not fit.
    pub fn write_coded(&mut self, bundle: &CodedBundle, out: &mut Vec<u8>) -> Result<(), BitstreamError> {
        let fits = bundle.graded == self.header.graded && bundle.length_fits();
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

    /// The frame after a bundle that may come next.
    fn check(&self, first_frame: u64, frames: u8, fits: bool) -> Result<u64, BitstreamError> {
        let error = |reason| BitstreamError::Bundle { first_frame, reason };
        if first_frame < self.next_frame {
            return Err(error(format!("starts before frame {}, where the last one ended", self.next_frame)));
        }
        let end = first_frame.checked_add(u64::from(frames)).filter(|_| fits && frames > 0);
        end.ok_or_else(|| error("frames, stages and codes do not fit together".to_owned()))
    }

    fn is_regular(&self, first_frame: u64, frames: u8, stages: StageCount) -> bool {
        first_frame == self.next_frame && frames == self.header.frames_per_bundle && stages == self.header.stages
    }

    /// True when enough bundles were written since the last entry of the index.
    fn wants_index(&self) -> bool {
        self.indexed_at.is_none_or(|at| self.bundles - at >= INDEX_STEP)
    }

    /// Notes the place of the bundle that comes next.
    fn index_here(&mut self, first_frame: u64) {
        self.indexed_at = Some(self.bundles);
        self.index.entries.push(IndexEntry { first_frame, offset: self.written });
    }

    fn wrote(&mut self, bytes: u64, end: u64) {
        self.written += bytes;
        self.next_frame = end;
        self.bundles += 1;
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
