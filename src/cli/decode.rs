//! `undertone decode`: `.utn` -> audio.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::progress;
use crate::bitstream::{
    Bundle, END_INDEXED_LEN, IndexEntry, Item, ReaderOptions, Redundancy, RedundancyWriter, SeekIndex, StreamHeader,
    Tail, read_redundancy,
};
use crate::capture::AudioOutput;
use crate::codec::{Concealer, Decoder, Processor};
use crate::entropy::StreamReader;
use crate::infer;
use crate::profile::Profile;
use crate::referee::{LossModel, LossTrace};
use crate::rvq::BeamWidth;
use crate::units::{CODEC_RATE, PcmFormat, StageCount};

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
    /// Begin so many seconds into the recording; long files have an index for it
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = parse_seconds)]
    start: u64,
    /// Decode so many seconds [default: to the end]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    seconds: Option<u64>,
    /// Lose bundles on the way, to hear what happens: uniform:RATE or gilbert:RATE:BURST, as in gilbert:0.1:3
    #[arg(long, value_name = "MODEL")]
    loss: Option<LossModel>,
    /// Seed of the losses
    #[arg(long, value_name = "N", default_value = "1", requires = "loss")]
    loss_seed: u64,
    /// With --loss: every bundle repeats the first STAGES stages of the FRAMES frames before it
    #[arg(long, value_name = "STAGES:FRAMES", value_parser = parse_redundancy, requires = "loss")]
    redundancy: Option<Redundancy>,
    /// What to play for missing frames
    #[arg(long, value_enum, default_value = "tokens")]
    conceal: Conceal,
    /// Model folder [default: the shipped model]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
}

/// What is played for missing frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Conceal {
    /// A continuation by the token model, then comfort noise
    Tokens,
    /// The last frame again, then comfort noise
    Repeat,
    /// Nothing
    Silence,
}

fn parse_redundancy(s: &str) -> Result<Redundancy, String> {
    let wrong = || format!("redundancy {s} out of range, allowed 1:1 to 24:50 (stages:frames)");
    let (stages, frames) = s.split_once(':').ok_or_else(wrong)?;
    let stages = stages.parse().ok().and_then(|n| StageCount::new(n).ok()).ok_or_else(wrong)?;
    frames.parse().ok().and_then(|n| Redundancy::new(stages, n).ok()).ok_or_else(wrong)
}

/// A network that loses bundles.
struct Lossy {
    trace: LossTrace,
    redundancy: Option<RedundancyWriter>,
    lost: u64,
    bundles: u64,
    frames: u64,
    redundant_bytes: u64,
}

impl Lossy {
    /// What arrives of a bundle: nothing, or it and before it the copies it carries.
    fn send(&mut self, bundle: Bundle) -> Result<Vec<Bundle>> {
        self.bundles += 1;
        self.frames += u64::from(bundle.frames);
        let mut copies = Vec::new();
        if let Some(redundancy) = &mut self.redundancy {
            redundancy.write(&bundle, &mut copies);
            self.redundant_bytes += copies.len() as u64;
        }
        if self.trace.next().unwrap_or(false) {
            self.lost += 1;
            return Ok(Vec::new());
        }
        let copies = if copies.is_empty() { None } else { read_redundancy(bundle.first_frame, &copies)? };
        Ok(copies.into_iter().chain([bundle]).collect())
    }

    /// Kilobits a second that the copies add.
    fn redundant_kbps(&self) -> f64 {
        self.redundant_bytes as f64 * 8.0 / (self.frames as f64 * 0.02) / 1000.0
    }
}

/// Frames decoded before the wanted ones, so that the decoder's memory is what it would have been.
const WARM_UP_FRAMES: u64 = Profile::FRAMES_PER_SECOND as u64;

/// Seconds as samples at the codec's rate.
fn parse_seconds(s: &str) -> Result<u64, String> {
    let seconds: f64 = s.parse().map_err(|_| format!("\"{s}\" is not a number"))?;
    if (0.0..=1e9).contains(&seconds) {
        Ok((seconds * f64::from(CODEC_RATE.hz())).round() as u64)
    } else {
        Err(format!("{s} seconds out of range, allowed 0 to 1000000000"))
    }
}

/// The file's header, and the place in it from which `frame` can be decoded, if it has an index.
fn find(file: &mut File, frame: u64) -> Option<(StreamHeader, IndexEntry)> {
    let mut head = Vec::new();
    file.by_ref().take(64).read_to_end(&mut head).ok()?;
    let (header, _) = StreamHeader::parse(&head).ok()??;
    let mut last = [0; END_INDEXED_LEN];
    file.seek(SeekFrom::End(-(END_INDEXED_LEN as i64))).ok()?;
    file.read_exact(&mut last).ok()?;
    let length = SeekIndex::length(&last)?;
    file.seek(SeekFrom::End(-((END_INDEXED_LEN + length) as i64))).ok()?;
    let mut record = Vec::new();
    file.take(length as u64).read_to_end(&mut record).ok()?;
    let entry = SeekIndex::parse(&record)?.find(frame.saturating_sub(WARM_UP_FRAMES))?;
    Some((header, entry))
}

/// Decoded audio on its way out: the codec's delay is cut off in front, the padding behind.
struct Trim {
    output: AudioOutput,
    skip: u64,
    written: u64,
    held: Vec<f32>,
    /// Samples kept back so that the padding can be cut off when the end tells the true length.
    hold: usize,
    /// Samples wanted.
    most: Option<u64>,
}

