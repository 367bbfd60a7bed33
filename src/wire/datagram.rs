//! Datagrams: one message each, with what an unreliable transport needs besides.

use std::time::Duration;

use prost::Message as _;

use super::{WireError, convert, proto};
use crate::jitter::Report;
use crate::session::Message;
use crate::units::OutOfRange;

/// Largest datagram in bytes: it passes every network that carries IPv6, with room for tunnels.
pub const MAX_DATAGRAM: usize = 1200;

/// Bytes of a cookie.
pub const COOKIE_LEN: usize = 24;

/// What proves that a client receives what is sent to its address.
pub type Cookie = [u8; COOKIE_LEN];

/// One datagram, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Datagram {
    /// Session as numbered by the server; 0 before there is one.
    pub session: u64,
    /// With a Hello, and in the server's answer to one that has no valid cookie.
    pub cookie: Option<Cookie>,
    /// A message as over TCP.
    pub content: Option<Message>,
    /// Copies that came with a bundle; [`crate::bitstream::read_redundancy`] reads them.
    pub copies: Vec<u8>,
    /// What the other end has received.
    pub report: Option<Report>,
    /// Bundles sent, from a sender that pauses or is done.
    pub bundles_sent: Option<u64>,
}

impl Datagram {
    /// A message in a session.
    pub fn message(session: u64, content: Message) -> Self {
        Self { session, content: Some(content), ..Self::default() }
    }

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let us = |d: Duration| u32::try_from(d.as_micros()).unwrap_or(u32::MAX);
        proto::Datagram {
            session: self.session,
            cookie: self.cookie.map_or_else(Vec::new, |c| c.to_vec()),
            content: self.content.as_ref().map(convert::to_proto),
            copies: self.copies.clone(),
            report: self.report.map(|r| proto::Report {
                expected: r.expected,
                received: r.received,
                late: r.late,
                reordered: r.reordered,
                duplicated: r.duplicated,
                rebuilt_frames: r.rebuilt_frames,
                concealed_frames: r.concealed_frames,
                jitter_us: us(r.jitter),
                queued_us: us(r.queued),
            }),
            bundles_sent: self.bundles_sent.unwrap_or(0),
        }
        .encode_to_vec()
    }

    /// Reads a datagram.
    ///
    /// Errors: [`WireError`]; the datagram should be ignored, for anybody could have sent it.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > MAX_DATAGRAM {
            return Err(WireError::TooLarge { got: bytes.len() as u64 });
        }
        let m = proto::Datagram::decode(bytes).map_err(|e| WireError::Syntax(e.to_string()))?;
        let us = |n| Duration::from_micros(u64::from(n));
        let cookie = match m.cookie.len() {
            0 => None,
            _ => Some(m.cookie.as_slice().try_into().map_err(|_| OutOfRange {
                what: "cookie",
                got: format!("of {} bytes", m.cookie.len()),
                allowed: "24 bytes",
            })?),
        };
        Ok(Self {
            session: m.session,
            cookie,
            content: m.content.map(convert::from_proto).transpose()?,
            copies: m.copies,
            report: m.report.map(|r| Report {
                expected: r.expected,
                received: r.received,
                late: r.late,
                reordered: r.reordered,
                duplicated: r.duplicated,
                rebuilt_frames: r.rebuilt_frames,
                concealed_frames: r.concealed_frames,
                jitter: us(r.jitter_us),
                queued: us(r.queued_us),
            }),
            bundles_sent: (m.bundles_sent > 0).then_some(m.bundles_sent),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::session::{Close, Reason};

    #[test]
    fn datagrams_come_back_and_large_ones_are_refused() {
        let full = Datagram {
            session: u64::MAX,
            cookie: Some([7; COOKIE_LEN]),
            content: Some(Message::Close(Close::new(Reason::Done, "bye"))),
            copies: vec![1, 2, 3],
            report: Some(Report { expected: 9, received: 8, jitter: Duration::from_millis(3), ..Report::default() }),
            bundles_sent: Some(5),
        };
        for d in [full.clone(), Datagram::default()] {
            assert_eq!(Datagram::decode(&d.encode()).unwrap(), d);
        }
        let large = Datagram { copies: vec![0; MAX_DATAGRAM], ..full };
        assert!(matches!(Datagram::decode(&large.encode()), Err(WireError::TooLarge { .. })));
    }

    #[test]
    fn an_answer_without_proof_is_shorter_than_what_asked_for_it() {
        let retry = Datagram { cookie: Some([1; COOKIE_LEN]), ..Datagram::default() }.encode();
        let shortest = Datagram { cookie: Some([0; COOKIE_LEN]), ..Datagram::default() }.encode();
        assert!(retry.len() <= shortest.len());
    }

    proptest! {
        #[test]
        fn foreign_bytes_are_errors_or_datagrams(bytes in prop::collection::vec(any::<u8>(), 0..1300)) {
            let _ = Datagram::decode(&bytes);
        }
    }
}
