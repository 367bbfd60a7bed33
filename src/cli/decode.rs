//! `undertone decode`: `.utn` -> audio.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;

use super::encode::interrupted;
use super::lossy::Lossy;
use super::progress;
use super::stop::stop_flag;
use super::trim::Trim;
use crate::bitstream::{
    ContainerReader, END_INDEXED_LEN, IndexEntry, Item, MAGIC, ReaderOptions, Redundancy, SeekIndex, StreamHeader, Tail,
};
use crate::capture::{self, AudioOutput};
use crate::cli::loading::ModelFolder;
use crate::codec::{Concealer, Decoder, Processor};
use crate::entropy::StreamReader;
use crate::profile::Profile;
use crate::referee::LossModel;
use crate::rvq::BeamWidth;
use crate::token::TokenModel;
use crate::units::{CODEC_RATE, PcmFormat, StageCount};

/// Bytes read at a time.
const CHUNK: usize = 16 << 10;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// File of codes (.utn), or - for the standard input
    input: PathBuf,
    /// Recording (24 kHz mono WAV), or - for the standard output
    output: PathBuf,
    /// Replace a file that is there even if it is no recording
    #[arg(long)]
    force: bool,
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
    #[command(flatten)]
    model: ModelFolder,
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
    file.by_ref().take(length as u64).read_to_end(&mut record).ok()?;
    let entry = SeekIndex::parse(&record)?.find(frame.saturating_sub(WARM_UP_FRAMES))?;
    // Of several streams in one file the index is that of the last: a bundle must lie there in the first one too.
    file.seek(SeekFrom::Start(entry.offset)).ok()?;
    let mut there = Vec::new();
    file.take(CHUNK as u64).read_to_end(&mut there).ok()?;
    let mut reader = ContainerReader::resume(ReaderOptions::default(), header.clone(), entry);
    reader.push(&there);
    matches!(reader.next(), Ok(Some(Item::Bundle(_) | Item::Background(_) | Item::Coded(_)))).then_some((header, entry))
}

/// What is decoded, with what, and where it goes.
struct Playing {
    processor: Processor,
    tokens: Option<Arc<TokenModel>>,
    conceal: Conceal,
    decoder: Decoder,
    lossy: Option<Lossy>,
    trim: Trim,
    reader: StreamReader,
    /// Whether a stream has begun.
    started: bool,
    /// Set at the end of a stream: what was read behind it.
    behind: Option<Vec<u8>>,
    /// Streams that ended.
    streams: u64,
}

fn decoder(conceal: Conceal, profile: &Arc<Profile>, tokens: Option<&Arc<TokenModel>>) -> Decoder {
    match conceal {
        Conceal::Tokens => Decoder::concealing(profile.clone(), Concealer::new(tokens.cloned())),
        Conceal::Repeat => Decoder::concealing(profile.clone(), Concealer::new(None)),
        Conceal::Silence => Decoder::new(profile.clone()),
    }
}

impl Playing {
    fn new(args: &Args, output: AudioOutput) -> Result<Self> {
        let model = args.model.load()?;
        let processor = model.processor(BeamWidth::GREEDY)?;
        let (profile, tokens) = (processor.profile(), model.tokens()?);
        let lossy = args.loss.map(|model| Lossy::new(model, args.loss_seed, args.redundancy)).transpose()?;
        let trim = Trim::new(output, profile.overlap_samples(), profile.frame_samples, args.start, args.seconds);
        Ok(Self {
            decoder: decoder(args.conceal, &profile, tokens.as_ref()),
            reader: StreamReader::new(ReaderOptions::default(), tokens.clone()),
            conceal: args.conceal,
            processor,
            tokens,
            lossy,
            trim,
            started: false,
            behind: None,
            streams: 0,
        })
    }

    /// Begins at a bundle that the index knows.
    fn resume(&mut self, header: StreamHeader, entry: IndexEntry) -> Result<()> {
        check_model(&header, &self.processor)?;
        self.started = true;
        self.trim.jump(entry.first_frame * self.processor.profile().frame_samples as u64);
        self.reader = StreamReader::resume(ReaderOptions::default(), header, entry, self.tokens.clone())?;
        Ok(())
    }

    /// Takes the next bytes of the file or pipe; false when enough was decoded or what follows is no stream.
    fn take(&mut self, bytes: &[u8]) -> Result<bool> {
        match &mut self.behind {
            Some(behind) => behind.extend_from_slice(bytes),
            None => self.reader.push(bytes),
        }
        loop {
            if let Some(behind) = &self.behind {
                let same = behind.iter().zip(&MAGIC).take_while(|(a, b)| a == b).count();
                if same < behind.len().min(MAGIC.len()) {
                    return Ok(false);
                } else if same < MAGIC.len() {
                    return Ok(true);
                }
                // Another stream was put behind the one that ended.
                self.decoder = decoder(self.conceal, &self.processor.profile(), self.tokens.as_ref());
                self.reader = StreamReader::new(ReaderOptions::default(), self.tokens.clone());
                self.reader.push(behind);
                (self.behind, self.started) = (None, false);
                self.lossy.iter_mut().for_each(|lossy| lossy.sent = 0);
            }
            self.drain()?;
            if self.behind.is_none() || self.trim.is_full() {
                return Ok(!self.trim.is_full());
            }
        }
    }