impl Trim {
    fn write(&mut self, pcm: &[f32]) -> Result<()> {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(pcm.len());
        self.skip -= skipped as u64;
        self.held.extend_from_slice(&pcm[skipped..]);
        let ready = self.held.len().saturating_sub(self.hold);
        self.release(ready)
    }

    fn is_full(&self) -> bool {
        self.most.is_some_and(|most| self.written >= most)
    }

    fn release(&mut self, samples: usize) -> Result<()> {
        let left = self.most.map_or(u64::MAX, |most| most - self.written);
        let samples = samples.min(usize::try_from(left).unwrap_or(usize::MAX));
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
    let model = infer::load_model(args.model.as_deref())?;
    let mut processor = model.processor(BeamWidth::GREEDY)?;
    let profile = processor.profile();
    let tokens = model.tokens()?;
    let mut reader = StreamReader::new(ReaderOptions::default(), tokens.clone());
    let mut started = false;
    let mut skip = args.start + profile.overlap_samples() as u64;
    let (mut from, size): (Box<dyn Read>, Option<u64>) = if pipe {
        (Box::new(std::io::stdin().lock()), None)
    } else {
        let mut file = File::open(&args.input).with_context(|| name.clone())?;
        let size = file.metadata().ok().map(|m| m.len());
        let place = if args.start > 0 { find(&mut file, args.start / profile.frame_samples as u64) } else { None };
        let offset = place.as_ref().map_or(0, |(_, entry)| entry.offset);
        file.seek(SeekFrom::Start(offset)).with_context(|| name.clone())?;
        if let Some((header, entry)) = place {
            check_model(&header, &processor)?;
            started = true;
            skip -= entry.first_frame * profile.frame_samples as u64;
            reader = StreamReader::resume(ReaderOptions::default(), header, entry, tokens.clone())?;
        }
        (Box::new(file), size)
    };
    let mut decoder = match args.conceal {
        Conceal::Tokens => Decoder::concealing(profile.clone(), Concealer::new(tokens.clone())),
        Conceal::Repeat => Decoder::concealing(profile.clone(), Concealer::new(None)),
        Conceal::Silence => Decoder::new(profile.clone()),
    };
    let lossy = |model: LossModel| -> Result<Lossy> {
        let trace = model.losses(args.loss_seed)?;
        let redundancy = args.redundancy.map(RedundancyWriter::new);
        Ok(Lossy { trace, redundancy, lost: 0, bundles: 0, frames: 0, redundant_bytes: 0 })
    };
    let mut lossy = args.loss.map(lossy).transpose()?;
    let output = AudioOutput::create(&args.output, args.raw)?;
    let live = args.output == Path::new("-");
    let hold = if live { 0 } else { profile.frame_samples };
    let mut trim = Trim { output, skip, written: 0, held: Vec::new(), hold, most: args.seconds };
    let bar = progress::bar(size, "bytes", [&args.input, &args.output]);
    let (mut buffer, mut total, mut broken) = (vec![0; CHUNK], None, None);
    loop {
        let n = from.read(&mut buffer).with_context(|| name.clone())?;
        if n == 0 {
            break;
        }
        reader.push(&buffer[..n]);
        bar.inc(n as u64);
        broken =
            drain(&mut reader, &mut processor, (&mut decoder, &mut lossy), &mut trim, &mut started, &mut total).err();
        if broken.is_some() || trim.is_full() {
            break;
        }
    }
    bar.finish_and_clear();
    if let Some(l) = &lossy {
        eprintln!("undertone: {} of {} bundles lost, {} frames missing", l.lost, l.bundles, decoder.missing_frames());
        if l.redundant_bytes > 0 {
            eprintln!("undertone: the copies add {:.2} kbit/s", l.redundant_kbps());
        }
    }
    // What came before the damage is kept.
    let full = trim.is_full();
    trim.finish(total.map(|t: u64| t.saturating_sub(args.start)))?;
    if let Some(e) = broken {
        return Err(e.context(name));
    }
    if !started {
        bail!("{name}: no undertone stream in it: it ends before the stream header is complete");
    }
    if full {
        return Ok(());
    }
    if let Tail::CutAt { bytes, frames } = reader.finish() {
        eprintln!("undertone: {name}: the stream was cut after {frames} frames (byte {bytes}); decoded up to the cut");
    }
    Ok(())
}

fn drain(
    reader: &mut StreamReader,
    processor: &mut Processor,
    (decoder, lossy): (&mut Decoder, &mut Option<Lossy>),
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
                let arrived = match lossy {
                    Some(lossy) => lossy.send(bundle)?,
                    None => vec![bundle],
                };
                // Nothing precedes the first bundle that it could be concealed from.
                if let (Some(_), None, Some(first)) = (&lossy, decoder.expected(), arrived.first()) {
                    trim.write(&vec![0.0; first.first_frame as usize * processor.profile().frame_samples])?;
                }
                arrived.into_iter().try_for_each(|b| decoder.push(b))?;
                play(processor, decoder, trim)?;
            }
            Item::End { total_samples } => {
                if let (Some(lossy), Some(expected)) = (&lossy, decoder.expected()) {
                    decoder.lose(lossy.frames.saturating_sub(expected));
                    play(processor, decoder, trim)?;
                }
                *total = total_samples;
            }
            // The reader has decoded these.
            Item::Coded(_) => {}
        }
    }
    Ok(())
}

/// Decodes what waits and passes it on.
fn play(processor: &mut Processor, decoder: &mut Decoder, trim: &mut Trim) -> Result<()> {
    let mut pcm = Vec::new();
    processor.decode(decoder, &mut pcm)?;
    trim.write(&pcm)
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
