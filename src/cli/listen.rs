//! `undertone listen`: subscribe to a daemon's stream and decode it here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::runtime::Runtime;

use super::encode::parse_kbps;
use super::remote::{datagrams, runtime};
use super::send::{parse_latency, parse_stream};
use super::stop::Signals;
use crate::bitstream::{ContainerWriter, StreamHeader};
use crate::capture::device::{CpalBackend, DeviceOutput};
use crate::capture::{AudioOutput, Content, OutputFile};
use crate::cli::loading::ModelFolder;
use crate::codec::{Concealer, Decoder, Processor, Profile};
use crate::infer::LoadedModel;
use crate::jitter::{Gaps, Quiet, Spans};
use crate::rvq::BeamWidth;
use crate::service::{Client, ClientError, ClientOptions, QuicClient, QuicEvent, until};
use crate::session::{Continuation, Hello, PackedBundle, StreamName};
use crate::token::TokenModel;
use crate::units::{ModelId, PcmFormat, StageCount};

/// Length of a frame.
const FRAME_MS: u64 = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recording (24 kHz mono WAV), codes as they come (.utn), or - for the standard output
    #[arg(required_unless_present = "device")]
    output: Option<PathBuf>,
    /// Replace a file that is there even if it holds something else than what is written
    #[arg(long)]
    force: bool,
    /// A sound device instead (`undertone devices` lists them; default is the system's)
    #[arg(long, value_name = "NAME", conflicts_with_all = ["output", "raw"])]
    device: Option<String>,
    /// The daemon's port for codes; quic://HOST:PORT is its port for datagrams
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7701")]
    from: String,
    /// Name of the stream
    #[arg(long, default_value = "main", value_parser = parse_stream)]
    stream: StreamName,
    /// Most kbit/s wanted; the daemon drops stages to get there [default: all there are]
    #[arg(long, value_parser = parse_kbps)]
    kbps: Option<StageCount>,
    /// Longest that sound may wait for what travels with it, 20ms to 1s: a long wait saves headers [default: as it comes, 100ms]
    #[arg(long, value_name = "TIME", value_parser = parse_latency)]
    latency: Option<u8>,
    /// Ask for codes that are coded with the token model: fewer bits, the same sound [default over TCP, if the daemon has the same
    /// model]
    #[arg(long)]
    coded: bool,
    /// Ask for 10 bits an index
    #[arg(long, conflicts_with = "coded")]
    packed: bool,
    /// When the stream ends, let the daemon's token model continue it for so many seconds, up to 10
    #[arg(long = "continue", value_name = "SECONDS", value_parser = parse_continue)]
    continuation: Option<u16>,
    /// Temperature of the continuation, 0 to 10
    #[arg(long, default_value = "0.8", requires = "continuation", value_parser = parse_temperature)]
    temperature: u16,
    /// Seed of the continuation
    #[arg(long, default_value = "1", requires = "continuation")]
    seed: u64,
    /// Write bare samples instead: s16le or f32le, rate, channels, as in s16le:48000:2
    #[arg(long, value_name = "FORMAT")]
    raw: Option<PcmFormat>,
    /// Stop after so many seconds of audio [default: when the stream ends]
    #[arg(long)]
    seconds: Option<f64>,
    #[command(flatten)]
    model: ModelFolder,
    #[command(flatten)]
    remote: super::remote::Args,
}

fn parse_continue(s: &str) -> Result<u16, String> {
    match s.parse::<f64>() {
        Ok(seconds) if (0.02..=10.0).contains(&seconds) => {
            Ok((seconds * f64::from(Profile::FRAMES_PER_SECOND)).round() as u16)
        }
        _ => Err(format!("{s} seconds out of range, allowed 0.02 to 10")),
    }
}

/// In percent.
fn parse_temperature(s: &str) -> Result<u16, String> {
    match s.parse::<f64>() {
        Ok(t) if (0.0..=10.0).contains(&t) => Ok((t * 100.0).round() as u16),
        _ => Err(format!("temperature {s} out of range, allowed 0 to 10")),
    }
}

/// Where decoded samples go.
pub(super) enum Output {
    Recording(AudioOutput),
    Device(Box<DeviceOutput>),
}

