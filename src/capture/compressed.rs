//! Recordings that symphonia takes apart: FLAC, Ogg, MPEG audio, AAC, MP4, AIFF, CAF.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use symphonia::core::audio::Channels;
use symphonia::core::codecs::audio::well_known::{CODEC_ID_AAC, CODEC_ID_OPUS};
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as SymphoniaError;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSource, MediaSourceStream, ReadOnlySource};
use symphonia::core::packet::Packet;
use symphonia::default::formats::{AdtsReader, AiffReader, CafReader, FlacReader, IsoMp4Reader, MpaReader, OggReader};

use super::CaptureError;
use super::bytes::Bytes;
use super::kind::Kind;
use super::mpeg::Framer;
use super::opus::{self, OpusStream};
use super::parts::{AiffParts, FlacParts, Parts, Recording, behind};
use crate::dsp::{Downmix, Intake, MAX_PLACED};
use crate::units::{CODEC_RATE, SampleRate};

/// Announced and decoded samples may differ by so many seconds in formats that announce no exact number.
const TOLERANCE_S: f64 = 0.1;

/// What makes samples of packets.
enum Codec {
    Symphonia(Box<dyn AudioDecoder>),
    Opus(Box<OpusStream>),
}

/// A recording that is read packet by packet.
pub(super) struct Compressed {
    kind: Kind,
    format: Box<dyn FormatReader>,
    codec: Codec,
    track: u32,
    /// Where several recordings may follow each other.
    parts: Option<Arc<Mutex<dyn Parts>>>,
    interleaved: Vec<f32>,
    intake: Option<Intake>,
    /// Samples of one channel: as the file says, and as decoded.
    announced: Option<u64>,
    decoded: u64,
    rate: u32,
    /// First and last time stamp, and the seconds of their unit.
    span: Option<(i64, i64)>,
    tick: f64,
    damaged: u64,
    remarks: Vec<String>,
}

/// Says why a recording is none.
struct Fault<'a>(&'a Path);

impl Fault<'_> {
    fn format(&self, reason: impl ToString) -> CaptureError {
        CaptureError::Format { path: self.0.to_owned(), reason: reason.to_string() }
    }

    fn unusable(&self, reason: impl ToString) -> CaptureError {
        CaptureError::Unusable { path: self.0.to_owned(), reason: reason.to_string() }
    }
}

impl Compressed {
    /// Opens a recording of this kind, whose bytes are at their start. `file` is the same file if it can be sought in.
    pub(super) fn open(path: &Path, kind: Kind, bytes: Bytes, file: Option<File>) -> Result<Self, CaptureError> {
        let io = |source| CaptureError::Io { path: path.to_owned(), source };
        let fault = Fault(path);
        let is_pipe = file.is_none();
        let source = source(kind, bytes, file).map_err(io)?;
        let source = source.ok_or_else(|| fault.format("not a recording that is known here"))?;
        let format = reader(kind, source.media).map_err(|e| fault.format(said(kind, is_pipe, &e)))?;
        let track = open_track(format.as_ref(), &fault)?;
        Ok(Self {
            kind,
            format,
            codec: track.codec,
            track: track.id,
            parts: source.parts,
            interleaved: Vec::new(),
            intake: None,
            announced: track.announced,
            decoded: 0,
            rate: 0,
            span: None,
            tick: track.tick,
            damaged: 0,
            remarks: source.remark.into_iter().collect(),
        })
    }

    /// Samples at the codec's rate that the file announces.
    pub(super) fn total_samples(&self) -> Option<u64> {
        let track = self.format.default_track(TrackType::Audio)?;
        let rate = track.codec_params.as_ref()?.audio()?.sample_rate.filter(|rate| *rate > 0)?;
        let samples = track.num_frames?.checked_mul(u64::from(CODEC_RATE.hz()))?;
        Some(samples.div_ceil(u64::from(rate)))
    }

