//! Bits on the wire and in files; normative text: docs/bitstream.md.

mod bundle;

pub use bundle::Bundle;