impl Output {
    fn write(&mut self, pcm: &[f32]) -> Result<()> {
        match self {
            Self::Recording(output) => output.write(pcm)?,
            Self::Device(device) => device.write(pcm),
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        match self {
            Self::Recording(output) => output.finish()?,
            Self::Device(device) => device.finish(),
        }
        Ok(())
    }

    fn set_aside(self) -> Result<Option<PathBuf>> {
        match self {
            Self::Recording(output) => Ok(output.set_aside()?),
            Self::Device(device) => {
                device.finish();
                Ok(None)
            }
        }
    }
}

/// Where a stream goes.
pub(super) enum Destination {
    Audio {
        processor: Box<Processor>,
        decoder: Box<Decoder>,
        output: Output,
        skip: usize,
        gaps: Option<Gaps>,
        ears: bool,
    },
    Codes {
        file: OutputFile,
        writer: Option<ContainerWriter>,
        bytes: Vec<u8>,
    },
}

impl Destination {
    /// By the name of the output: codes for `.utn`, sound for everything else.
    pub(super) fn create(output: &Path, raw: Option<PcmFormat>, force: bool, model: &LoadedModel) -> Result<Self> {
        if output.extension().is_some_and(|e| e == "utn") {
            let file = OutputFile::create(output, Content::Codes, &[], force)?;
            return Ok(Self::Codes { file, writer: None, bytes: Vec::new() });
        }
        Self::sound(Output::Recording(AudioOutput::create(output, raw, &[], force)?), model)
    }

    /// Decoded sound.
    fn sound(output: Output, model: &LoadedModel) -> Result<Self> {
        let profile = &model.profile;
        Ok(Self::Audio {
            processor: Box::new(model.processor(BeamWidth::GREEDY)?),
            decoder: Box::new(Decoder::concealing(Arc::clone(profile), Concealer::new(model.tokens()?))),
            output,
            skip: profile.overlap_samples(),
            gaps: None,
            ears: false,
        })
    }

    /// The stream is live: gaps are filled only as far as the clock allows, and so is silence if it is heard at once.
    fn bound_gaps(&mut self, bound: Gaps, is_heard: bool) {
        if let Self::Audio { gaps, ears, .. } = self {
            *gaps = Some(bound);
            *ears = is_heard;
        }
    }

    pub(super) fn write(&mut self, packed: &PackedBundle, profile: &Profile) -> Result<()> {
        let bundle = packed.unpack()?;
        match self {
            Self::Audio { decoder, gaps, .. } => {
                if let Some(gaps) = gaps {
                    let missing = decoder.missing_before(packed.first_frame);
                    decoder.fill_at_most(gaps.fill(missing, packed.frames, Instant::now()));
                }
                if packed.is_background() {
                    decoder.push_background(packed.first_frame, packed.frames, &bundle.codes)?;
                } else {
                    decoder.push(bundle)?;
                }
                self.play()?;
            }
            Self::Codes { file, writer, bytes } => {
                let writer = writer.get_or_insert_with(|| {
                    let header = StreamHeader::packed(profile, bundle.stages, bundle.frames);
                    ContainerWriter::new(StreamHeader { live: true, ..header }, bytes)
                });
                if packed.is_background() {
                    writer.write_background(packed, bytes)?;
                } else {
                    writer.write(&bundle, bytes)?;
                }
                // Bundle by bundle, so that the file decodes up to wherever it is cut.
                file.write(bytes)?;
                bytes.clear();
            }
        }
        Ok(())
    }

    /// Decodes what waits.
    fn play(&mut self) -> Result<()> {
        let Self::Audio { processor, decoder, output, skip, .. } = self else { return Ok(()) };
        let mut pcm = Vec::new();
        processor.decode(decoder, &mut pcm)?;
        let skipped = (*skip).min(pcm.len());
        *skip -= skipped;
        output.write(&pcm[skipped..])
    }

    /// Silence that lasts: for ears, background is made up of so many frames.
    fn be_quiet(&mut self, frames: u8) -> Result<()> {
        if let Self::Audio { decoder, .. } = self {
            decoder.push_quiet(frames);
            self.play()?;
        }
        Ok(())
    }

    /// Frames that did not come: what they sounded like is guessed; a file of codes has a gap there.
    fn lose(&mut self, frames: u64) -> Result<()> {
        match self {
            Self::Audio { decoder, .. } => {
                decoder.lose(frames);
                self.play()
            }
            Self::Codes { .. } => Ok(()),
        }
    }

    /// What follows does not continue what was before.
    fn restart(&mut self, profile: &Arc<Profile>, tokens: Option<&Arc<TokenModel>>) {
        if let Self::Audio { decoder, .. } = self {
            **decoder = Decoder::concealing(profile.clone(), Concealer::new(tokens.cloned()));
        }
    }

