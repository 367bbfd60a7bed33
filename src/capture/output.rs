//! Decoded samples to WAV files, raw files and pipes.

use std::path::{Path, PathBuf};

use super::CaptureError;
use super::file::{Content, OutputFile};
use crate::dsp::PcmWriter;
use crate::units::{CODEC_RATE, PcmFormat};

/// Where decoded audio goes. What was written stays readable if nothing more comes.
#[derive(Debug)]
pub struct AudioOutput {
    file: OutputFile,
    writer: PcmWriter,
    /// Whether there is a header in front.
    wav: bool,
    begun: bool,
    /// Bytes of samples.
    written: u64,
    bytes: Vec<u8>,
}

impl AudioOutput {
    /// Takes a file that is there or not, a pipe, or the standard output for `-`. Nothing is created before the first sample.
    ///
    /// With `raw` the samples are written bare in that format; else as 24 kHz mono 16-bit WAV, which becomes RF64 beyond 4 GiB, and on a
    /// pipe leaves its length open. `inputs` are what the audio is made from, see [`OutputFile::create`].
    ///
    /// # Errors
    /// As there.
    pub fn create(path: &Path, raw: Option<PcmFormat>, inputs: &[&Path], force: bool) -> Result<Self, CaptureError> {
        let file = OutputFile::create(path, Content::Recording, inputs, force)?;
        let writer = PcmWriter::new(raw.unwrap_or(PcmFormat::CODEC));
        Ok(Self { file, writer, wav: raw.is_none(), begun: false, written: 0, bytes: Vec::new() })
    }

    /// Whether somebody may wait for the samples at the end of a pipe.
    pub fn is_stream(&self) -> bool {
        self.file.is_stream()
    }

    /// Whether a file that was there before is to be replaced.
    pub fn replaces(&self) -> bool {
        self.file.replaces()
    }

    /// Whether something was written.
    pub fn is_begun(&self) -> bool {
        self.begun
    }

    /// Writes samples at the codec's rate and gives them to the system.
    ///
    /// # Errors
    /// [`CaptureError::Io`].
    pub fn write(&mut self, pcm: &[f32]) -> Result<(), CaptureError> {
        self.bytes.clear();
        self.writer.push(pcm, &mut self.bytes);
        self.pass_on()
    }

    fn pass_on(&mut self) -> Result<(), CaptureError> {
        if self.wav && !self.begun {
            if self.file.is_stream() { self.file.write(&open_header())? } else { self.file.write(&header(0))? }
        }
        self.begun = true;
        self.file.write(&self.bytes)?;
        self.written += self.bytes.len() as u64;
        // After every piece, so that the file is right wherever it ends.
        if self.wav { self.file.write_again(0, &header(self.written)) } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), CaptureError> {
        self.bytes.clear();
        self.writer.finish(&mut self.bytes);
        self.pass_on()
    }

    /// Ends the audio: the file is whole, synced, and has its name.
    ///
    /// # Errors
    /// [`CaptureError::Io`].
    pub fn finish(mut self) -> Result<(), CaptureError> {
        self.flush()?;
        self.file.finish()
    }

    /// Ends audio that did not become what was asked for, see [`OutputFile::set_aside`].
    ///
    /// # Errors
    /// [`CaptureError::Io`].
    pub fn set_aside(mut self) -> Result<Option<PathBuf>, CaptureError> {
        if self.begun {
            self.flush()?;
        }
        self.file.set_aside()
    }
}

/// Length of the header of a file: room for the lengths of RF64 is kept from the start (EBU Tech 3306, 3.3).
const HEADER: usize = 80;

/// The `fmt ` chunk of 24 kHz mono 16-bit PCM.
fn format_chunk() -> Vec<u8> {
    let mut c = b"fmt ".to_vec();
    c.extend_from_slice(&16u32.to_le_bytes());
    c.extend_from_slice(&[1, 0, 1, 0]);
    c.extend_from_slice(&CODEC_RATE.hz().to_le_bytes());
    c.extend_from_slice(&(2 * CODEC_RATE.hz()).to_le_bytes());
    c.extend_from_slice(&[2, 0, 16, 0]);
    c
}

