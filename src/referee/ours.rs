//! undertone as the referee runs it.

use std::sync::Arc;

use super::run::{IP_UDP_BYTES, QUIC_BYTES};
use super::{Codec, Packet, RefereeError};
use crate::bitstream::{Bundle, COPY_STAGES, Item, ReaderOptions, Redundancy, RedundancyWriter, read_redundancy};
use crate::codec::{self, Concealer, Decoder, ProcessError, Processor};
use crate::entropy::StreamReader;
use crate::profile::Profile;
use crate::recording::{CODED_BUNDLE, Fit};
use crate::session::{Message, PackedBundle, SessionDecoder, SessionEncoder, ThinReader, ThinWriter, Wire};
use crate::synthesis::{Refiner, analyse_all};
use crate::token::TokenModel;
use crate::units::{CODEC_RATE, StageCount};
use crate::wire::{self, Datagram, Framer};

/// IPv4 and TCP headers with time stamps.
const IP_TCP_BYTES: usize = 52;

/// How codes become payload bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// Ten bits a code.
    Packed,
    /// By the token model, with continuous context: for transports without loss. The whole message counts as payload.
    Coded,
    /// Ten bits a code in datagrams as QUIC carries them, each with coarse copies of so many packets before it. The whole
    /// datagram counts as payload.
    Datagrams {
        /// Packets that are repeated.
        copies: u8,
    },
}

/// undertone at one rate.
#[derive(Debug)]
pub struct Undertone<'a> {
    processor: &'a mut Processor,
    tokens: Option<Arc<TokenModel>>,
    stages: StageCount,
    frames_per_packet: u8,
    payload: Payload,
}

impl<'a> Undertone<'a> {
    /// `stages` of the model, in packets of `frames_per_packet` frames, 1 to 50.
    /// The token model codes payloads and conceals losses; without one payloads must be packed.
    pub fn new(
        processor: &'a mut Processor,
        tokens: Option<Arc<TokenModel>>,
        stages: StageCount,
        frames_per_packet: u8,
        payload: Payload,
    ) -> Self {
        Self { processor, tokens, stages, frames_per_packet, payload }
    }

    fn coder(&self) -> Result<Arc<TokenModel>, RefereeError> {
        self.tokens.clone().ok_or_else(|| error("no token model to code with"))
    }

    fn code(&self, bundles: &[Bundle]) -> Result<Vec<Packet>, RefereeError> {
        let mut encoder = SessionEncoder::new(self.coder()?).on(Wire::ALL);
        let mut thin = ThinWriter::default();
        let mut packets = Vec::new();
        for (sequence, bundle) in (0..).zip(bundles) {
            let (bundle, checked) = encoder.encode(&PackedBundle::pack(bundle)).map_err(error)?;
            let mut payload = Vec::new();
            wire::encode(&thin.thin(Message::Coded { sequence, bundle, checked }), &mut payload);
            let bytes = payload.len();
            packets.push(Packet { payload, message_bytes: bytes, ip_bytes: bytes + IP_TCP_BYTES });
        }
        Ok(packets)
    }

    fn uncode(&self, packets: &[Option<&Packet>]) -> Result<Vec<Bundle>, RefereeError> {
        let mut decoder = SessionDecoder::new(self.coder()?).on(Wire::ALL);
        let (mut thin, mut framer) = (ThinReader::new(true, Wire::ALL), Framer::default());
        let mut bundles = Vec::new();
        for packet in packets.iter().flatten() {
            framer.push(&packet.payload);
            while let Some(message) = framer.next().map_err(error)? {
                if let Message::Coded { bundle, checked, .. } = thin.whole(message).map_err(error)? {
                    let packed = decoder.decode(&bundle, checked).map_err(error)?;
                    bundles.push(packed.unpack().map_err(error)?);
                }
            }
        }
        Ok(bundles)
    }

