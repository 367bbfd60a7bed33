//! Opus 1.6.1 as the referee runs it; the only file that names opusic-c.

use opusic_c::dred::Dred;
use opusic_c::{Application, Bitrate, Channels, Decoder, Encoder, InbandFec, SampleRate, Signal};

use super::run::IP_UDP_BYTES;
use super::{Codec, Packet, RefereeError};

/// Samples a millisecond at 24 kHz.
const PER_MS: usize = 24;

/// RTP header (RFC 3550).
const RTP_BYTES: usize = 12;

/// What repairs losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Nothing is sent; the decoder conceals (deep PLC from complexity 5 on).
    Plc,
    /// Low-bit-rate redundancy: the next packet carries the frame again.
    Lbrr,
    /// Deep redundancy: every packet carries up to a second of the past, at very low rate.
    Dred,
}

/// How Opus is set up.
#[derive(Debug, Clone, Copy)]
pub struct OpusSettings {
    /// Nominal rate.
    pub bits_per_second: u32,
    /// Constant rate, else variable.
    pub cbr: bool,
    /// Packet length in milliseconds, 20 or 60.
    pub packet_ms: usize,
    /// The decoder's NoLACE enhancer (complexity 7); without it complexity 0, and 5 (deep PLC) under loss.
    pub nolace: bool,
    /// Music instead of speech.
    pub music: bool,
    /// What repairs losses.
    pub repair: Repair,
    /// Loss the encoder is told to expect, in per cent.
    pub expected_loss: u8,
}

/// One configuration of Opus.
#[derive(Debug, Clone, Copy)]
pub struct Opus {
    settings: OpusSettings,
}

impl Opus {
    /// A configuration; each recording gets a fresh encoder and decoder.
    pub fn new(settings: OpusSettings) -> Self {
        Self { settings }
    }

    fn frame(&self) -> usize {
        self.settings.packet_ms * PER_MS
    }

    fn encoder(&self) -> Result<Encoder, RefereeError> {
        let s = &self.settings;
        let application = if s.music { Application::Audio } else { Application::Voip };
        let mut e = Encoder::new(Channels::Mono, SampleRate::Hz24000, application).map_err(opus)?;
        e.set_bitrate(Bitrate::Value(s.bits_per_second)).map_err(opus)?;
        e.set_vbr(!s.cbr).map_err(opus)?;
        e.set_complexity(10).map_err(opus)?;
        e.set_signal(if s.music { Signal::Music } else { Signal::Voice }).map_err(opus)?;
        e.set_packet_loss(s.expected_loss).map_err(opus)?;
        match s.repair {
            Repair::Plc => {}
            Repair::Lbrr => e.set_inband_fec(InbandFec::Mode1).map_err(opus)?,
            // In units of 10 ms.
            Repair::Dred => e.set_dred_duration(100).map_err(opus)?,
        }
        Ok(e)
    }

    fn decoder(&self, lossy: bool) -> Result<Decoder, RefereeError> {
        let mut d = Decoder::new(Channels::Mono, SampleRate::Hz24000).map_err(opus)?;
        let complexity = match (self.settings.nolace, lossy) {
            (true, _) => 7,
            (false, true) => 5,
            (false, false) => 0,
        };
        d.set_complexity(complexity).map_err(opus)?;
        Ok(d)
    }
}

fn opus(e: opusic_c::ErrorCode) -> RefereeError {
    RefereeError::Codec { codec: "Opus", reason: format!("{e:?}") }
}

impl Codec for Opus {
    fn encode(&mut self, pcm: &[f32]) -> Result<Vec<Packet>, RefereeError> {
        let mut encoder = self.encoder()?;
        let look_ahead = encoder.get_look_ahead().map_err(opus)? as usize;
        let frame = self.frame();
        let mut buffer = vec![0; 4_000];
        let mut input = vec![0.0; frame];
        (0..(pcm.len() + look_ahead).div_ceil(frame))
            .map(|i| {
                let rest = pcm.get(i * frame..).unwrap_or(&[]);
                let n = rest.len().min(frame);
                input[..n].copy_from_slice(&rest[..n]);
                input[n..].fill(0.0);
                let bytes = encoder.encode_float_to_slice(&input, &mut buffer).map_err(opus)?;
                Ok(Packet {
                    payload: buffer[..bytes].to_vec(),
                    message_bytes: bytes + RTP_BYTES,
                    ip_bytes: bytes + RTP_BYTES + IP_UDP_BYTES,
                })
            })
            .collect()
    }

    fn decode(&mut self, packets: &[Option<&Packet>]) -> Result<Vec<f32>, RefereeError> {
        let frame = self.frame();
        let lossy = packets.iter().any(Option::is_none);
        let mut out = vec![0.0; packets.len() * frame];
        if opusic_c::dred::dred_packet_size() > opusic_c::dred::DRED_PACKET_SIZE {
            return Err(RefereeError::Codec { codec: "Opus", reason: "DRED packets of another size".to_owned() });
        }
        let mut decoder = Dred::new(self.decoder(lossy)?).map_err(opus)?;
        let mut lost = 0;
        for (i, packet) in packets.iter().enumerate() {
            let Some(packet) = packet else {
                lost += 1;
                continue;
            };
            // The gap before this packet, with whatever the packet carries for it.
            let first = i - lost;
            let repaired = match self.settings.repair {
                Repair::Plc => 0,
                Repair::Lbrr => lost.min(1),
                Repair::Dred => lost.min(1_000 / self.settings.packet_ms),
            };
            conceal(decoder.decoder_mut(), &mut out[first * frame..(i - repaired) * frame], frame)?;
            if repaired > 0 {
                let gap = &mut out[(i - repaired) * frame..i * frame];
                match self.settings.repair {
                    Repair::Dred => decoder.decode_float_to_slice(&packet.payload, gap).map_err(opus)?,
                    _ => decoder.decoder_mut().decode_float_to_slice(&packet.payload, gap, true).map_err(opus)?,
                };
            }
            let now = &mut out[i * frame..(i + 1) * frame];
            decoder.decoder_mut().decode_float_to_slice(&packet.payload, now, false).map_err(opus)?;
            lost = 0;
        }
        let first = (packets.len() - lost) * frame;
        conceal(decoder.decoder_mut(), &mut out[first..], frame)?;
        Ok(out)
    }

    fn packet_ms(&self) -> usize {
        self.settings.packet_ms
    }

    fn delay_ms(&self) -> f64 {
        // 6.5 ms of look-ahead in the voice and audio modes (RFC 6716, section 2.1.4), and the packet itself.
        self.settings.packet_ms as f64 + 6.5
    }
}

fn conceal(decoder: &mut Decoder, gap: &mut [f32], frame: usize) -> Result<(), RefereeError> {
    for part in gap.chunks_mut(frame) {
        decoder.decode_float_to_slice(&[], part, false).map_err(opus)?;
    }
    Ok(())
}
