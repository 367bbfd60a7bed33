//! What a peer speaks that is not what the port speaks: the most frequent mistakes, by name.

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Foreign {
    /// The beginning of a TLS handshake.
    TlsHello,
    /// A record of a TLS server.
    TlsRecord,
    /// A request of HTTP.
    HttpRequest,
    /// An answer of HTTP.
    HttpAnswer,
}

impl Foreign {
    /// What the first bytes of a connection that should speak our protocol are instead. None of these can be a message:
    /// behind its length would stand a field that protobuf forbids, or that we never write.
    pub(super) fn of_messages(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x16, 0x03, 0..=4, ..] => Some(Self::TlsHello),
            [0x14 | 0x15 | 0x17, 0x03, 0..=4, ..] => Some(Self::TlsRecord),
            [b'H', b'T', b'T', b'P', b'/', ..] => Some(Self::HttpAnswer),
            _ if is_request(bytes) => Some(Self::HttpRequest),
            _ => None,
        }
    }

    /// The same for samples, which may be any bytes: only what no sound begins with by chance.
    pub(super) fn of_samples(bytes: &[u8]) -> Option<Self> {
        if let [0x16, 0x03, 0..=4, high, low, 1, a, b, c, 0x03, ..] = *bytes {
            let record = usize::from(u16::from_be_bytes([high, low]));
            let hello = u32::from_be_bytes([0, a, b, c]) as usize;
            if record == hello + 4 {
                return Some(Self::TlsHello);
            }
        }
        (is_request(bytes) && bytes.windows(7).any(|w| w == b"HTTP/1.")).then_some(Self::HttpRequest)
    }

    /// What a server says of it.
    pub(super) fn to_client(self) -> &'static str {
        match self {
            Self::TlsHello | Self::TlsRecord => {
                "the client speaks TLS, and this port does not: connect without TLS, or set [tls] at the server"
            }
            Self::HttpRequest | Self::HttpAnswer => "this is HTTP, which is spoken on the port of http.listen",
        }
    }

    /// What a client says of it.
    pub(super) fn to_server(self) -> &'static str {
        match self {
            Self::TlsHello | Self::TlsRecord => "the server speaks TLS here: connect with --tls",
            Self::HttpRequest | Self::HttpAnswer => "this port speaks HTTP: codes have another one (codes.listen)",
        }
    }
}

fn is_request(bytes: &[u8]) -> bool {
    ["GET /", "HEAD /", "POST /", "PUT /", "OPTIONS "].iter().any(|m| bytes.starts_with(m.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first bytes of what `openssl s_client` sends.
    const HELLO: [u8; 11] = [0x16, 3, 1, 0x01, 0x29, 1, 0, 0x01, 0x25, 3, 3];

    #[test]
    fn mistakes_have_names_and_messages_and_samples_are_none() {
        assert_eq!(Foreign::of_messages(&HELLO), Some(Foreign::TlsHello));
        assert_eq!(Foreign::of_messages(&[0x15, 3, 3, 0, 2, 2, 70]), Some(Foreign::TlsRecord));
        assert_eq!(Foreign::of_messages(b"GET / HTTP/1.1\r\n"), Some(Foreign::HttpRequest));
        assert_eq!(Foreign::of_messages(b"HTTP/1.1 400 Bad Request\r\n"), Some(Foreign::HttpAnswer));
        assert_eq!(Foreign::of_samples(&HELLO), Some(Foreign::TlsHello));
        assert_eq!(Foreign::of_samples(b"GET /sound HTTP/1.1\r\nHost: a\r\n\r\n"), Some(Foreign::HttpRequest));
        // Samples that begin alike.
        for samples in [&HELLO[..9], b"GET / and then sound", &[0x16, 3, 1, 0, 9, 1, 0, 0, 4, 3, 3], &[]] {
            assert_eq!(Foreign::of_samples(samples), None, "{samples:?}");
        }
    }

    #[test]
    fn no_message_of_ours_looks_foreign() {
        use crate::session::{Close, Control, Message, Reason};
        let control = Message::Control(Control::default());
        let mut all = Vec::new();
        for length in 0..200 {
            all.push(Message::Close(Close::new(Reason::Done, "x".repeat(length))));
        }
        for message in all.iter().chain([&control]) {
            let mut bytes = Vec::new();
            crate::wire::encode(message, &mut bytes);
            assert_eq!(Foreign::of_messages(&bytes), None, "{message:?}");
        }
    }
}