    fn datagrams(&self, bundles: &[Bundle], copies: u8) -> Result<Vec<Packet>, RefereeError> {
        let stages = StageCount::new(COPY_STAGES.min(self.stages.value())).map_err(error)?;
        let how = Redundancy::new(stages, copies.saturating_mul(self.frames_per_packet).max(1)).map_err(error)?;
        let mut writer = RedundancyWriter::new(how);
        let packet = |(sequence, bundle): (u64, &Bundle)| {
            let mut written = Vec::new();
            writer.write(bundle, &mut written);
            let copies = if copies > 0 && written.len() > 1 { written } else { Vec::new() };
            let message = Message::Bundle { sequence, bundle: PackedBundle::pack(bundle) };
            let payload = Datagram::bundle(message, copies).map_or_else(Vec::new, |d| d.encode());
            Packet { message_bytes: payload.len(), ip_bytes: payload.len() + QUIC_BYTES + IP_UDP_BYTES, payload }
        };
        Ok((0..).zip(bundles).map(packet).collect())
    }

    /// Bundles and copies in the order in which a decoder takes them.
    fn undatagram(packets: &[Option<&Packet>]) -> Result<Vec<Bundle>, RefereeError> {
        let mut bundles = Vec::new();
        for packet in packets.iter().flatten() {
            let datagram = Datagram::decode(&packet.payload).map_err(error)?;
            let Datagram::Bundle { sequence, first_frame, thin, copies } = datagram else { continue };
            let whole = thin.whole(sequence, first_frame, false, Wire::ALL).map_err(error)?;
            let Message::Bundle { bundle, .. } = whole else { continue };
            if !copies.is_empty() {
                bundles.extend(read_redundancy(bundle.first_frame, &copies).map_err(error)?);
            }
            bundles.push(bundle.unpack().map_err(error)?);
        }
        Ok(bundles)
    }

    fn pack(thin: &mut ThinWriter, bundle: &Bundle) -> Packet {
        let bundle = PackedBundle::pack(bundle);
        let payload = bundle.payload.clone();
        let mut message = Vec::new();
        wire::encode(&thin.thin(Message::Bundle { sequence: 0, bundle }), &mut message);
        Packet { payload, message_bytes: message.len(), ip_bytes: message.len() + IP_TCP_BYTES }
    }

    fn unpack(&self, number: usize, packet: &Packet) -> Result<Bundle, RefereeError> {
        // Padding is less than a code, so the length tells the frames.
        let frames = packet.payload.len() * 8 / (self.stages.index() * Profile::BITS_PER_CODE as usize);
        let first = number as u64 * u64::from(self.frames_per_packet);
        Bundle::unpack(first, frames.min(255) as u8, self.stages, &packet.payload).map_err(error)
    }
}

/// undertone's coded files, graded by level, at a rate in kbit/s: one packet holds the whole file, so losses mean nothing here.
#[derive(Debug)]
pub struct CodedFile<'a> {
    processor: &'a mut Processor,
    tokens: Arc<TokenModel>,
    refiner: Option<&'a mut Refiner>,
    kbps: f64,
}

/// Frames of a bundle in a file.
const FILE_BUNDLE: u8 = CODED_BUNDLE;

impl<'a> CodedFile<'a> {
    /// Files of at most `kbps`, every byte counted; with a refiner their latents are searched for.
    pub fn new(
        processor: &'a mut Processor,
        tokens: Arc<TokenModel>,
        refiner: Option<&'a mut Refiner>,
        kbps: f64,
    ) -> Self {
        Self { processor, tokens, refiner, kbps }
    }
}

