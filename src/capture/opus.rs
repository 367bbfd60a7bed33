//! Opus packets to samples (RFC 6716 by opus-decoder, headers as in RFC 7845). One channel or two: opus-decoder 0.1.1 takes the streams
//! of more channels apart by other rules than those of RFC 6716, appendix B.

use opus_decoder::OpusDecoder;

/// Rate that is decoded to; RFC 7845 counts in it.
pub(super) const RATE: u32 = 48_000;

/// Samples of one channel in the longest packet.
const MAX_FRAMES: usize = 5_760;

/// One Opus stream.
pub(super) struct OpusStream {
    decoder: OpusDecoder,
    channels: usize,
    /// Linear, of the stream's header.
    gain: f32,
    pcm: Vec<f32>,
    /// Samples of each channel still to be left out at the start.
    pub(super) skip: usize,
}

impl OpusStream {
    /// Of the identification header.
    ///
    /// # Errors
    /// Why it cannot be decoded.
    pub(super) fn new(head: &[u8]) -> Result<Self, String> {
        let (Some(&channels), Some(skip), Some(gain), Some(&family)) =
            (head.get(9), head.get(10..12), head.get(16..18), head.get(18))
        else {
            return Err("an Opus stream whose header is cut".to_owned());
        };
        let channels = usize::from(channels);
        // Of the other families, streams of one coupled or single part are the same.
        if !(1..=2).contains(&channels) || (family != 0 && head.get(19) != Some(&1)) {
            return Err(format!(
                "an Opus stream of {channels} channels in mapping family {family}, read are 1 and 2 in one part"
            ));
        }
        let decoder = OpusDecoder::new(RATE, channels);
        let decoder = decoder.map_err(|e| format!("an Opus stream that cannot be decoded: {e}"))?;
        let gain = f32::from(i16::from_le_bytes([gain[0], gain[1]])) / 256.0;
        Ok(Self {
            decoder,
            channels,
            gain: 10f32.powf(gain / 20.0),
            pcm: vec![0.0; MAX_FRAMES * channels],
            skip: usize::from(u16::from_le_bytes([skip[0], skip[1]])),
        })
    }

    /// Channels of a sample.
    pub(super) fn channels(&self) -> usize {
        self.channels
    }

    /// Puts the samples of a packet into `out`, interleaved, without `trim` of the last; false for a damaged packet.
    pub(super) fn decode(&mut self, packet: &[u8], trim: usize, out: &mut Vec<f32>) -> bool {
        out.clear();
        let Ok(frames) = self.decoder.decode_float(packet, &mut self.pcm, false) else { return false };
        let skipped = self.skip.min(frames);
        self.skip -= skipped;
        let kept = skipped..frames.saturating_sub(trim).max(skipped);
        let kept = &self.pcm[kept.start * self.channels..kept.end * self.channels];
        out.extend(kept.iter().map(|x| x * self.gain));
        true
    }
}
