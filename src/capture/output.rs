//! Decoded samples to WAV files, raw files and pipes.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::CaptureError;
use crate::dsp::PcmWriter;
use crate::units::{CODEC_RATE, PcmFormat};

/// Where decoded audio goes. What was written and flushed stays readable if nothing more comes.
pub struct AudioOutput {
    path: PathBuf,
    sink: Sink,
    bytes: Vec<u8>,
}

enum Sink {
    Wav(hound::WavWriter<BufWriter<File>>),
    Stream { to: Box<dyn Write + Send>, writer: PcmWriter },
}

impl std::fmt::Debug for AudioOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AudioOutput").field("path", &self.path).finish_non_exhaustive()
    }
}

impl AudioOutput {
    /// Creates a file, or takes the standard output for `-`.
    ///
    /// With `raw` the samples are written bare in that format; else as 24 kHz mono 16-bit WAV, on a pipe with a header
    /// that leaves the length open. Errors: [`CaptureError::Io`].
    pub fn create(path: &Path, raw: Option<PcmFormat>) -> Result<Self, CaptureError> {
        let io = |source| CaptureError::Io { path: path.to_owned(), source };
        let pipe = path == Path::new("-");
        let sink = if pipe || raw.is_some() {
            let mut to: Box<dyn Write + Send> = if pipe {
                Box::new(std::io::stdout())
            } else {
                Box::new(BufWriter::new(File::create(path).map_err(io)?))
            };
            if raw.is_none() {
                to.write_all(&open_wav_header()).and_then(|()| to.flush()).map_err(io)?;
            }
            Sink::Stream { to, writer: PcmWriter::new(raw.unwrap_or(PcmFormat::CODEC)) }
        } else {
            let spec = hound::WavSpec {
                channels: 1,
                sample_rate: CODEC_RATE.hz(),
                bits_per_sample: 16,
                sample_format: hound::SampleFormat::Int,
            };
            let file = BufWriter::new(File::create(path).map_err(io)?);
            Sink::Wav(hound::WavWriter::new(file, spec).map_err(|e| hound_error(path, e))?)
        };
        Ok(Self { path: path.to_owned(), sink, bytes: Vec::new() })
    }

    /// Writes samples at the codec's rate and flushes them.
    ///
    /// Errors: [`CaptureError::Io`].
    pub fn write(&mut self, pcm: &[f32]) -> Result<(), CaptureError> {
        match &mut self.sink {
            Sink::Wav(wav) => {
                for &x in pcm {
                    let sample = (x * 32_768.0).round().clamp(-32_768.0, 32_767.0) as i16;
                    wav.write_sample(sample).map_err(|e| hound_error(&self.path, e))?;
                }
                wav.flush().map_err(|e| hound_error(&self.path, e))
            }
            Sink::Stream { to, writer } => {
                self.bytes.clear();
                writer.push(pcm, &mut self.bytes);
                let written = to.write_all(&self.bytes).and_then(|()| to.flush());
                written.map_err(|source| CaptureError::Io { path: self.path.clone(), source })
            }
        }
    }

    /// Ends the audio.
    ///
    /// Errors: [`CaptureError::Io`].
    pub fn finish(self) -> Result<(), CaptureError> {
        let Self { path, sink, mut bytes } = self;
        match sink {
            Sink::Wav(wav) => wav.finalize().map_err(|e| hound_error(&path, e)),
            Sink::Stream { mut to, mut writer } => {
                bytes.clear();
                writer.finish(&mut bytes);
                to.write_all(&bytes).and_then(|()| to.flush()).map_err(|source| CaptureError::Io { path, source })
            }
        }
    }
}

fn hound_error(path: &Path, e: hound::Error) -> CaptureError {
    let source = match e {
        hound::Error::IoError(source) => source,
        other => std::io::Error::other(other.to_string()),
    };
    CaptureError::Io { path: path.to_owned(), source }
}

/// RIFF header of 24 kHz mono 16-bit PCM whose length is not known (both sizes at their largest).
fn open_wav_header() -> [u8; 44] {
    let mut h = [0u8; 44];
    h[..4].copy_from_slice(b"RIFF");
    h[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    h[8..16].copy_from_slice(b"WAVEfmt ");
    h[16..20].copy_from_slice(&16u32.to_le_bytes());
    h[20..22].copy_from_slice(&1u16.to_le_bytes());
    h[22..24].copy_from_slice(&1u16.to_le_bytes());
    h[24..28].copy_from_slice(&CODEC_RATE.hz().to_le_bytes());
    h[28..32].copy_from_slice(&(2 * CODEC_RATE.hz()).to_le_bytes());
    h[32..34].copy_from_slice(&2u16.to_le_bytes());
    h[34..36].copy_from_slice(&16u16.to_le_bytes());
    h[36..40].copy_from_slice(b"data");
    h[40..].copy_from_slice(&u32::MAX.to_le_bytes());
    h
}
