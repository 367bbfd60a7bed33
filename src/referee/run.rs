//! One recording through one codec.

use std::time::{Duration, Instant};

use super::metrics::{Scores, align, score};
use crate::units::CODEC_RATE;

/// Less payload than this a second is taken for a codec that smuggles its signal past the count, or for a fault.
const MIN_BITS_PER_SECOND: f64 = 100.0;

/// Why a measurement cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RefereeError {
    /// A codec that failed.
    #[error("{codec}: {reason}")]
    Codec {
        /// Which one.
        codec: &'static str,
        /// What it said.
        reason: String,
    },
    /// Sound came out of fewer bytes than can carry it.
    #[error("{bytes} bytes of payload for {seconds:.2} s of sound: the codec does not send what it decodes")]
    TooFewBytes {
        /// Payload in all.
        bytes: u64,
        /// Length of the recording.
        seconds: f64,
    },
    /// A table that is not one of ours.
    #[error(transparent)]
    Table(#[from] csv::Error),
}

/// IPv4 and UDP headers.
pub(super) const IP_UDP_BYTES: usize = 28;

/// What QUIC adds to a datagram on its way to a listener: flags, packet number, head of the frame, seal.
pub(super) const QUIC_BYTES: usize = 1 + 2 + 3 + 16;

/// What travels at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The coded sound.
    pub payload: Vec<u8>,
    /// Payload with its framing: protobuf for undertone, RTP for Opus.
    pub message_bytes: usize,
    /// Message with IP headers: TCP or QUIC for undertone, UDP for Opus.
    pub ip_bytes: usize,
}

/// A codec under test. `decode` sees the packets only; sound is mono at 24 kHz.
pub trait Codec {
    /// A whole recording to packets.
    ///
    /// # Errors
    /// Of the codec.
    fn encode(&mut self, pcm: &[f32]) -> Result<Vec<Packet>, RefereeError>;
    /// Packets, None where one was lost, to sound; the first sample may come late by the codec's delay.
    ///
    /// # Errors
    /// Of the codec.
    fn decode(&mut self, packets: &[Option<&Packet>]) -> Result<Vec<f32>, RefereeError>;
    /// Length of a packet in milliseconds.
    fn packet_ms(&self) -> usize;
    /// Algorithmic delay in milliseconds, the packet included.
    fn delay_ms(&self) -> f64;
}

/// What a recording gave.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Scores after alignment.
    pub scores: Scores,
    /// Payload, message and IP rate in kbit/s, by the bytes of every packet.
    pub kbps: [f64; 3],
    /// Length of the recording divided by the processor time of the encoder and of the decoder.
    pub times_real: [f64; 2],
    /// Lag of the decoded recording in samples, found by correlation and removed.
    pub lag: isize,
    /// Share of packets lost.
    pub lost: f64,
    /// The decoded recording, aligned, at the original's length.
    pub decoded: Vec<f32>,
}

/// Encodes, loses the packets for which `lost` says so, decodes, aligns, scores.
///
/// `lost` repeats when the recording has more packets; empty loses none. Under loss the lag is found on the undamaged
/// recording, so that a hole cannot move it.
///
/// # Errors
/// [`RefereeError`].
pub fn measure(codec: &mut dyn Codec, original: &[f32], lost: &[bool]) -> Result<Outcome, RefereeError> {
    let seconds = original.len() as f64 / f64::from(CODEC_RATE.hz());
    let before = cpu_time();
    let packets = codec.encode(original)?;
    let encoding = cpu_time().saturating_sub(before);
    let bytes = |of: &dyn Fn(&Packet) -> usize| packets.iter().map(|p| of(p) as u64).sum::<u64>();
    let totals = [bytes(&|p| p.payload.len()), bytes(&|p| p.message_bytes), bytes(&|p| p.ip_bytes)];
    if (totals[0] * 8) as f64 / seconds < MIN_BITS_PER_SECOND {
        return Err(RefereeError::TooFewBytes { bytes: totals[0], seconds });
    }
    let arrived: Vec<Option<&Packet>> = packets
        .iter()
        .enumerate()
        .map(|(i, p)| if !lost.is_empty() && lost[i % lost.len()] { None } else { Some(p) })
        .collect();
    let before = cpu_time();
    let decoded = codec.decode(&arrived)?;
    let decoding = cpu_time().saturating_sub(before);
    let missing = arrived.iter().filter(|p| p.is_none()).count();
    let (decoded, lag) = if missing == 0 {
        align(original, &decoded)
    } else {
        let whole: Vec<Option<&Packet>> = packets.iter().map(Some).collect();
        let (_, lag) = align(original, &codec.decode(&whole)?);
        (super::shift(&decoded, lag, original.len()), lag)
    };
    let speed = |time: Duration| seconds / time.as_secs_f64().max(1e-9);
    Ok(Outcome {
        scores: score(original, &decoded),
        kbps: totals.map(|b| b as f64 * 8.0 / 1e3 / seconds),
        times_real: [speed(encoding), speed(decoding)],
        lag,
        lost: missing as f64 / packets.len().max(1) as f64,
        decoded,
    })
}

/// Processor time of this thread where Linux tells it, else time since the first call: other work on the machine
/// must not look like a slow codec.
pub fn cpu_time() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    // The kernel brings the account up to date when the thread yields, and otherwise only every few milliseconds.
    std::thread::yield_now();
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|s| s.split_whitespace().next()?.parse().ok())
        .map_or_else(|| start.elapsed(), Duration::from_nanos)
}

/// A recording as a WAV file of 16-bit samples at 24 kHz.
pub fn wav_bytes(pcm: &[f32]) -> Vec<u8> {
    let (rate, size) = (CODEC_RATE.hz(), pcm.len() as u32 * 2);
    let mut out = Vec::with_capacity(44 + pcm.len() * 2);
    out.extend_from_slice(b"RIFF");
    out.extend_from_slice(&(36 + size).to_le_bytes());
    out.extend_from_slice(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    out.extend_from_slice(&rate.to_le_bytes());
    out.extend_from_slice(&(rate * 2).to_le_bytes());
    out.extend_from_slice(b"\x02\0\x10\0data");
    out.extend_from_slice(&size.to_le_bytes());
    for s in pcm {
        out.extend_from_slice(&((s * 32_767.0).clamp(-32_768.0, 32_767.0) as i16).to_le_bytes());
    }
    out
}
