//! undertone as the referee runs it.

use super::{Codec, Packet, RefereeError};
use crate::bitstream::Bundle;
use crate::codec::{self, Decoder, ProcessError, Processor};
use crate::session::{Message, PackedBundle};
use crate::units::{CODEC_RATE, StageCount};
use crate::wire;

/// IPv4 and TCP headers with time stamps.
const IP_TCP_BYTES: usize = 52;

/// How codes become payload bytes. Entropy coding (`coded`) gets a variant of its own here: what differs is only
/// [`Undertone::pack`] and [`Undertone::unpack`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// Ten bits a code.
    Packed,
}

/// undertone at one rate.
#[derive(Debug)]
pub struct Undertone<'a> {
    processor: &'a mut Processor,
    stages: StageCount,
    frames_per_packet: u8,
    payload: Payload,
}

impl<'a> Undertone<'a> {
    /// `stages` of the model, in packets of `frames_per_packet` frames, 1 to 50.
    pub fn new(processor: &'a mut Processor, stages: StageCount, frames_per_packet: u8, payload: Payload) -> Self {
        Self { processor, stages, frames_per_packet, payload }
    }

    fn pack(&self, sequence: u64, bundle: &Bundle) -> Packet {
        let Payload::Packed = self.payload;
        let packed = PackedBundle::pack(bundle);
        let payload = packed.payload.clone();
        let mut message = Vec::new();
        wire::encode(&Message::Bundle { sequence, bundle: packed }, &mut message);
        Packet { payload, message_bytes: message.len(), ip_bytes: message.len() + IP_TCP_BYTES }
    }

    fn unpack(&self, number: usize, packet: &Packet) -> Result<Bundle, RefereeError> {
        let Payload::Packed = self.payload;
        // Padding is less than a code, so the length tells the frames.
        let frames = packet.payload.len() * 8 / (self.stages.index() * crate::units::BITS_PER_CODE as usize);
        let first = number as u64 * u64::from(self.frames_per_packet);
        Bundle::unpack(first, frames.min(255) as u8, self.stages, &packet.payload).map_err(error)
    }
}

fn error(e: impl ToString) -> RefereeError {
    RefereeError::Codec { codec: "undertone", reason: e.to_string() }
}

impl Codec for Undertone<'_> {
    fn encode(&mut self, pcm: &[f32]) -> Result<Vec<Packet>, RefereeError> {
        let bundles = codec::encode_all(self.processor, pcm, self.stages, self.frames_per_packet).map_err(error)?;
        Ok((0..).zip(&bundles).map(|(i, b)| self.pack(i, b)).collect())
    }

    fn decode(&mut self, packets: &[Option<&Packet>]) -> Result<Vec<f32>, RefereeError> {
        let bundles: Vec<Option<Bundle>> = packets
            .iter()
            .enumerate()
            .map(|(i, p)| p.map(|p| self.unpack(i, p)).transpose())
            .collect::<Result<_, _>>()?;
        decode_with_gaps(self.processor, &bundles, usize::from(self.frames_per_packet)).map_err(error)
    }

    fn packet_ms(&self) -> usize {
        usize::from(self.frames_per_packet) * self.processor.profile().frame_samples * 1_000 / CODEC_RATE.hz() as usize
    }

    fn delay_ms(&self) -> f64 {
        let overlap = self.processor.profile().overlap_samples() as f64 * 1e3 / f64::from(CODEC_RATE.hz());
        self.packet_ms() as f64 + overlap
    }
}

/// Decodes a stream in which some bundles are missing; the result has every frame's place, also at the start and end.
///
/// The one place where the referee meets concealment: what [`Decoder`] does with a gap (silence today) is measured.
fn decode_with_gaps(
    processor: &mut Processor,
    bundles: &[Option<Bundle>],
    frames_per_packet: usize,
) -> Result<Vec<f32>, ProcessError> {
    let frame = processor.profile().frame_samples;
    let lead = bundles.iter().take_while(|b| b.is_none()).count() * frames_per_packet * frame;
    let mut decoder = Decoder::new(processor.profile());
    let mut pcm = vec![0.0; lead];
    for bundle in bundles.iter().flatten() {
        decoder.push(bundle.clone())?;
        while let Some(mut job) = decoder.next_job() {
            processor.run_decode(std::slice::from_mut(&mut job))?;
            decoder.accept(job);
        }
        decoder.pcm(&mut pcm);
    }
    let tail = bundles.iter().rev().take_while(|b| b.is_none()).count() * frames_per_packet * frame;
    pcm.resize(pcm.len() + tail, 0.0);
    Ok(pcm)
}