    /// Ends what is written, whole and with its name.
    pub(super) fn finish(mut self) -> Result<()> {
        self.end()?;
        match self {
            Self::Audio { output, .. } => output.finish(),
            Self::Codes { file, .. } => Ok(file.finish()?),
        }
    }

    /// Ends what is written after a failure: it is whole, and leaves a file of its name that was there before as it was. Gives the name
    /// it lies under then.
    pub(super) fn set_aside(mut self) -> Result<Option<PathBuf>> {
        self.end()?;
        match self {
            Self::Audio { output, .. } => output.set_aside(),
            Self::Codes { file, .. } => Ok(file.set_aside()?),
        }
    }

    fn end(&mut self) -> Result<()> {
        if let Self::Codes { file, writer, bytes } = self
            && let Some(writer) = writer.take()
        {
            writer.finish(None, bytes);
            file.write(bytes)?;
        }
        Ok(())
    }
}

/// Where a stream comes from.
enum Feed {
    Tcp(Box<Client>),
    Quic(Box<QuicClient>),
}

impl Feed {
    /// Cancel-safe.
    async fn next(&mut self) -> Result<Option<QuicEvent>, ClientError> {
        match self {
            Self::Tcp(client) => Ok(client.next().await?.map(QuicEvent::Bundle)),
            Self::Quic(client) => client.next().await,
        }
    }

    /// What the network did, in words, if it did something.
    fn summary(&mut self) -> Option<String> {
        let client = match self {
            Self::Tcp(client) if client.frames_skipped() == 0 => return None,
            Self::Tcp(client) => {
                let seconds = (client.frames_skipped() * FRAME_MS) as f64 / 1e3;
                return Some(format!("{seconds} s were left out: they were not taken as fast as they came"));
            }
            Self::Quic(client) => client,
        };
        let (r, delay) = (client.report(), client.delay());
        Some(format!(
            "{} of {} bundles lost, {} late, {} reordered, {} twice; {} ms concealed, {} ms from copies; delay {} ms",
            r.lost(),
            r.expected,
            r.late,
            r.reordered,
            r.duplicated,
            r.concealed_frames * FRAME_MS,
            r.rebuilt_frames * FRAME_MS,
            delay.as_millis()
        ))
    }
}

/// Where the stream goes.
fn destination(args: &Args, model: &LoadedModel) -> Result<Destination> {
    let mut sink = match &args.device {
        Some(name) => {
            let device = DeviceOutput::open(name, Box::new(CpalBackend), super::devices::report(name))?;
            Destination::sound(Output::Device(Box::new(device)), model)?
        }
        // Without a device there is an output: clap sees to that.
        None => Destination::create(&args.output.clone().unwrap_or_default(), args.raw, args.force, model)?,
    };
    let frame = Duration::from_millis(FRAME_MS);
    let ears = args.device.is_some() || args.output.as_deref() == Some(Path::new("-"));
    sink.bound_gaps(if ears { Gaps::live(frame) } else { Gaps::keeping_time(frame) }, ears);
    Ok(sink)
}

fn hello(args: &Args, model_id: ModelId) -> Result<Hello> {
    Ok(Hello {
        stages: args.kbps,
        token: args.remote.token()?,
        continuation: args.continuation.map(|frames| Continuation {
            frames,
            temperature_percent: args.temperature,
            seed: args.seed,
        }),
        latency: args.latency,
        ..Hello::subscribe(args.stream.clone(), model_id)
    })
}

async fn connect(args: &Args, hello: Hello, options: &ClientOptions) -> Result<Feed> {
    Ok(match datagrams(&args.from)? {
        Some(address) => {
            let client = QuicClient::connect(address, hello, options).await?;
            if args.coded && !client.is_coded() {
                errln!("undertone: {} does not code with this token model; the codes travel packed", args.from);
            }
            Feed::Quic(Box::new(client))
        }
        None => {
            let client = Client::connect_with(&args.from, hello, options).await?;
            if args.coded && !client.is_coded() {
                errln!("undertone: {} does not code with this token model; the codes travel packed", args.from);
            }
            Feed::Tcp(Box::new(client))
        }
    })
}

/// What ended a wait.
enum Woken {
    Came(Result<Option<QuicEvent>, ClientError>),
    Quiet,
    Signal,
}

/// How far a stream has come. A file has the frames that were sent, whenever they came; ears hear silence as long as it lasts.
struct Reached {
    frames: u64,
    spans: Spans,
    quiet: Option<Quiet>,
}

impl Reached {
    /// Silence that lasts.
    fn wait(&mut self, sink: &mut Destination) -> Result<()> {
        if let Some((_, made)) = self.quiet.as_mut().and_then(|q| q.fill(Instant::now())) {
            self.frames += u64::from(made);
            sink.be_quiet(made)?;
        }
        Ok(())
    }