impl Codec for CodedFile<'_> {
    fn encode(&mut self, pcm: &[f32]) -> Result<Vec<Packet>, RefereeError> {
        let latents = analyse_all(self.processor, self.refiner.as_deref_mut(), pcm).map_err(error)?;
        let ladder = self.processor.ladder(&latents).map_err(error)?;
        let fit = Fit { tokens: &self.tokens, pcm, ladder: &ladder, kbps: self.kbps, bundle: FILE_BUNDLE };
        let payload = fit.graded(&self.processor.profile()).map_err(error)?.bytes;
        let bytes = payload.len();
        Ok(vec![Packet { payload, message_bytes: bytes, ip_bytes: bytes }])
    }

    fn decode(&mut self, packets: &[Option<&Packet>]) -> Result<Vec<f32>, RefereeError> {
        let mut reader = StreamReader::new(ReaderOptions::default(), Some(Arc::clone(&self.tokens)));
        packets.iter().flatten().for_each(|p| reader.push(&p.payload));
        let mut bundles = Vec::new();
        while let Some(item) = reader.next().map_err(error)? {
            if let Item::Bundle(bundle) = item {
                bundles.push(bundle);
            }
        }
        decode_with_gaps(self.processor, None, &bundles).map_err(error)
    }

    fn packet_ms(&self) -> usize {
        usize::from(FILE_BUNDLE) * self.processor.profile().frame_samples * 1_000 / CODEC_RATE.hz() as usize
    }

    fn delay_ms(&self) -> f64 {
        let overlap = self.processor.profile().overlap_samples() as f64 * 1e3 / f64::from(CODEC_RATE.hz());
        self.packet_ms() as f64 + overlap
    }
}

fn error(e: impl ToString) -> RefereeError {
    RefereeError::Codec { codec: "undertone", reason: e.to_string() }
}

impl Codec for Undertone<'_> {
    fn encode(&mut self, pcm: &[f32]) -> Result<Vec<Packet>, RefereeError> {
        let bundles = codec::encode_all(self.processor, pcm, self.stages, self.frames_per_packet).map_err(error)?;
        match self.payload {
            Payload::Packed => {
                let mut thin = ThinWriter::default();
                Ok(bundles.iter().map(|b| Self::pack(&mut thin, b)).collect())
            }
            Payload::Coded => self.code(&bundles),
            Payload::Datagrams { copies } => self.datagrams(&bundles, copies),
        }
    }

    fn decode(&mut self, packets: &[Option<&Packet>]) -> Result<Vec<f32>, RefereeError> {
        let unpacked = |(i, p): (usize, &Option<&Packet>)| p.map(|p| self.unpack(i, p)).transpose();
        let bundles: Vec<Bundle> = match self.payload {
            Payload::Packed => {
                packets.iter().enumerate().filter_map(|p| unpacked(p).transpose()).collect::<Result<_, _>>()?
            }
            Payload::Coded => self.uncode(packets)?,
            Payload::Datagrams { .. } => Self::undatagram(packets)?,
        };
        let mut pcm = decode_with_gaps(self.processor, self.tokens.clone(), &bundles).map_err(error)?;
        let lost = packets.iter().rev().take_while(|p| p.is_none()).count() * usize::from(self.frames_per_packet);
        pcm.resize(pcm.len() + lost * self.processor.profile().frame_samples, 0.0);
        Ok(pcm)
    }

    fn packet_ms(&self) -> usize {
        usize::from(self.frames_per_packet) * self.processor.profile().frame_samples * 1_000 / CODEC_RATE.hz() as usize
    }

    fn delay_ms(&self) -> f64 {
        let overlap = self.processor.profile().overlap_samples() as f64 * 1e3 / f64::from(CODEC_RATE.hz());
        self.packet_ms() as f64 + overlap
    }
}

/// Decodes a stream in which some bundles are missing, from its frame 0 on: every frame has its place.
///
/// The one place where the referee meets concealment: what [`Decoder`] does with a gap is measured.
fn decode_with_gaps(
    processor: &mut Processor,
    tokens: Option<Arc<TokenModel>>,
    bundles: &[Bundle],
) -> Result<Vec<f32>, ProcessError> {
    let lead = bundles.first().map_or(0, |b| b.first_frame as usize) * processor.profile().frame_samples;
    let mut decoder = Decoder::concealing(processor.profile(), Concealer::new(tokens));
    let mut pcm = vec![0.0; lead];
    for bundle in bundles {
        decoder.push(bundle.clone())?;
        processor.decode(&mut decoder, &mut pcm)?;
    }
    Ok(pcm)
}
