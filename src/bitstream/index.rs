//! The seek index at the end of a long container.

use super::crc::{crc16, seal};
use super::{tag, varint};

/// Largest index that is read: an entry of at most 20 bytes every 10 bundles of a month of one-frame bundles.
pub(super) const MAX_INDEX: usize = 64 << 20;

/// Bytes of the last record of a container that has an index.
pub const END_INDEXED_LEN: usize = 1 + 8 + 4 + 2;

/// Where a bundle lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// First frame of the bundle.
    pub first_frame: u64,
    /// Its offset from the start of the container, bytes.
    pub offset: u64,
}

/// Places of some bundles, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeekIndex {
    /// Every tenth bundle.
    pub entries: Vec<IndexEntry>,
}

impl SeekIndex {
    /// Length of the index record that ends `END_INDEXED_LEN` bytes before the end, from these last bytes of a file.
    /// None if the file has no index or does not end as it should.
    pub fn length(last: &[u8; END_INDEXED_LEN]) -> Option<usize> {
        let (body, sum) = last.split_at(END_INDEXED_LEN - 2);
        let length = u32::from_le_bytes([body[9], body[10], body[11], body[12]]) as usize;
        let whole = body[0] == tag::END_INDEXED && crc16(body).to_le_bytes() == sum && length <= MAX_INDEX;
        whole.then_some(length)
    }

    /// Reads an index record; None if it is damaged.
    pub fn parse(record: &[u8]) -> Option<Self> {
        let (body, sum) = record.split_at_checked(record.len().checked_sub(2)?)?;
        if body.len() < 5 || body[0] != tag::INDEX || crc16(body).to_le_bytes() != sum {
            return None;
        }
        let (mut rest, mut entries) = (&body[5..], Vec::new());
        let mut last = IndexEntry { first_frame: 0, offset: 0 };
        while !rest.is_empty() {
            let mut step = || match varint::get(rest) {
                varint::Found::Value(v, n) => {
                    rest = &rest[n..];
                    Some(v)
                }
                _ => None,
            };
            let (frames, bytes) = (step()?, step()?);
            last.first_frame = last.first_frame.checked_add(frames)?;
            last.offset = last.offset.checked_add(bytes)?;
            entries.push(last);
        }
        Some(Self { entries })
    }

    /// The last bundle of the index that starts at or before `frame`.
    pub fn find(&self, frame: u64) -> Option<IndexEntry> {
        let after = self.entries.partition_point(|e| e.first_frame <= frame);
        after.checked_sub(1).map(|i| self.entries[i])
    }

    /// Appends the record; returns its length.
    pub(super) fn write(&self, out: &mut Vec<u8>) -> u32 {
        let start = out.len();
        out.push(tag::INDEX);
        out.extend_from_slice(&[0; 4]);
        let mut last = IndexEntry { first_frame: 0, offset: 0 };
        for e in &self.entries {
            varint::put(e.first_frame - last.first_frame, out);
            varint::put(e.offset - last.offset, out);
            last = *e;
        }
        let body = u32::try_from(out.len() - start - 5).unwrap_or(u32::MAX);
        out[start + 1..start + 5].copy_from_slice(&body.to_le_bytes());
        seal(start, out);
        u32::try_from(out.len() - start).unwrap_or(u32::MAX)
    }
}
