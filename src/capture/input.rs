//! Recordings and raw pipes as mono samples at the codec's rate.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as SymphoniaError;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSource, MediaSourceStream, ReadOnlySource};
use symphonia::core::meta::MetadataOptions;

use super::CaptureError;
use crate::dsp::Resampler;
use crate::units::{CODEC_RATE, PcmFormat, SampleRate};

/// Most bytes taken from a raw pipe at a time.
const RAW_CHUNK: usize = 16 << 10;

/// Audio that is read piece by piece; memory does not grow with its length.
pub struct AudioInput {
    path: PathBuf,
    source: Source,
    total_samples: Option<u64>,
}

enum Source {
    Raw { from: Box<dyn Read + Send + Sync>, reader: crate::dsp::PcmReader, buffer: Vec<u8> },
    File(Box<Decoding>),
    Ended,
}

struct Decoding {
    format: Box<dyn FormatReader>,
    decoder: Box<dyn AudioDecoder>,
    track: u32,
    interleaved: Vec<f32>,
    mono: Vec<f32>,
    resampler: Option<(u32, Resampler)>,
}

impl std::fmt::Debug for AudioInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AudioInput").field("path", &self.path).finish_non_exhaustive()
    }
}

impl AudioInput {
    /// Opens a recording; `-` is the standard input. With `raw` the bytes are samples of that format.
    ///
    /// Errors: [`CaptureError`].
    pub fn open(path: &Path, raw: Option<PcmFormat>) -> Result<Self, CaptureError> {
        let io = |source| CaptureError::Io { path: path.to_owned(), source };
        let pipe = path == Path::new("-");
        if let Some(format) = raw {
            let from: Box<dyn Read + Send + Sync> =
                if pipe { Box::new(std::io::stdin()) } else { Box::new(File::open(path).map_err(io)?) };
            let source = Source::Raw { from, reader: crate::dsp::PcmReader::new(format), buffer: vec![0; RAW_CHUNK] };
            return Ok(Self { path: path.to_owned(), source, total_samples: None });
        }
        let media: Box<dyn MediaSource> = if pipe {
            Box::new(ReadOnlySource::new(std::io::stdin()))
        } else {
            let file = File::open(path).map_err(io)?;
            if file.metadata().map_err(io)?.is_dir() {
                return Err(io(std::io::Error::new(std::io::ErrorKind::IsADirectory, "is a directory")));
            }
            Box::new(file)
        };
        let (decoding, total_samples) = probe(path, media)?;
        Ok(Self { path: path.to_owned(), source: Source::File(Box::new(decoding)), total_samples })
    }

    /// Samples at the codec's rate that the file announces, if it does.
    pub fn total_samples(&self) -> Option<u64> {
        self.total_samples
    }

    /// Appends the next piece of audio to `out`; false at the end, after which nothing more comes.
    ///
    /// Errors: [`CaptureError`]; a damaged packet inside a file is skipped, as players do.
    pub fn read(&mut self, out: &mut Vec<f32>) -> Result<bool, CaptureError> {
        match &mut self.source {
            Source::Ended => Ok(false),
            Source::Raw { from, reader, buffer } => {
                let n = loop {
                    match from.read(buffer) {
                        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                        other => break other,
                    }
                };
                let n = n.map_err(|source| CaptureError::Io { path: self.path.clone(), source })?;
                if n > 0 {
                    reader.push(&buffer[..n], out);
                    return Ok(true);
                }
                reader.finish(out);
                self.source = Source::Ended;
                Ok(false)
            }
            Source::File(decoding) => {
                let more = decoding.read(&self.path, out)?;
                if !more {
                    self.source = Source::Ended;
                }
                Ok(more)
            }
        }
    }
}

fn probe(path: &Path, media: Box<dyn MediaSource>) -> Result<(Decoding, Option<u64>), CaptureError> {
    let bad = |reason: String| CaptureError::Format { path: path.to_owned(), reason };
    let mut hint = Hint::new();
    if let Some(extension) = path.extension().and_then(|e| e.to_str()) {
        hint.with_extension(extension);
    }
    let stream = MediaSourceStream::new(media, Default::default());
    let format = symphonia::default::get_probe()
        .probe(&hint, stream, FormatOptions::default(), MetadataOptions::default())
        .map_err(|e| bad(e.to_string()))?;
    let track = format.default_track(TrackType::Audio).ok_or_else(|| bad("no audio track".to_owned()))?;
    let id = track.id;
    let params = track.codec_params.as_ref().and_then(|p| p.audio()).ok_or_else(|| bad("no audio track".to_owned()))?;
    let total = match (track.num_frames, params.sample_rate) {
        (Some(n), Some(rate)) if rate > 0 => {
            n.checked_mul(u64::from(CODEC_RATE.hz())).map(|v| v.div_ceil(u64::from(rate)))
        }
        _ => None,
    };
    let decoder = symphonia::default::get_codecs()
        .make_audio_decoder(params, &AudioDecoderOptions::default())
        .map_err(|e| bad(e.to_string()))?;
    let decoding = Decoding { format, decoder, track: id, interleaved: Vec::new(), mono: Vec::new(), resampler: None };
    Ok((decoding, total))
}

impl Decoding {
    fn read(&mut self, path: &Path, out: &mut Vec<f32>) -> Result<bool, CaptureError> {
        let bad = |reason: String| CaptureError::Format { path: path.to_owned(), reason };
        loop {
            let packet = match self.format.next_packet() {
                Ok(Some(packet)) => packet,
                // A recording that was cut off ends where it was cut.
                Ok(None) | Err(SymphoniaError::IoError(_)) => break,
                Err(SymphoniaError::ResetRequired) => return Err(bad("the stream changes its tracks".to_owned())),
                Err(e) => return Err(bad(e.to_string())),
            };
            if packet.track_id != self.track {
                continue;
            }
            let decoded = match self.decoder.decode(&packet) {
                Ok(decoded) => decoded,
                Err(SymphoniaError::DecodeError(_)) => continue,
                Err(SymphoniaError::IoError(_)) => break,
                Err(e) => return Err(bad(e.to_string())),
            };
            let (rate, channels) = (decoded.spec().rate(), decoded.spec().channels().count());
            if channels == 0 {
                continue;
            }
            self.interleaved.resize(decoded.samples_interleaved(), 0.0);
            decoded.copy_to_slice_interleaved(&mut self.interleaved);
            self.mono.clear();
            let scale = 1.0 / channels as f32;
            self.mono.extend(self.interleaved.chunks_exact(channels).map(|s| s.iter().sum::<f32>() * scale));
            self.resample(path, rate, out)?;
            return Ok(true);
        }
        if let Some((_, resampler)) = &mut self.resampler {
            resampler.finish(out);
        }
        Ok(false)
    }

    fn resample(&mut self, path: &Path, rate: u32, out: &mut Vec<f32>) -> Result<(), CaptureError> {
        if self.resampler.as_ref().is_none_or(|(r, _)| *r != rate) {
            let from = SampleRate::new(rate)
                .map_err(|e| CaptureError::Unusable { path: path.to_owned(), reason: e.to_string() })?;
            if let Some((_, old)) = &mut self.resampler {
                old.finish(out);
            }
            self.resampler = Some((rate, Resampler::new(from, CODEC_RATE)));
        }
        if let Some((_, resampler)) = &mut self.resampler {
            resampler.push(&self.mono, out);
        }
        Ok(())
    }
}