    /// Appends the next piece to `out`; false at the end.
    pub(super) fn read(&mut self, path: &Path, out: &mut Vec<f32>) -> Result<bool, CaptureError> {
        let fault = Fault(path);
        loop {
            let packet = match self.format.next_packet() {
                Ok(Some(packet)) => packet,
                Ok(None) => match self.another(&fault)? {
                    true => continue,
                    false => break,
                },
                Err(SymphoniaError::IoError(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                    self.remarks.push("it is cut off: it ends in the middle".to_owned());
                    match self.another(&fault)? {
                        true => continue,
                        false => break,
                    }
                }
                Err(SymphoniaError::IoError(source)) => return Err(CaptureError::Io { path: path.to_owned(), source }),
                // A chained Ogg stream goes on with another recording.
                Err(SymphoniaError::ResetRequired) => {
                    self.begin(&fault)?;
                    continue;
                }
                Err(e) => return Err(fault.format(e)),
            };
            if packet.track_id == self.track && self.decode(&packet, &fault, out)? {
                return Ok(true);
            }
        }
        if self.intake.is_none() && self.damaged > 0 {
            return Err(fault.format(format!("none of its {} packets could be decoded", self.damaged)));
        }
        self.compare();
        self.finish(out);
        Ok(false)
    }

    /// Ends the input early: appends what is held back.
    pub(super) fn finish(&mut self, out: &mut Vec<f32>) {
        if let Some(intake) = &mut self.intake {
            intake.finish(out);
        }
    }

    pub(super) fn unusable(&self) -> u64 {
        self.intake.as_ref().map_or(0, Intake::unusable)
    }

    /// What a user should be told.
    pub(super) fn remarks(&self) -> Vec<String> {
        let mut all = self.remarks.clone();
        if let Some(parts) = &self.parts {
            all.extend(parts.lock().unwrap_or_else(PoisonError::into_inner).remarks());
        }
        if self.damaged > 0 {
            all.push(format!("{} packets are damaged and left out", self.damaged));
        }
        all
    }

    /// Goes on with the recording that was put behind this one.
    fn another(&mut self, fault: &Fault<'_>) -> Result<bool, CaptureError> {
        let Some(shared) = self.parts.clone() else { return Ok(false) };
        {
            let mut parts = shared.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(reason) = parts.fault() {
                return Err(fault.format(reason));
            }
            if !parts.next_recording() {
                return Ok(false);
            }
        }
        self.format = reader(self.kind, Box::new(Recording(shared))).map_err(|e| fault.format(e))?;
        self.begin(fault)?;
        Ok(true)
    }

    /// Begins with the next recording of the file.
    fn begin(&mut self, fault: &Fault<'_>) -> Result<(), CaptureError> {
        self.compare();
        let track = open_track(self.format.as_ref(), fault)?;
        (self.codec, self.track, self.announced, self.tick) = (track.codec, track.id, track.announced, track.tick);
        Ok(())
    }

    /// Decodes a packet; false if nothing came of it.
    fn decode(&mut self, packet: &Packet, fault: &Fault<'_>, out: &mut Vec<f32>) -> Result<bool, CaptureError> {
        let (start, end) = (packet.pts.get(), packet.pts.saturating_add(packet.dur).get());
        self.span = Some(self.span.map_or((start, end), |(s, e)| (s.min(start), e.max(end))));
        let (rate, downmix) = match &mut self.codec {
            Codec::Symphonia(decoder) => {
                let decoded = match decoder.decode(packet) {
                    Ok(decoded) => decoded,
                    Err(SymphoniaError::DecodeError(_) | SymphoniaError::IoError(_)) => {
                        self.damaged += 1;
                        return Ok(false);
                    }
                    Err(e) => return Err(fault.format(e)),
                };
                let downmix = downmix(decoded.spec().channels()).map_err(|e| fault.unusable(e))?;
                self.interleaved.resize(decoded.samples_interleaved(), 0.0);
                decoded.copy_to_slice_interleaved(&mut self.interleaved);
                (decoded.spec().rate(), downmix)
            }
            Codec::Opus(decoder) => {
                let trim = usize::try_from(packet.trim_end.get()).unwrap_or(usize::MAX);
                if !decoder.decode(packet.data.as_ref(), trim, &mut self.interleaved) {
                    self.damaged += 1;
                    return Ok(false);
                }
                (opus::RATE, Downmix::placed(decoder.channels(), None))
            }
        };
        self.decoded += (self.interleaved.len() / downmix.channels()) as u64;
        self.rate = rate;
        let rate = SampleRate::new(rate).map_err(|e| fault.unusable(e))?;
        let intake = self.intake.get_or_insert_with(|| Intake::new(rate, downmix.clone()));
        intake.change(rate, downmix, out);
        intake.push(self.interleaved.iter().copied(), out);
        Ok(true)
    }

    /// At the end of a recording: whether as much was decoded as it announced, or as its time stamps span.
    fn compare(&mut self) {
        let (decoded, rate) = (std::mem::take(&mut self.decoded), f64::from(self.rate.max(1)));
        let span = std::mem::take(&mut self.span).filter(|_| self.kind == Kind::Ogg);
        let (said, who) = match (self.announced.take(), span) {
            (Some(samples), _) => (samples as f64 / rate, "header announces"),
            (None, Some((start, end))) => (end.saturating_sub(start) as f64 * self.tick, "time stamps span"),
            (None, None) => return,
        };
        let there = decoded as f64 / rate;
        let tolerance = if self.kind == Kind::Flac { 0.5 / rate } else { TOLERANCE_S };
        if (said - there).abs() > tolerance {
            self.remarks.push(format!("its {who} {said:.2} s of sound, but {there:.2} s could be decoded"));
        }
    }
}

/// Where symphonia reads from.
struct MediaInput {
    media: Box<dyn MediaSource>,
    parts: Option<Arc<Mutex<dyn Parts>>>,
    remark: Option<String>,
}

/// None if there is no recording in it.
fn source(kind: Kind, bytes: Bytes, file: Option<File>) -> std::io::Result<Option<MediaInput>> {
    let behind = file.as_ref().map(|f| behind(kind, f)).transpose()?.flatten();
    let parts: Arc<Mutex<dyn Parts>> = match (kind, file) {
        (Kind::Flac, _) => Arc::new(Mutex::new(FlacParts::new(bytes))),
        (Kind::Other, _) => match Framer::open(bytes)? {
            Ok(framer) => Arc::new(Mutex::new(framer)),
            Err(_) => return Ok(None),
        },
        (Kind::Aiff, file) if file.is_none() || behind.is_some() => Arc::new(Mutex::new(AiffParts::new(bytes)?)),
        (kind, file) => {
            let remark = behind.map(|n| format!("{n} bytes behind its end are left out: another recording is there"));
            // Their tables may lie at the end.
            let media: Box<dyn MediaSource> = match file {
                Some(file) if matches!(kind, Kind::Mp4 | Kind::Aiff | Kind::Caf) => Box::new(file),
                _ => Box::new(ReadOnlySource::new(bytes)),
            };
            return Ok(Some(MediaInput { media, parts: None, remark }));
        }
    };
    Ok(Some(MediaInput { media: Box::new(Recording(Arc::clone(&parts))), parts: Some(parts), remark: None }))
}

/// Why symphonia cannot open a recording, in words that help.
fn said(kind: Kind, is_pipe: bool, e: &SymphoniaError) -> String {
    match kind {
        Kind::Mp4 if is_pipe => format!(
            "an MP4 file on a pipe, whose tables are not in front ({e}): give the file itself, or one made with \
             ffmpeg -movflags faststart"
        ),
        Kind::Caf if is_pipe => format!("a CAF file on a pipe, which cannot go back ({e}): give the file itself"),
        Kind::Ogg => format!("an Ogg file in which no Vorbis, Opus or FLAC begins ({e})"),
        _ => e.to_string(),
    }
}

/// symphonia's reader for a kind of file.
fn reader(kind: Kind, media: Box<dyn MediaSource>) -> Result<Box<dyn FormatReader>, SymphoniaError> {
    let stream = MediaSourceStream::new(media, Default::default());
    let options = FormatOptions::default();
    Ok(match kind {
        Kind::Flac => Box::new(FlacReader::try_new(stream, options)?),
        Kind::Ogg => Box::new(OggReader::try_new(stream, options)?),
        Kind::Mp4 => Box::new(IsoMp4Reader::try_new(stream, options)?),
        Kind::Aiff => Box::new(AiffReader::try_new(stream, options)?),
        Kind::Caf => Box::new(CafReader::try_new(stream, options)?),
        Kind::Adts => Box::new(AdtsReader::try_new(stream, options)?),
        Kind::Other | Kind::Wav => Box::new(MpaReader::try_new(stream, options)?),
    })
}

/// A track of sound.
struct OpenTrack {
    codec: Codec,
    id: u32,
    /// Samples of one channel that it announces.
    announced: Option<u64>,
    /// Seconds of the unit of its time stamps.
    tick: f64,
}

/// Opens the first track of sound.
fn open_track(format: &dyn FormatReader, fault: &Fault<'_>) -> Result<OpenTrack, CaptureError> {
    let track = format.default_track(TrackType::Audio).or_else(|| format.first_track(TrackType::Audio));
    let track = track.ok_or_else(|| fault.format("there is no sound in it"))?;
    let params = track.codec_params.as_ref().and_then(|p| p.audio());
    let params = params.ok_or_else(|| fault.format("there is no sound in it"))?;
    let codec = codec(params).map_err(|e| fault.format(e))?;
    // Opus counts in units of its own.
    let counts = matches!(codec, Codec::Symphonia(_));
    let announced = track.num_frames.filter(|n| counts && *n > 0);
    let rate = params.sample_rate.filter(|rate| *rate > 0).unwrap_or(opus::RATE);
    let tick = track.time_base.map_or(1.0 / f64::from(rate), |t| f64::from(t.numer.get()) / f64::from(t.denom.get()));
    Ok(OpenTrack { codec, id: track.id, announced, tick })
}

fn codec(params: &AudioCodecParameters) -> Result<Codec, String> {
    if params.codec == CODEC_ID_OPUS {
        let head = params.extra_data.as_deref().unwrap_or_default();
        return Ok(Codec::Opus(Box::new(OpusStream::new(head)?)));
    }
    let made = symphonia::default::get_codecs().make_audio_decoder(params, &AudioDecoderOptions::default());
    let aac = |e: &SymphoniaError| match params.codec == CODEC_ID_AAC {
        true => format!("AAC of another profile than LC, or of more than two channels, which is not read ({e})"),
        false => e.to_string(),
    };
    Ok(Codec::Symphonia(made.map_err(|e| aac(&e))?))
}

///
/// # Errors
/// More channels than are mixed.
fn downmix(channels: &Channels) -> Result<Downmix, String> {
    let count = channels.count();
    if !(1..=MAX_PLACED).contains(&count) {
        return Err(format!("{count} channels, allowed are 1 to {MAX_PLACED}: choose some of them first"));
    }
    Ok(match channels {
        // The bits of its positions are those of WAV files, and samples come in their order.
        Channels::Positioned(position) => Downmix::placed(count, u32::try_from(position.bits()).ok()),
        _ => Downmix::placed(count, None),
    })
}