    fn bundle(&mut self, mut packed: PackedBundle, sink: &mut Destination, profile: &Arc<Profile>) -> Result<()> {
        let (first, frames, is_background) = (packed.first_frame, packed.frames, packed.is_background());
        match &mut self.quiet {
            Some(quiet) => {
                let placed = quiet.place(first, frames, is_background, Instant::now());
                packed.first_frame = placed.first_frame;
                self.frames += u64::from(frames) + placed.fill;
                sink.be_quiet(u8::try_from(placed.fill).unwrap_or(u8::MAX))?;
            }
            None => self.frames += self.spans.frames(first, frames, is_background),
        }
        sink.write(&packed, profile)
    }

    fn lose(&mut self, lost: u64, sink: &mut Destination) -> Result<()> {
        self.frames += lost;
        if let Some(quiet) = &mut self.quiet {
            quiet.lose(lost);
        }
        sink.lose(lost)
    }
}

/// Passes on up to `wanted` frames, or until the stream ends or is cut; gives how many came, and what cut it.
fn receive(
    runtime: &Runtime,
    source: &mut Feed,
    sink: &mut Destination,
    model: &LoadedModel,
    wanted: u64,
) -> Result<(u64, Option<ClientError>)> {
    let quiet = matches!(sink, Destination::Audio { ears: true, .. }).then(|| Quiet::new(Profile::FRAME_TIME));
    let mut reached = Reached { frames: 0, spans: Spans::default(), quiet };
    let mut signals = {
        let _guard = runtime.enter();
        Signals::catch()?
    };
    while reached.frames < wanted {
        let next = runtime.block_on(async {
            tokio::select! {
                next = source.next() => Woken::Came(next),
                () = until(reached.quiet.as_ref().and_then(Quiet::due)) => Woken::Quiet,
                () = signals.recv() => Woken::Signal,
            }
        });
        match next {
            Woken::Came(Ok(Some(QuicEvent::Bundle(packed)))) => reached.bundle(packed, sink, &model.profile)?,
            Woken::Came(Ok(Some(QuicEvent::Lost(lost)))) => reached.lose(lost, sink)?,
            Woken::Came(Ok(Some(QuicEvent::Restart))) => sink.restart(&model.profile, model.tokens()?.as_ref()),
            Woken::Quiet => reached.wait(sink)?,
            // The end of the stream, or of our patience.
            Woken::Came(Ok(None)) | Woken::Signal => break,
            Woken::Came(Err(e)) => return Ok((reached.frames, Some(e))),
        }
    }
    Ok((reached.frames, None))
}

pub(super) fn run(args: Args) -> Result<()> {
    let model = args.model.load()?;
    let mut sink = destination(&args, &model)?;
    let wanted = args.seconds.map_or(u64::MAX, |s| (s * f64::from(Profile::FRAMES_PER_SECOND)).ceil() as u64);
    let options = args.remote.coded(&model, args.coded, args.packed)?;
    let runtime = runtime()?;
    let hello = hello(&args, model.profile.model_id)?;
    let mut source = runtime.block_on(connect(&args, hello, &options))?;
    let (frames, cut) = receive(&runtime, &mut source, &mut sink, &model, wanted)?;
    if let Some(summary) = source.summary() {
        errln!("undertone: {summary}");
    }
    match cut {
        // Nothing came: there is nothing to write, and nothing to replace a file with.
        None if frames == 0 && args.device.is_none() => {
            errln!("undertone: no sound came; nothing was written");
            Ok(())
        }
        None => sink.finish(),
        Some(e) if frames == 0 => Err(e.into()),
        // What came before a cut is kept whole.
        Some(e) => {
            let part = sink.set_aside()?.map_or_else(String::new, |part| format!(" in {}", part.display()));
            Err(anyhow::Error::from(e)
                .context(format!("the stream was cut after {frames} frames, which are kept{part}")))
        }
    }
}
