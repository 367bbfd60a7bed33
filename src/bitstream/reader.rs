//! Reading a container that arrives in pieces of any size.

use super::coded::{PACKED, RESTART};
use super::crc::crc16;
use super::header::MAX_HEADER;
use super::index::MAX_INDEX;
use super::{
    BitstreamError, Bundle, CodedBundle, Form, MAX_PAYLOAD, PackedBundle, PayloadMode, StreamHeader, tag, varint,
};
use crate::profile::Profile;
use crate::units::{OutOfRange, StageCount};

/// Longest record but the index: tag, flags, frames, stages, frame number, length, payload, check sum.
const MAX_RECORD: usize = 4 + 10 + 2 + MAX_PAYLOAD + 2;

/// What a reader puts up with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReaderOptions {
    /// Skip a bundle whose check sum is wrong and go on with the next, instead of an error.
    pub skip_damaged: bool,
}

/// What a container holds, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// Always first.
    Header(StreamHeader),
    /// Frames of codes.
    Bundle(Bundle),
    /// Silence: the background of frames, and of those after them until the next bundle (at most a second).
    Background(PackedBundle),
    /// Frames of codes that a token model has to decode.
    Coded(CodedBundle),
    /// The stream was ended on purpose.
    End {
        /// True length of the audio in samples, if known.
        total_samples: Option<u64>,
    },
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// With its end record.
    Complete,
    /// Without: it was cut, or the stream still runs.
    CutAt {
        /// Bytes that were understood.
        bytes: u64,
        /// Frames up to there.
        frames: u64,
    },
}

/// A push parser: give it bytes, take items. It buffers at most one record and what was pushed last.
#[derive(Debug)]
pub struct ContainerReader {
    options: ReaderOptions,
    header: Option<StreamHeader>,
    buffer: Vec<u8>,
    at: usize,
    /// Bytes understood so far.
    offset: u64,
    /// Bytes of the index still to be passed over.
    skip: usize,
    next_frame: u64,
    ended: bool,
    damaged: u64,
}

impl ContainerReader {
    /// A reader at the start of a container.
    pub fn new(options: ReaderOptions) -> Self {
        Self {
            options,
            header: None,
            buffer: Vec::new(),
            at: 0,
            offset: 0,
            skip: 0,
            next_frame: 0,
            ended: false,
            damaged: 0,
        }
    }

    /// A reader that starts at a bundle found in the index.
    pub fn resume(options: ReaderOptions, header: StreamHeader, entry: super::IndexEntry) -> Self {
        let mut reader = Self::new(options);
        reader.header = Some(header);
        reader.offset = entry.offset;
        reader.next_frame = entry.first_frame;
        reader
    }

