//! Recordings and raw pipes as mono samples at the codec's rate.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::CaptureError;
use super::bytes::{self, Bytes};
use super::compressed::Compressed;
use super::kind::{self, Kind};
use super::tags::{self, id3v2_length};
use super::wav::{WavError, WavReader};
use crate::dsp::{MAX_SAMPLE, PcmReader};
use crate::units::PcmFormat;

/// Most bytes taken from a raw pipe at a time.
const RAW_CHUNK: usize = 16 << 10;

/// Audio that is read piece by piece; memory does not grow with its length.
pub struct AudioInput {
    path: PathBuf,
    source: InputFormat,
    total_samples: Option<u64>,
    stop: Option<Arc<AtomicBool>>,
    ended: bool,
}

enum InputFormat {
    Raw { from: Box<dyn Read + Send + Sync>, reader: PcmReader, buffer: Vec<u8> },
    Wav(Box<WavReader>),
    Compressed(Box<Compressed>),
}

impl std::fmt::Debug for AudioInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AudioInput").field("path", &self.path).finish_non_exhaustive()
    }
}

impl AudioInput {
    /// Opens a recording; `-` is the standard input. With `raw` the bytes are samples of that format.
    ///
    /// # Errors
    /// [`CaptureError`].
    pub fn open(path: &Path, raw: Option<PcmFormat>) -> Result<Self, CaptureError> {
        Self::open_until(path, raw, None)
    }

    /// As [`AudioInput::open`]; when `stop` turns true, the audio ends with what has come by then, as at its own end.
    ///
    /// # Errors
    /// [`CaptureError`].
    pub fn open_until(
        path: &Path,
        raw: Option<PcmFormat>,
        stop: Option<Arc<AtomicBool>>,
    ) -> Result<Self, CaptureError> {
        let io = |source| CaptureError::Io { path: path.to_owned(), source };
        let from = bytes::open(path, stop.as_ref()).map_err(io)?;
        let (source, total_samples) = match raw {
            Some(format) => {
                (InputFormat::Raw { from, reader: PcmReader::new(format), buffer: vec![0; RAW_CHUNK] }, None)
            }
            None => recording(path, from)?,
        };
        Ok(Self { path: path.to_owned(), source, total_samples, stop, ended: false })
    }

    /// Samples at the codec's rate that the file announces, if it does.
    pub fn total_samples(&self) -> Option<u64> {
        self.total_samples
    }

    /// Appends the next piece of audio to `out`; false at the end, after which nothing more comes.
    ///
    /// # Errors
    /// [`CaptureError`]; a damaged packet inside a file is skipped, as players do.
    pub fn read(&mut self, out: &mut Vec<f32>) -> Result<bool, CaptureError> {
        if self.ended {
            return Ok(false);
        }
        // Of a pipe, what it holds is still taken; it ends by itself.
        let stopped = self.stop.as_ref().is_some_and(|s| s.load(Ordering::Relaxed)) && !bytes::is_stream(&self.path);
        let more = match &mut self.source {
            InputFormat::Raw { from, reader, buffer } => {
                let n = if stopped { 0 } else { read_some(from, buffer).map_err(|e| self::io(&self.path, e))? };
                reader.push(&buffer[..n], out);
                if n == 0 {
                    reader.finish(out);
                }
                n > 0
            }
            InputFormat::Wav(wav) if stopped => {
                wav.finish(out);
                false
            }
            InputFormat::Wav(wav) => wav.read(out).map_err(|e| wav_error(&self.path, e))?,
            InputFormat::Compressed(compressed) if stopped => {
                compressed.finish(out);
                false
            }
            InputFormat::Compressed(compressed) => compressed.read(&self.path, out)?,
        };
        self.ended = !more;
        Ok(more)
    }

    /// What a user should be told of what was read so far: samples that could not be used, repairs, parts left out. Each is said once,
    /// at the end.
    pub fn remarks(&self) -> Vec<String> {
        let (mut all, unusable) = match &self.source {
            InputFormat::Raw { reader, .. } => (Vec::new(), reader.unusable()),
            InputFormat::Wav(wav) => (wav.remarks().to_vec(), wav.unusable()),
            InputFormat::Compressed(compressed) => (compressed.remarks(), compressed.unusable()),
        };
        all.extend(unusable_remark(unusable));
        all
    }
}

/// Says how many values could not be used; None if all could.
pub fn unusable_remark(values: u64) -> Option<String> {
    let range = format!("not a number, infinite, or beyond {MAX_SAMPLE} times full scale");
    (values > 0).then(|| format!("{values} samples cannot be used ({range}); silence takes their place"))
}

fn io(path: &Path, source: std::io::Error) -> CaptureError {
    CaptureError::Io { path: path.to_owned(), source }
}

fn wav_error(path: &Path, e: WavError) -> CaptureError {
    let path = path.to_owned();
    match e {
        WavError::Io(source) => CaptureError::Io { path, source },
        WavError::Format(reason) => CaptureError::Format { path, reason },
        WavError::Unusable(reason) => CaptureError::Unusable { path, reason },
    }
}

fn read_some(from: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match from.read(buffer) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Finds out what a recording is; gives what reads it, and the samples it announces.
fn recording(path: &Path, from: Box<dyn Read + Send + Sync>) -> Result<(InputFormat, Option<u64>), CaptureError> {
    let io = |source| CaptureError::Io { path: path.to_owned(), source };
    let file = match bytes::is_stream(path) {
        true => None,
        false => Some(File::open(path).map_err(io)?),
    };
    let length = file.as_ref().map(|f| f.metadata().map(|m| m.len())).transpose().map_err(io)?;
    let mut bytes = Bytes::new(from, length);
    // A tag may stand in front of anything, with a picture of any size and zeros behind it.
    while let Some(tag) = id3v2_length(bytes.peek(10).map_err(io)?) {
        bytes.skip(tag).map_err(io)?;
        while bytes.peek(1).map_err(io)? == [0] {
            bytes.consume(1);
        }
    }
    let kind = kind::detect(&mut bytes).map_err(io)?;
    let kind = kind.map_err(|reason| CaptureError::Format { path: path.to_owned(), reason })?;
    if kind == Kind::Wav {
        let wav = WavReader::parse(bytes).map_err(|e| wav_error(path, e))?;
        let total = wav.total_samples();
        return Ok((InputFormat::Wav(Box::new(wav)), total));
    }
    let bytes = match (kind, &file) {
        (Kind::Flac, Some(file)) => bytes.leave_out(tags::behind(file).map_err(io)?),
        _ => bytes,
    };
    let file = file.map(|mut file| file.rewind().map(|()| file)).transpose().map_err(io)?;
    let compressed = Compressed::open(path, kind, bytes, file)?;
    let total = compressed.total_samples();
    Ok((InputFormat::Compressed(Box::new(compressed)), total))
}
