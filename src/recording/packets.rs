//! A recording as packets of at most so many bytes, each decodable alone, and back.

use std::sync::Arc;

use super::FitError;
use crate::bitstream::{ABSENT, BitstreamError, Bundle, ContextRule, MessagePacket, crc16};
use crate::codec::{Grading, Loudness, level_db};
use crate::entropy::{Coded, Decoder, Encoder, EntropyError};
use crate::profile::Profile;
use crate::rvq::{Ladder, SimdLevel};
use crate::token::TokenModel;
use crate::units::StageCount;

/// Steps of stages in which a packet is filled, and trials: half the stages a model has at the first.
const TRIALS: u32 = 7;

/// Why there are no packets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PacketError {
    /// Not even a stage of a frame fits.
    #[error(
        "packets of {bytes} bytes cannot hold {frames} frames of one stage each: allowed are more bytes, or a lower --kbps"
    )]
    Small {
        /// Bytes of a packet.
        bytes: usize,
        /// Frames that one is to hold.
        frames: u8,
    },
    /// The codes.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// Bytes that are no packet.
    #[error(transparent)]
    Bitstream(#[from] BitstreamError),
    /// A coded payload.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// A packet of another model.
    #[error("the packet was made with another model, or another token model (tag {got:02x?}, here {here:02x?})")]
    Model {
        /// As sent.
        got: [u8; 2],
        /// Of the models here.
        here: [u8; 2],
    },
    /// A coded packet, and no token model.
    #[error("the packet is coded, and there is no token model here")]
    NoTokens,
}

/// Two bytes that tell whether a packet's models are those here.
fn tag(profile: &Profile, tokens: Option<&Arc<TokenModel>>) -> [u8; 2] {
    let (id, other) = (profile.model_id.0, tokens.map_or([0; 8], |t| t.id()));
    [id[0] ^ other[0], id[1] ^ other[1]]
}

/// How a voice message is cut.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PacketOptions {
    /// Most bytes of a packet.
    pub bytes: usize,
    /// Rate in kbit/s, packets' heads included: it decides how much time a packet holds.
    pub kbps: f64,
}

impl PacketOptions {
    /// Bytes for codes in a packet, wherever in an hour it is.
    fn room(&self) -> usize {
        self.bytes.saturating_sub(MessagePacket::head_len(50 * 3_600))
    }

    /// Frames of a packet.
    pub fn frames(&self) -> u8 {
        let frame_bits = self.kbps * 1000.0 / f64::from(Profile::FRAMES_PER_SECOND);
        (self.bytes as f64 * 8.0 / frame_bits).floor().clamp(1.0, f64::from(Profile::MAX_FRAMES_PER_BUNDLE)) as u8
    }
}

/// Cuts a recording of samples `pcm`, whose frames have the codes of `ladder`, into packets. With a token model each is filled with as
/// many stages as fit, loud frames with more; otherwise all frames have as many.
///
/// # Errors
/// [`PacketError::Small`], [`PacketError::Fit`].
pub fn packets(
    profile: &Profile,
    tokens: Option<&Arc<TokenModel>>,
    pcm: &[f32],
    ladder: &Ladder,
    options: PacketOptions,
) -> Result<Vec<Vec<u8>>, PacketError> {
    let mut loudness = Loudness::default();
    let levels: Vec<f32> = pcm.chunks(profile.frame_samples).map(level_db).collect();
    levels.iter().for_each(|&level| loudness.push(level));
    let (total, width) = (ladder.frames(), usize::from(options.frames()));
    let tag = tag(profile, tokens);
    // Codes tell messages apart as well as a random number would, and the same recording gives the same packets.
    let all: Vec<u8> =
        (0..total).filter_map(|f| ladder.codes(f, StageCount::ONE)).flatten().map(|&c| c as u8).collect();
    let message = crc16(&all);
    let mut out = Vec::new();
    for start in (0..total).step_by(width) {
        let frames = start..(start + width).min(total);
        let last = frames.end == total;
        let filler = Filler { profile, ladder, levels: &levels, pivot: loudness.mean_db(), room: options.room() };
        let filled = match tokens {
            Some(tokens) => filler.coded(tokens, frames.clone())?,
            None => filler.packed(frames.clone())?,
        };
        let (stages, payload) =
            filled.ok_or(PacketError::Small { bytes: options.bytes, frames: frames.len() as u8 })?;
        let (coded, first_frame, frames) = (tokens.is_some(), start as u64, frames.len() as u8);
        out.push(MessagePacket { coded, last, tag, message, first_frame, frames, stages, payload }.encode());
    }
    Ok(out)
}

