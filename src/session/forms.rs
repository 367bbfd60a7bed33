//! What of the wire both ends know.

/// Forms of messages that not every peer of version 1 knows: both ends name theirs, and what both have is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wire {
    /// Bundles may be thin.
    pub thin: bool,
    /// Frames of a bundle may have stage counts of their own.
    pub graded: bool,
    /// Silence may be described instead of sent.
    pub silence: bool,
}

impl Wire {
    /// All that this program knows over a connection that loses nothing.
    pub const ALL: Self = Self { thin: true, graded: true, silence: true };

    /// Whether coded bundles have graded payloads: the old message has no place to say so.
    pub fn is_graded_when_coded(self) -> bool {
        self.thin && self.graded
    }

    /// What both ends have.
    pub fn common(self, other: Self) -> Self {
        Self {
            thin: self.thin && other.thin,
            graded: self.graded && other.graded,
            silence: self.silence && other.silence,
        }
    }

    /// The bits of the message; unknown ones are ignored.
    pub fn from_bits(bits: u32) -> Self {
        Self { thin: bits & 1 != 0, graded: bits & 2 != 0, silence: bits & 4 != 0 }
    }

    /// The bits of the message.
    pub fn bits(self) -> u32 {
        u32::from(self.thin) | u32::from(self.graded) << 1 | u32::from(self.silence) << 2
    }
}
