//! `undertone decode`: `.utn` -> audio.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::progress;
use crate::bitstream::{ContainerReader, Item, Limits, StreamHeader, Tail};
use crate::capture::AudioOutput;
use crate::codec::{Decoder, Processor};
use crate::infer;
use crate::rvq::BeamWidth;
use crate::units::PcmFormat;

/// Bytes read at a time.
const CHUNK: usize = 16 << 10;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// File of codes (.utn), or - for the standard input
    input: PathBuf,
    /// Recording (24 kHz mono WAV), or - for the standard output
    output: PathBuf,
    /// Write bare samples instead: s16le or f32le, rate, channels, as in s16le:48000:2
    #[arg(long, value_name = "FORMAT")]
    raw: Option<PcmFormat>,
    /// Model folder [default: the shipped model]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
}

/// Decoded audio on its way out: the codec's delay is cut off in front, the padding behind.
struct Trim {
    output: AudioOutput,
    skip: usize,
    written: u64,
    held: Vec<f32>,
    /// Samples kept back so that the padding can be cut off when the end tells the true length.
    hold: usize,
}

impl Trim {
    fn write(&mut self, pcm: &[f32]) -> Result<()> {
        let skipped = self.skip.min(pcm.len());
        self.skip -= skipped;
        self.held.extend_from_slice(&pcm[skipped..]);
        let ready = self.held.len().saturating_sub(self.hold);
        self.release(ready)
    }

    fn release(&mut self, samples: usize) -> Result<()> {
        if samples > 0 {
            self.output.write(&self.held[..samples])?;
            self.held.drain(..samples);
            self.written += samples as u64;
        }
        Ok(())
    }

    fn finish(mut self, total: Option<u64>) -> Result<()> {
        let left = self.held.len();
        let wanted = total.map_or(left, |t| usize::try_from(t.saturating_sub(self.written)).unwrap_or(left).min(left));
        self.release(wanted)?;
        Ok(self.output.finish()?)
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let name = args.input.display().to_string();
    let pipe = args.input == Path::new("-");
    let (mut from, size): (Box<dyn Read>, Option<u64>) = if pipe {
        (Box::new(std::io::stdin().lock()), None)
    } else {
        let file = File::open(&args.input).with_context(|| name.clone())?;
        let size = file.metadata().ok().map(|m| m.len());
        (Box::new(file), size)
    };
    let mut processor = infer::load_model(args.model.as_deref())?.processor(BeamWidth::GREEDY)?;
    let profile = processor.profile();
    let mut decoder = Decoder::new(profile.clone());
    let output = AudioOutput::create(&args.output, args.raw)?;
    let live = args.output == Path::new("-");
    let hold = if live { 0 } else { profile.frame_samples };
    let mut trim = Trim { output, skip: profile.overlap_samples(), written: 0, held: Vec::new(), hold };
    let mut reader = ContainerReader::new(Limits::default());
    let bar = progress::bar(size, "bytes", [&args.input, &args.output]);
    let (mut buffer, mut total, mut started, mut broken) = (vec![0; CHUNK], None, false, None);
    loop {
        let n = from.read(&mut buffer).with_context(|| name.clone())?;
        if n == 0 {
            break;
        }
        reader.push(&buffer[..n]);
        bar.inc(n as u64);
        broken = drain(&mut reader, &mut processor, &mut decoder, &mut trim, &mut started, &mut total).err();
        if broken.is_some() {
            break;
        }
    }
    bar.finish_and_clear();
    // What came before the damage is kept.
    trim.finish(total)?;
    if let Some(e) = broken {
        return Err(e.context(name));
    }
    if !started {
        bail!("{name}: no undertone stream in it: it ends before the stream header is complete");
    }
    if let Tail::CutAt { bytes, frames } = reader.finish() {
        eprintln!("undertone: {name}: the stream was cut after {frames} frames (byte {bytes}); decoded up to the cut");
    }
    Ok(())
}

fn drain(
    reader: &mut ContainerReader,
    processor: &mut Processor,
    decoder: &mut Decoder,
    trim: &mut Trim,
    started: &mut bool,
    total: &mut Option<u64>,
) -> Result<()> {
    while let Some(item) = reader.next()? {
        match item {
            Item::Header(header) => {
                check_model(&header, processor)?;
                *started = true;
            }
            Item::Bundle(bundle) => {
                decoder.push(bundle)?;
                while let Some(mut job) = decoder.next_job() {
                    processor.run_decode(std::slice::from_mut(&mut job))?;
                    decoder.accept(job);
                }
                let mut pcm = Vec::new();
                decoder.pcm(&mut pcm);
                trim.write(&pcm)?;
            }
            Item::End { total_samples } => *total = total_samples,
        }
    }
    Ok(())
}

fn check_model(header: &StreamHeader, processor: &Processor) -> Result<()> {
    let profile = processor.profile();
    if header.model_id != profile.model_id {
        bail!(
            "the stream was made with model {}, but the model here is {} ({}); name the right one with --model",
            header.model_id,
            profile.model_id,
            profile.name
        );
    }
    Ok(())
}