    /// Takes more bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes held: at most one incomplete record once [`ContainerReader::next`] has given None.
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.at
    }

    /// Bytes that were pushed and lie behind the end of the stream; empty before its end.
    pub fn behind(&self) -> &[u8] {
        if self.ended { self.record() } else { &[] }
    }

    /// Bundles that were skipped because they were damaged.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    /// The next item; None if more bytes are needed, or after the end.
    ///
    /// # Errors
    /// [`BitstreamError`] with the byte offset; the reader stays where the damage is.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Item>, BitstreamError> {
        loop {
            let passed = self.skip.min(self.buffered());
            self.take(passed);
            self.skip -= passed;
            if self.skip > 0 || self.buffered() == 0 || self.ended {
                return Ok(None);
            }
            let Some(header) = &self.header else {
                let Some((header, length)) = StreamHeader::parse(&self.buffer[self.at..])? else {
                    debug_assert!(self.buffered() < MAX_HEADER);
                    return Ok(None);
                };
                self.take(length);
                self.header = Some(header.clone());
                return Ok(Some(Item::Header(header)));
            };
            let (frames, stages) = (header.frames_per_bundle, header.stages);
            let coded = header.payload_mode == PayloadMode::Coded;
            let record = &self.buffer[self.at..];
            let item = match record[0] {
                tag::BUNDLE => self.bundle(1, self.next_frame, frames, stages)?,
                tag::BUNDLE_AT => self.bundle_at()?,
                tag::GRADED if !coded && header.live => self.graded_at()?,
                tag::BACKGROUND if !coded && header.live => self.background_at()?,
                tag::CODED if coded => self.coded(frames, stages)?,
                tag::CODED_AT if coded => self.coded_at()?,
                tag::END => self.end()?,
                tag::END_INDEXED => self.end_indexed()?,
                tag::INDEX => match self.index()? {
                    true => continue,
                    false => None,
                },
                got => return Err(BitstreamError::Tag { offset: self.offset, got }),
            };
            match item {
                Some(Passed::Item(item)) => return Ok(Some(item)),
                Some(Passed::Skipped) => {}
                None => {
                    debug_assert!(self.buffered() <= MAX_RECORD);
                    return Ok(None);
                }
            }
        }
    }

    /// Says how the container ended, once all its bytes were pushed and taken.
    pub fn finish(&self) -> Tail {
        if self.ended { Tail::Complete } else { Tail::CutAt { bytes: self.offset, frames: self.next_frame } }
    }

    fn take(&mut self, bytes: usize) {
        self.at += bytes;
        self.offset += bytes as u64;
    }

    fn record(&self) -> &[u8] {
        &self.buffer[self.at..]
    }

    fn graded(&self) -> bool {
        self.header.as_ref().is_some_and(|h| h.graded)
    }

    fn field(&self, at: usize, source: OutOfRange) -> BitstreamError {
        BitstreamError::Field { offset: self.offset + at as u64, source }
    }

    /// A bundle's record of `length` bytes is done; the next one starts at frame `end`.
    fn passed(&mut self, length: usize, end: u64) {
        self.next_frame = end;
        self.take(length);
    }

    /// A damaged bundle: an error, or passed over if that is what the options say.
    fn damage(&mut self, e: BitstreamError, length: usize, end: u64) -> Found {
        if !self.options.skip_damaged {
            return Err(e);
        }
        self.damaged += 1;
        self.passed(length, end);
        Ok(Some(Passed::Skipped))
    }

    fn error(&self, at: usize, what: &'static str, got: impl ToString, allowed: &'static str) -> BitstreamError {
        self.field(at, OutOfRange { what, got: got.to_string(), allowed })
    }

    /// The body of a record of `length` bytes with its check sum; None if it is not complete.
    fn body(&self, length: usize) -> Option<(&[u8], Result<(), BitstreamError>)> {
        let record = self.buffer.get(self.at..self.at + length)?;
        let (body, sum) = record.split_at(length - 2);
        let (got, computed) = (u16::from_le_bytes([sum[0], sum[1]]), crc16(body));
        let error = BitstreamError::Crc { offset: self.offset, got, computed };
        Some((body, if got == computed { Ok(()) } else { Err(error) }))
    }

    /// Frames, stages and first frame of a bundle that says them itself, from byte `at` of its record on; and where they end.
    fn place(&self, at: usize) -> Result<Option<(u8, StageCount, u64, usize)>, BitstreamError> {
        let record = self.record();
        let Some(&[frames, stages]) = record.get(at..).and_then(|r| r.first_chunk::<2>()) else { return Ok(None) };
        if !(1..=Profile::MAX_FRAMES_PER_BUNDLE).contains(&frames) {
            return Err(self.error(at, "frames of a bundle", frames, "1 to 50"));
        }
        let stages = StageCount::new(stages).map_err(|e| self.field(at + 1, e))?;
        let at = at + 2;
        match varint::get(&record[at..]) {
            varint::Found::Value(first, _)
                if first < self.next_frame || first.checked_add(u64::from(frames)).is_none() =>
            {
                Err(self.error(at, "first frame", first, "not before the end of the last bundle"))
            }
            varint::Found::Value(first, n) => Ok(Some((frames, stages, first, at + n))),
            varint::Found::Incomplete => Ok(None),
            varint::Found::TooLong => Err(self.error(at, "first frame", "more than 64 bits", "64 bits")),
        }
    }

    fn bundle_at(&mut self) -> Found {
        let Some((frames, stages, first, head)) = self.place(1)? else { return Ok(None) };
        self.bundle(head, first, frames, stages)
    }

    /// A record that says everything itself: tag, frames, stages, first frame, length, graded payload.
    fn graded_at(&mut self) -> Found {
        let Some((frames, stages, first, head)) = self.place(1)? else { return Ok(None) };
        let Some((length, head)) = self.length(head)? else { return Ok(None) };
        if !(1..=Bundle::graded_len(frames, stages)).contains(&length) {
            return Err(self.error(head, "length of a graded payload", length, "what its frames and stages take"));
        }
        let whole = head + length + 2;
        let Some((body, sum)) = self.body(whole) else { return Ok(None) };
        let made = sum.and_then(|()| Bundle::unpack_graded(first, frames, stages, &body[head..]));
        self.made(made, whole, first.saturating_add(u64::from(frames)))
    }

    /// A record that says everything itself: tag, frames, stages, first frame, indices of one frame.
    fn background_at(&mut self) -> Found {
        let Some((frames, stages, first_frame, head)) = self.place(1)? else { return Ok(None) };
        let whole = head + Bundle::payload_len(1, stages) + 2;
        let Some((body, sum)) = self.body(whole) else { return Ok(None) };
        let (form, payload) = (Form::Background, body[head..].to_vec());
        let bundle = PackedBundle { first_frame, frames, stages, form, payload };
        let end = first_frame.saturating_add(u64::from(frames));
        match sum.and_then(|()| bundle.unpack()) {
            Ok(_) => {
                self.passed(whole, end);
                Ok(Some(Passed::Item(Item::Background(bundle))))
            }
            Err(e) => self.damage(e, whole, end),
        }
    }

    /// A length at byte `at` of the record, and where it ends; one of more than 64 bits is too long for anything.
    fn length(&self, at: usize) -> Result<Option<(usize, usize)>, BitstreamError> {
        Ok(match varint::get(&self.record()[at..]) {
            varint::Found::Value(length, n) => Some((usize::try_from(length).unwrap_or(usize::MAX), at + n)),
            varint::Found::Incomplete => None,
            varint::Found::TooLong => Some((usize::MAX, at)),
        })
    }

    /// A bundle that was read, or the damage.
    fn made(&mut self, made: Result<Bundle, BitstreamError>, length: usize, end: u64) -> Found {
        match made {
            Ok(bundle) => {
                self.passed(length, end);
                Ok(Some(Passed::Item(Item::Bundle(bundle))))
            }
            Err(e) => self.damage(e, length, end),
        }
    }

    fn bundle(&mut self, head: usize, first: u64, frames: u8, stages: StageCount) -> Found {
        let length = head + Bundle::payload_len(frames, stages) + 2;
        let Some((body, sum)) = self.body(length) else { return Ok(None) };
        let made = sum.and_then(|()| Bundle::unpack(first, frames, stages, &body[head..]));
        self.made(made, length, first.saturating_add(u64::from(frames)))
    }

    /// A record of the regular shape: tag, length, payload.
    fn coded(&mut self, frames: u8, stages: StageCount) -> Found {
        let (first_frame, graded, payload) = (self.next_frame, self.graded(), Vec::new());
        let (restart, packed) = (false, false);
        self.coded_payload(1, CodedBundle { first_frame, frames, stages, graded, restart, packed, payload })
    }

    /// A record that says everything itself: tag, flags, frames, stages, first frame, length, payload.
    fn coded_at(&mut self) -> Found {
        let Some(&[flags, ..]) = self.record().get(1..4) else { return Ok(None) };
        if flags & !(RESTART | PACKED) != 0 {
            return Err(self.error(1, "flags of a coded bundle", flags, "0 to 3"));
        }
        let Some((frames, stages, first_frame, head)) = self.place(2)? else { return Ok(None) };
        let (restart, packed) = (flags & RESTART != 0, flags & PACKED != 0);
        let (graded, payload) = (self.graded(), Vec::new());
        self.coded_payload(head, CodedBundle { first_frame, frames, stages, graded, restart, packed, payload })
    }

    fn coded_payload(&mut self, head: usize, mut bundle: CodedBundle) -> Found {
        let Some((length, head)) = self.length(head)? else { return Ok(None) };
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
        Ok(Some(Passed::Item(Item::Coded(bundle))))
    }

    fn end(&mut self) -> Found {
        match varint::get(&self.buffer[self.at + 1..]) {
            varint::Found::Value(total, n) => {
                let length = 1 + n + 2;
                let Some((_, sum)) = self.body(length) else { return Ok(None) };
                sum?;
                Ok(Some(self.ended(total, length)))
            }
            varint::Found::Incomplete => Ok(None),
            varint::Found::TooLong => Err(self.error(1, "length in samples", "more than 64 bits", "64 bits")),
        }
    }

    fn end_indexed(&mut self) -> Found {
        let length = super::index::END_INDEXED_LEN;
        let Some((body, sum)) = self.body(length) else { return Ok(None) };
        sum?;
        let total = u64::from_le_bytes(std::array::from_fn(|i| body[1 + i]));
        Ok(Some(self.ended(total, length)))
    }

    fn ended(&mut self, total: u64, length: usize) -> Passed {
        self.take(length);
        self.ended = true;
        Passed::Item(Item::End { total_samples: total.checked_sub(1) })
    }

    /// Passes over the index without buffering it; false if its length is not there yet.
    fn index(&mut self) -> Result<bool, BitstreamError> {
        let Some(length) = self.buffer.get(self.at + 1..self.at + 5) else { return Ok(false) };
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
        if length > MAX_INDEX {
            return Err(self.error(1, "length of the index in bytes", length, "0 to 67108864"));
        }
        self.skip = 5 + length + 2;
        Ok(true)
    }
}

/// A record, None while it is not complete.
type Found = Result<Option<Passed>, BitstreamError>;

/// What became of a record.
enum Passed {
    Item(Item),
    Skipped,
}