/// What a packet is filled from.
struct Filler<'a> {
    profile: &'a Profile,
    ladder: &'a Ladder,
    levels: &'a [f32],
    pivot: f32,
    room: usize,
}

impl Filler<'_> {
    /// As many stages as fit, the same for all frames.
    fn packed(&self, frames: std::ops::Range<usize>) -> Result<Option<(StageCount, Vec<u8>)>, PacketError> {
        let fits = |n: &StageCount| Bundle::payload_len(frames.len() as u8, *n) <= self.room;
        let all = (1..=self.profile.stages.value()).rev().filter_map(|n| StageCount::new(n).ok());
        let Some(stages) = all.into_iter().find(fits) else { return Ok(None) };
        let depths = vec![stages.value(); frames.len()];
        let mut payload = Vec::new();
        self.bundle(frames, stages, &depths)?.pack_into(&mut payload);
        Ok(Some((stages, payload)))
    }

    /// Stages by level, as many as fit when coded.
    fn coded(
        &self,
        tokens: &Arc<TokenModel>,
        frames: std::ops::Range<usize>,
    ) -> Result<Option<(StageCount, Vec<u8>)>, PacketError> {
        let most = f32::from(self.profile.stages.value());
        let (mut low, mut high) = (-most, 2.0 * most);
        let mut best = None;
        for trial in 0..TRIALS {
            // The lowest first: if that does not fit, nothing does.
            let base = if trial == 0 { low } else { (low + high) / 2.0 };
            let grading = Grading { base, ..Grading::new(most / 2.0, self.pivot) };
            let mut last = None;
            let depths: Vec<u8> = frames
                .clone()
                .map(|frame| {
                    let level = self.levels.get(frame).copied().unwrap_or(-90.0);
                    let depth = grading.depth(level, last, self.profile.stages);
                    last = Some(depth);
                    depth
                })
                .collect();
            let stages = StageCount::new(depths.iter().copied().max().unwrap_or(1)).unwrap_or(StageCount::MAX);
            let bundle = self.bundle(frames.clone(), stages, &depths)?;
            let mut payload = Vec::new();
            let mut encoder = Encoder::new(Arc::clone(tokens), ContextRule::Bundle, SimdLevel::detect()).graded();
            let coded = encoder.encode(&bundle, true, &mut payload)?;
            if matches!(coded, Coded::Range { .. }) && payload.len() <= self.room {
                (low, best) = (base, Some((stages, payload)));
            } else if trial == 0 {
                return Ok(None);
            } else {
                high = base;
            }
        }
        Ok(best)
    }

    fn bundle(&self, frames: std::ops::Range<usize>, stages: StageCount, depths: &[u8]) -> Result<Bundle, PacketError> {
        let (first_frame, count) = (frames.start as u64, frames.len() as u8);
        let mut codes = vec![ABSENT; usize::from(count) * stages.index()];
        for ((frame, &depth), codes) in frames.zip(depths).zip(codes.chunks_exact_mut(stages.index())) {
            let depth = StageCount::new(depth).unwrap_or(stages);
            let missing = FitError::Missing { frame, frames: self.ladder.frames() };
            let found = self.ladder.codes(frame, depth).ok_or(missing)?;
            codes[..found.len()].copy_from_slice(found);
        }
        Ok(Bundle::new(first_frame, count, stages, codes)?)
    }
}

