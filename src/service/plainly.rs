//! Silence for peers that know nothing of it: bundles of background, made here.

use std::borrow::Cow;

use super::hub::Heard;
use crate::bitstream::{BitstreamError, Bundle};
use crate::codec::Background;
use crate::session::PackedBundle;

/// Turns descriptions of a stream's background into bundles like all others.
#[derive(Default)]
pub(super) struct Plainly(Background);

impl Plainly {
    /// What is to be sent; None for silence of which nothing is known.
    ///
    /// # Errors
    /// [`BitstreamError`] for a payload that does not fit.
    pub(super) fn bundle<'a>(&mut self, heard: &'a Heard) -> Result<Option<Cow<'a, PackedBundle>>, BitstreamError> {
        let bundle: &PackedBundle = heard;
        if !bundle.is_background() {
            self.0.heard(&bundle.unpack()?);
            return Ok(Some(Cow::Borrowed(bundle)));
        }
        if !heard.is_filler {
            self.0.describe(&bundle.unpack()?.codes);
        }
        let Some((stages, codes)) = self.0.frames(bundle.first_frame, usize::from(bundle.frames)) else {
            return Ok(None);
        };
        let made = Bundle::new(bundle.first_frame, bundle.frames, stages, codes)?;
        Ok(Some(Cow::Owned(PackedBundle::pack(&made))))
    }
}