/// Header of a file with so many bytes of samples: RIFF while its 32 bits hold them, RF64 from there on.
fn header(data: u64) -> Vec<u8> {
    let riff = HEADER as u64 - 8 + data;
    let long = riff > u64::from(u32::MAX);
    let short = |n: u64| u32::try_from(n).ok().filter(|_| !long).unwrap_or(u32::MAX).to_le_bytes();
    let mut h = if long { b"RF64".to_vec() } else { b"RIFF".to_vec() };
    h.extend_from_slice(&short(riff));
    h.extend_from_slice(b"WAVE");
    h.extend_from_slice(if long { b"ds64" } else { b"JUNK" });
    h.extend_from_slice(&28u32.to_le_bytes());
    for value in [riff, data, data / 2] {
        h.extend_from_slice(&if long { value } else { 0 }.to_le_bytes());
    }
    h.extend_from_slice(&[0; 4]);
    h.extend(format_chunk());
    h.extend_from_slice(b"data");
    h.extend_from_slice(&short(data));
    h
}

/// Header for a pipe, where the length is not known: both sizes at their largest.
fn open_header() -> Vec<u8> {
    let mut h = b"RIFF\xff\xff\xff\xffWAVE".to_vec();
    h.extend(format_chunk());
    h.extend_from_slice(b"data\xff\xff\xff\xff");
    h
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;
    use crate::capture::WavReader;

    #[test]
    fn a_file_becomes_rf64_where_32_bits_end_and_every_reader_agrees_on_its_length() {
        assert_eq!(open_header().len(), 44);
        let most = u64::from(u32::MAX) - 72;
        for (data, magic) in
            [(2, b"RIFF"), (480, b"RIFF"), (most - 1, b"RIFF"), (most + 1, b"RF64"), (1 << 40, b"RF64")]
        {
            let h = header(data);
            assert_eq!((h.len(), &h[..4]), (HEADER, &magic[..]), "{data}");
            let sound = std::io::Read::chain(std::io::Cursor::new(h), std::io::repeat(0));
            let wav = WavReader::open(sound, Some(HEADER as u64 + data)).unwrap();
            assert_eq!((wav.total_samples(), wav.remarks().len()), (Some(data / 2), 0), "{data}");
        }
    }

    #[test]
    fn what_is_written_beyond_4_gib_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long.wav");
        let mut out = AudioOutput::create(&path, None, &[], false).unwrap();
        out.write(&[0.25; 480]).unwrap();
        // As after 25 hours, without writing them: the hole takes no room on disk.
        let before = u64::from(u32::MAX) - 1_079;
        File::options().write(true).open(&path).unwrap().set_len(HEADER as u64 + before).unwrap();
        out.written = before;
        out.file.skip_to(HEADER as u64 + before);
        out.write(&[0.5; 1_000]).unwrap();
        out.finish().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), HEADER as u64 + before + 2_000);
        let mut file = File::open(&path).unwrap();
        let mut wav = WavReader::open(file.try_clone().unwrap(), Some(fs::metadata(&path).unwrap().len())).unwrap();
        assert_eq!(wav.total_samples(), Some((before + 2_000) / 2));
        assert!(wav.total_samples().unwrap() / 24_000 > 25 * 3_500);
        let mut pcm = Vec::new();
        wav.read(&mut pcm).unwrap();
        assert_eq!(pcm[..480], [0.25; 480]);
        let mut end = [0; 2];
        std::io::Seek::seek(&mut file, std::io::SeekFrom::End(-2)).unwrap();
        std::io::Read::read_exact(&mut file, &mut end).unwrap();
        assert_eq!(i16::from_le_bytes(end), 16_384);
    }
}