    fn drain(&mut self) -> Result<()> {
        while let Some(item) = self.reader.next()? {
            match item {
                Item::Header(header) => {
                    check_model(&header, &self.processor)?;
                    self.started = true;
                }
                Item::Bundle(bundle) => {
                    let arrived = match &mut self.lossy {
                        Some(lossy) => lossy.send(bundle)?,
                        None => vec![bundle],
                    };
                    // Nothing precedes the first bundle that it could be concealed from.
                    if let (Some(lossy), None, false) = (&self.lossy, self.decoder.expected(), arrived.is_empty()) {
                        let silence = vec![0.0; self.processor.profile().frame_samples];
                        (0..lossy.frames_before(&arrived)).try_for_each(|_| self.trim.write(&silence))?;
                    }
                    arrived.into_iter().try_for_each(|b| self.decoder.push(b))?;
                    self.play()?;
                }
                Item::End { total_samples } => {
                    if let (Some(lossy), Some(expected)) = (&self.lossy, self.decoder.expected()) {
                        self.decoder.lose(lossy.sent.saturating_sub(expected));
                        self.play()?;
                    }
                    self.trim.end_stream(total_samples)?;
                    self.behind = Some(self.reader.behind().to_vec());
                    self.streams += 1;
                    return Ok(());
                }
                Item::Background(silent) => {
                    let codes = silent.unpack()?.codes;
                    self.decoder.push_background(silent.first_frame, silent.frames, &codes)?;
                    self.play()?;
                }
                // The reader has decoded these.
                Item::Coded(_) => {}
            }
        }
        Ok(())
    }

    /// Decodes what waits and passes it on.
    fn play(&mut self) -> Result<()> {
        let mut pcm = Vec::new();
        self.processor.decode(&mut self.decoder, &mut pcm)?;
        self.trim.write(&pcm)
    }

    /// Says what the losses did.
    fn report(&self) {
        let Some(l) = &self.lossy else { return };
        let missing = self.decoder.missing_frames();
        errln!("undertone: {} of {} bundles lost, {missing} frames missing", l.lost, l.bundles);
        if l.redundant_bytes > 0 {
            errln!("undertone: the copies add {:.2} kbit/s", l.redundant_kbps());
        }
    }

    /// After the last byte: says how the last stream ended, if not as it should.
    fn tail(&self, name: &str) -> Result<()> {
        match (&self.behind, self.reader.finish()) {
            (Some(behind), _) if !behind.is_empty() => {
                errln!("undertone: {name}: what lies behind the end of the stream is no stream and is left out");
            }
            (Some(_), _) => {}
            (None, _) if !self.started && self.streams == 0 => {
                bail!("{name}: no undertone stream in it: it ends before the stream header is complete");
            }
            (None, Tail::CutAt { bytes, frames }) => {
                errln!(
                    "undertone: {name}: the stream was cut after {frames} frames (byte {bytes}); decoded up to the cut"
                );
            }
            (None, Tail::Complete) => {}
        }
        Ok(())
    }
}

/// The file or pipe from where it is to be decoded, and its size.
fn open(args: &Args, playing: &mut Playing) -> Result<(Box<dyn Read>, Option<u64>)> {
    let name = || args.input.display().to_string();
    let mut file = File::open(&args.input).with_context(name)?;
    let size = file.metadata().ok().map(|m| m.len());
    let frame = args.start / playing.processor.profile().frame_samples as u64;
    let place = if args.start > 0 { find(&mut file, frame) } else { None };
    let offset = place.as_ref().map_or(0, |(_, entry)| entry.offset);
    file.seek(SeekFrom::Start(offset)).with_context(name)?;
    if let Some((header, entry)) = place {
        playing.resume(header, entry)?;
    }
    Ok((Box::new(file), size))
}

pub(super) fn run(args: &Args) -> Result<()> {
    let name = args.input.display().to_string();
    let output = AudioOutput::create(&args.output, args.raw, &[&args.input], args.force)?;
    let stop = stop_flag()?;
    let piped = capture::is_stream(&args.input);
    // A pipe is opened first: who writes to it is then told at once when nobody reads.
    let pipe = if piped { Some(capture::open(&args.input, Some(&stop)).with_context(|| name.clone())?) } else { None };
    let mut playing = Playing::new(args, output)?;
    let (mut from, size): (Box<dyn Read>, _) = match pipe {
        Some(pipe) => (pipe, None),
        None => open(args, &mut playing)?,
    };
    let bar = progress::bar(size, "bytes", [&args.input, &args.output]);
    let stopped = || !piped && stop.load(Ordering::Relaxed);
    let decoded = pump(&mut from, &mut playing, &bar, stopped).with_context(|| name.clone());
    bar.finish_and_clear();
    playing.report();
    let said = if decoded.is_ok() && !playing.trim.is_full() && !stopped() { playing.tail(&name) } else { Ok(()) };
    playing.trim.end_stream(None)?;
    let (written, length) = (playing.trim.written(), playing.trim.length());
    let output = playing.trim.into_output();
    let seconds = |samples: u64| samples as f64 / f64::from(CODEC_RATE.hz());
    if let Some(e) = decoded.err().or(said.err()) {
        // What came before the damage is kept, but not in place of a file that was there before.
        return match written {
            0 => Err(e),
            _ if output.replaces() => Err(e.context(format!("{} is as it was", args.output.display()))),
            _ => output.finish().map_err(Into::into).and(Err(e)),
        };
    }
    if stopped() {
        return interrupted(
            &args.output,
            &format!("{:.1} s", seconds(written)),
            output.is_begun(),
            output.set_aside()?,
        );
    }
    if written == 0 && args.start > 0 {
        bail!("--start {} s is past the end: {name} has {:.2} s", seconds(args.start), seconds(length));
    }
    Ok(output.finish()?)
}

/// Decodes up to the end, or as far as is wanted.
fn pump(from: &mut dyn Read, playing: &mut Playing, bar: &ProgressBar, stopped: impl Fn() -> bool) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    while !stopped() {
        let n = from.read(&mut buffer)?;
        bar.inc(n as u64);
        if n == 0 || !playing.take(&buffer[..n])? {
            break;
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