/// The frames of a packet.
///
/// # Errors
/// [`PacketError`] for damaged packets, and those of other models.
pub fn open_packet(
    profile: &Profile,
    tokens: Option<&Arc<TokenModel>>,
    packet: &MessagePacket,
) -> Result<Bundle, PacketError> {
    let MessagePacket { first_frame, frames, stages, payload, .. } = packet;
    let tokens = if packet.coded { Some(tokens.ok_or(PacketError::NoTokens)?) } else { None };
    let here = tag(profile, tokens);
    if packet.tag != here {
        return Err(PacketError::Model { got: packet.tag, here });
    }
    match tokens {
        None => Ok(Bundle::unpack(*first_frame, *frames, *stages, payload)?),
        Some(tokens) => {
            let mut decoder = Decoder::new(Arc::clone(tokens), ContextRule::Bundle, SimdLevel::detect()).graded();
            Ok(decoder.decode(*first_frame, *frames, *stages, true, payload)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use crate::synthesis::analyse_all;

    /// Packets of a recording by the fake model, and that model.
    fn made(options: PacketOptions, coded: bool) -> (Vec<Vec<u8>>, Arc<Profile>, Option<Arc<TokenModel>>) {
        let mut processor = fake::processor(16, 7);
        let tokens = coded.then(|| crate::token::fake::model(&fake::codebooks(16, 7), 1));
        let pcm: Vec<f32> = (0..24_000).map(|i| (i as f32 * 0.05).sin() * (i as f32 / 24_000.0)).collect();
        let latents = analyse_all(&mut processor, None, &pcm).unwrap();
        let ladder = processor.ladder(&latents).unwrap();
        let profile = processor.profile();
        (packets(&profile, tokens.as_ref(), &pcm, &ladder, options).unwrap(), profile, tokens)
    }

    #[test]
    fn packets_fit_and_each_opens_alone() {
        for (bytes, kbps, coded) in [(200, 3.0, true), (200, 3.0, false), (60, 6.0, true), (51, 1.5, true)] {
            let (packets, profile, tokens) = made(PacketOptions { bytes, kbps }, coded);
            let mut next = 0;
            for (n, packet) in packets.iter().enumerate() {
                assert!(packet.len() <= bytes, "{} of {bytes} bytes", packet.len());
                let parsed = MessagePacket::parse(packet).unwrap();
                let bundle = open_packet(&profile, tokens.as_ref(), &parsed).unwrap();
                assert_eq!((bundle.first_frame, parsed.last), (next, n + 1 == packets.len()));
                next += u64::from(bundle.frames);
                if n + 1 < packets.len() {
                    assert!(packet.len() * 10 > bytes * 7, "{} of {bytes} bytes", packet.len());
                }
            }
            assert!(next >= 51, "{next} frames");
        }
    }

    #[test]
    fn what_cannot_fit_or_is_of_another_model_is_refused() {
        let mut processor = fake::processor(16, 7);
        let latents = analyse_all(&mut processor, None, &[0.1; 4_800]).unwrap();
        let ladder = processor.ladder(&latents).unwrap();
        let profile = processor.profile();
        let small = packets(&profile, None, &[0.1; 4_800], &ladder, PacketOptions { bytes: 14, kbps: 0.5 });
        assert!(matches!(small, Err(PacketError::Small { .. })));
        let (packets, profile, tokens) = made(PacketOptions { bytes: 200, kbps: 3.0 }, true);
        let packet = MessagePacket::parse(&packets[0]).unwrap();
        assert!(matches!(open_packet(&profile, None, &packet), Err(PacketError::NoTokens)));
        let other = MessagePacket { tag: [packet.tag[0] ^ 1, packet.tag[1]], ..packet };
        assert!(matches!(open_packet(&profile, tokens.as_ref(), &other), Err(PacketError::Model { .. })));
    }
}
