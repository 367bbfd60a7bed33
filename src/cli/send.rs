//! `undertone send`: encode here, publish the codes to a daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::runtime::Runtime;

use super::encode::{parse_beam, parse_rate, refiner, remark};
use super::remote::{QUIC, datagrams, runtime};
use super::searching::{Part, Piece, Searching, search_ahead};
use crate::bitstream::Bundle;
use crate::capture::device::{CpalBackend, DeviceInput};
use crate::capture::{AudioInput, CaptureError};
use crate::cli::loading::ModelFolder;
use crate::codec::{Bucket, Encoder, Processor};
use crate::infer::LoadedModel;
use crate::jitter::{Pace, Schedule};
use crate::profile::Profile;
use crate::recording::{LIVE_BUNDLE, REFINE_STEPS};
use crate::rvq::BeamWidth;
use crate::service::{Client, ClientError, ClientOptions, Published, QuicClient};
use crate::session::{Hello, StreamName};
use crate::synthesis::{Effort, Refiner};
use crate::units::{CODEC_RATE, MessageRate, ModelId, PcmFormat, StageCount};
use crate::wire::MAX_DATAGRAM;

/// Silence of the input after which the server is told that we are still here; its patience is 30 s by default.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// The same over QUIC, where a pause that is not announced looks like a loss.
const SIGN_OF_LIFE_QUIC: Duration = Duration::from_millis(100);

/// Share of a core that the search may take.
const EFFORT_BUDGET: f64 = 0.5;

/// Bytes that a message takes beside its codes: thin, and otherwise coded (with their check sum) and packed.
const HEAD_THIN: usize = 2;
const HEAD_CODED: usize = 16;
const HEAD_PACKED: usize = 14;
const HEAD_DATAGRAM: usize = 7;

/// How far ahead of real time a recording is sent. What is on its way is heard even if this program is killed, and keeps its
/// stream's name taken for as long.
const AHEAD: Duration = Duration::from_secs(1);

/// Pieces of the input that may wait to be encoded.
const READ_AHEAD: usize = 2;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recording (as in `undertone encode`), or - for the standard input
    #[arg(required_unless_present = "device")]
    input: Option<PathBuf>,
    /// A sound device instead (`undertone devices` lists them; default is the system's), until interrupted
    #[arg(long, value_name = "NAME", conflicts_with_all = ["input", "raw"])]
    device: Option<String>,
    /// Stop after so many seconds of the device
    #[arg(long, requires = "device")]
    seconds: Option<f64>,
    /// The daemon's port for codes; quic://HOST:PORT is its port for datagrams
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7701")]
    to: String,
    /// Name of the stream
    #[arg(long, default_value = "main", value_parser = parse_stream)]
    stream: StreamName,
    /// Rate in kbit/s, 0.5 to 12, every byte of the messages counted: no beginning of the stream is above it, and what quiet sound
    /// leaves is spent in the next seconds. With --even in steps of 0.5, a stage for each, headers not counted
    #[arg(long, default_value = "6", value_parser = parse_rate)]
    kbps: f64,
    /// The input is bare samples: s16le or f32le, rate, channels, as in s16le:24000:1
    #[arg(long, value_name = "FORMAT")]
    raw: Option<PcmFormat>,
    /// Frames of 20 ms that travel together, 1 to 50 [default: those of --latency]
    #[arg(long, value_name = "N", conflicts_with = "latency", value_parser = clap::value_parser!(u8).range(1..=i64::from(Profile::MAX_FRAMES_PER_BUNDLE)))]
    bundle: Option<u8>,
    /// Longest that sound may wait for what travels with it, 20ms to 1s: the longer, the less headers take [default: what all listeners
    /// allow, 100ms unless they say]
    #[arg(long, value_name = "TIME", value_parser = parse_latency)]
    latency: Option<u8>,
    /// Whether silence is described (every 400 ms, whoever listens makes noise of the same spectrum) or sent like everything else
    #[arg(long, value_enum, default_value = "on", value_name = "on|off")]
    dtx: Switch,
    /// Give every bundle the same number of stages, instead of more to loud ones and fewer to quiet ones
    #[arg(long)]
    even: bool,
    /// Send messages of one size, padded: their sizes then say nothing of what is spoken, and fit slots of a radio
    #[arg(long, conflicts_with = "even")]
    constant: bool,
    /// Code the indices with the token model: fewer bits, the same sound [default over TCP, if the daemon has the same model]
    #[arg(long)]
    coded: bool,
    /// Send 10 bits an index
    #[arg(long, conflicts_with = "coded")]
    packed: bool,
    /// Width of the codebook search, 1 (fastest) to 16 (best)
    #[arg(long, default_value = "4", value_parser = parse_beam)]
    beam: BeamWidth,
    /// Search: every bundle is moved until what is decoded sounds like the input. off, so many steps (1 to 200), or auto: as many as
    /// take half a core, measured while it runs, and at most 20. No delay but its own time
    #[arg(long, alias = "refine", value_name = "off|auto|N", default_value = "auto", value_parser = parse_effort)]
    effort: Search,
    #[command(flatten)]
    model: ModelFolder,
    #[command(flatten)]
    remote: super::remote::Args,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

/// How much is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Search {
    /// So many steps.
    Steps(u32),
    /// As many as the machine can afford.
    Auto,
}

impl Search {
    fn refiner(self, model: &LoadedModel, effort: &Effort) -> Result<Option<Refiner>> {
        match self {
            Self::Steps(steps) => refiner(model, steps),
            // A model without the gradient can do without.
            Self::Auto => Ok(model.refiner(effort.steps())?),
        }
    }
}

fn parse_effort(s: &str) -> Result<Search, String> {
    match (s, s.parse()) {
        ("off", _) => Ok(Search::Steps(0)),
        ("auto", _) => Ok(Search::Auto),
        (_, Ok(steps)) if steps <= 200 => Ok(Search::Steps(steps)),
        _ => Err(format!("effort {s} out of range, allowed off, auto, 0 to 200")),
    }
}

/// A time as whole frames.
pub(super) fn parse_latency(s: &str) -> Result<u8, String> {
    let ms = match (s.strip_suffix("ms"), s.strip_suffix('s')) {
        (Some(ms), _) => ms.parse::<f64>(),
        (None, Some(seconds)) => seconds.parse::<f64>().map(|s| s * 1e3),
        (None, None) => return Err(format!("latency {s} has no unit, as in 80ms or 1s")),
    };
    match ms {
        // A sum of decimals may lie a hair below a whole frame.
        Ok(ms) if (20.0..=1000.0).contains(&ms) => Ok((ms / 20.0 + 1e-6) as u8),
        _ => Err(format!("latency {s} out of range, allowed 20ms to 1s")),
    }
}

pub(super) fn parse_stream(s: &str) -> Result<StreamName, String> {
    StreamName::new(s).map_err(|e| e.to_string())
}

/// Where samples come from.
enum Input {
    Recording(Box<AudioInput>, PathBuf),
    Device { device: Box<DeviceInput>, samples_left: u64, stop: Arc<AtomicBool> },
}

impl Input {
    fn open(args: &Args) -> Result<Self> {
        if let Some(name) = &args.device {
            let device = DeviceInput::open(name, Box::new(CpalBackend), super::devices::report(name))?;
            let samples = |seconds: f64| (seconds * f64::from(CODEC_RATE.hz())).ceil() as u64;
            let (samples_left, stop) = (args.seconds.map_or(u64::MAX, samples), super::stop::stop_flag()?);
            return Ok(Self::Device { device: Box::new(device), samples_left, stop });
        }
        let path = args.input.as_deref().unwrap_or(Path::new("-"));
        Ok(Self::Recording(
            Box::new(AudioInput::open_until(path, args.raw, Some(super::stop::stop_flag()?))?),
            path.to_owned(),
        ))
    }

    /// Appends the next piece; false at the end.
    fn read(&mut self, pcm: &mut Vec<f32>) -> Result<bool, CaptureError> {
        match self {
            Self::Recording(input, _) => input.read(pcm),
            Self::Device { device, samples_left, stop } => {
                if *samples_left == 0 || stop.load(Ordering::Relaxed) {
                    return Ok(false);
                }
                device.read(pcm);
                pcm.truncate(usize::try_from(*samples_left).unwrap_or(usize::MAX));
                *samples_left -= pcm.len() as u64;
                Ok(true)
            }
        }
    }
}

/// Reads the input in a thread of its own; the queue ends after the last piece or with an error.
fn read_ahead(mut input: Input) -> Receiver<Result<Vec<f32>, CaptureError>> {
    let (sender, receiver) = sync_channel(READ_AHEAD);
    std::thread::spawn(move || {
        loop {
            let mut pcm = Vec::new();
            let (chunk, more) = match input.read(&mut pcm) {
                Ok(more) => (Ok(pcm), more),
                Err(e) => (Err(e), false),
            };
            // Nobody listens any more when the program ends early.
            if sender.send(chunk).is_err() || !more {
                if let Input::Recording(input, path) = &input {
                    remark(path, input);
                }
                return;
            }
        }
    });
    receiver
}

/// Where a stream goes.
enum Target {
    Tcp(Box<Client>),
    Quic(Box<QuicClient>),
}

impl Target {
    /// Connects, and says so if bundles travel packed that should not.
    fn connect(args: &Args, hello: Hello, options: ClientOptions, runtime: &Runtime) -> Result<Self> {
        if let Some(address) = datagrams(&args.to)? {
            let client = runtime.block_on(QuicClient::connect(address, hello, &options))?;
            if args.coded && !client.is_coded() {
                errln!("undertone: {} does not code with this token model; the codes travel packed", args.to);
            }
            return Ok(Self::Quic(Box::new(client)));
        }
        let client = runtime.block_on(Client::connect_with(&args.to, hello, &options))?;
        if args.coded && !client.is_coded() {
            errln!("undertone: {} does not code with this token model; the codes travel packed", args.to);
        }
        Ok(Self::Tcp(Box::new(client)))
    }

    /// Silence of the input after which [`Target::sign_of_life`] is to be called.
    fn silence(&self) -> Duration {
        match self {
            Self::Tcp(_) => SIGN_OF_LIFE,
            Self::Quic(_) => SIGN_OF_LIFE_QUIC,
        }
    }

    async fn sign_of_life(&mut self) -> Result<(), ClientError> {
        match self {
            Self::Tcp(client) => client.sign_of_life().await,
            Self::Quic(client) => client.sign_of_life().await,
        }
    }

    /// Whether silence may be described instead of sent.
    fn knows_silence(&self) -> bool {
        match self {
            Self::Tcp(client) => client.wire().silence,
            Self::Quic(client) => client.knows_silence(),
        }
    }

    /// Frames of bundles that all who listen want, as far as the daemon says.
    fn bundle_frames(&self) -> Option<u8> {
        match self {
            Self::Tcp(client) => client.bundle_frames(),
            Self::Quic(client) => client.bundle_frames(),
        }
    }

    /// Whether bundles are coded, and whether their frames may then have stage counts of their own.
    fn is_coded(&self) -> (bool, bool) {
        match self {
            Self::Tcp(client) => (client.is_coded(), client.is_graded()),
            Self::Quic(client) => (client.is_coded(), client.is_graded()),
        }
    }

    /// Bytes of messages sent so far, or of datagrams.
    fn bytes_sent(&self) -> u64 {
        match self {
            Self::Tcp(client) => client.bytes_sent(),
            Self::Quic(client) => client.published().bytes,
        }
    }

    async fn finish(self) -> Result<(), ClientError> {
        match self {
            Self::Tcp(client) => client.finish().await,
            Self::Quic(client) => client.finish().await,
        }
    }
}

/// How long bundles are.
struct Lengths {
    /// Never another.
    fixed: bool,
    now: u8,
    most: u8,
}

impl Lengths {
    /// Messages of one size want bundles of one length, and fit a datagram.
    fn new(args: &Args, constant: Option<MessageRate>) -> Self {
        let usual = args.latency.unwrap_or(LIVE_BUNDLE);
        let fixed = args.bundle.is_some() || args.constant;
        let mut now = args.bundle.unwrap_or(usual);
        if let Some(rate) = constant.filter(|_| args.to.starts_with(QUIC)) {
            now = (1..=now).rev().find(|&n| rate.bytes(n) <= MAX_DATAGRAM).unwrap_or(now);
        }
        Self { fixed, now, most: if fixed { now } else { args.latency.unwrap_or(Profile::MAX_FRAMES_PER_BUNDLE) } }
    }

    /// Follows what listeners want; whether that has changed.
    fn follow(&mut self, wanted: Option<u8>) -> bool {
        let Some(wanted) = wanted.filter(|_| !self.fixed) else { return false };
        std::mem::replace(&mut self.now, wanted.clamp(1, self.most)) != self.now
    }
}

/// How many stages bundles get.
enum Plan {
    /// As many for each.
    Even,
    /// As many as the rate has room for, by what messages really take.
    Held,
    /// As many as fit into messages of one size.
    Constant { rate: MessageRate, bucket: Bucket },
}

impl Plan {
    /// How the encoder is to choose stages, and the most it will; the rate is held from [`Plan::begin`] on.
    fn new(args: &Args, encoder: &mut Encoder, profile: &Profile) -> Result<(Self, StageCount)> {
        if !args.even {
            return Ok((Self::Held, profile.stages));
        }
        let stages = StageCount::from_kbps(args.kbps)?;
        encoder.set_stages(stages);
        Ok((Self::Even, stages))
    }

    /// Once it is known what messages cost.
    fn begin(self, args: &Args, constant: Option<MessageRate>, client: &Target, encoder: &mut Encoder) -> Self {
        if matches!(self, Self::Even) {
            return self;
        }
        let (is_coded, is_graded) = client.is_coded();
        let head = match client {
            Target::Quic(_) => HEAD_DATAGRAM,
            Target::Tcp(client) if client.wire().thin => HEAD_THIN,
            Target::Tcp(_) if is_coded => HEAD_CODED,
            Target::Tcp(_) => HEAD_PACKED,
        };
        let bucket = Bucket::new(args.kbps, head, if is_coded { 7.5 } else { 10.0 });
        if let Some(rate) = constant {
            return Self::Constant { rate, bucket };
        }
        encoder.hold_rate(bucket, is_coded && is_graded);
        self
    }

    /// Before the encoder makes the next bundle.
    fn prepare(&self, encoder: &mut Encoder, bundle: u8) {
        if let Self::Constant { bucket, .. } = self {
            // One more than usually fits: what does not is left out.
            let stages = (bucket.mean_stages(bundle) + 1.0).clamp(1.0, 24.0) as u8;
            encoder.set_stages(StageCount::new(stages).unwrap_or(StageCount::MAX));
        }
    }

    /// Sends a bundle; gives the number of codes that were sent.
    async fn publish(
        &mut self,
        client: &mut Target,
        encoder: &mut Encoder,
        bundle: &Bundle,
    ) -> Result<u64, ClientError> {
        let Some(packed) = encoder.pack(bundle) else {
            encoder.spent(bundle.frames, 0, 0);
            return Ok(0);
        };
        match (self, client) {
            (plan, Target::Quic(client)) => {
                let before = client.published();
                client.publish(&packed).await?;
                Ok(plan.spent(encoder, before, client.published()))
            }
            (Self::Constant { rate, bucket }, Target::Tcp(client)) => {
                let (stages, length) = client.publish_padded(&packed, rate.bytes(packed.frames)).await?;
                let codes = u32::from(bundle.frames) * u32::from(stages.value());
                bucket.spent(bundle.frames, codes, 8 * length as u64);
                Ok(u64::from(codes))
            }
            (Self::Even | Self::Held, Target::Tcp(client)) => {
                let before = client.bytes_sent();
                let codes = if packed.is_background() { 0 } else { codes(bundle) };
                client.publish(packed).await?;
                encoder.spent(bundle.frames, codes, 8 * (client.bytes_sent() - before));
                Ok(u64::from(codes))
            }
        }
    }

    /// Notes what has left over QUIC since `before`, which may be other bundles than the last; gives the codes in them.
    fn spent(&mut self, encoder: &mut Encoder, before: Published, now: Published) -> u64 {
        let (frames, codes) = (now.frames - before.frames, now.codes - before.codes);
        let (frames, narrow) = (u8::try_from(frames).unwrap_or(u8::MAX), u32::try_from(codes).unwrap_or(u32::MAX));
        let bytes = now.bytes - before.bytes - (now.padding - before.padding);
        match self {
            Self::Constant { bucket, .. } => bucket.spent(frames, narrow, 8 * bytes),
            Self::Even | Self::Held => encoder.spent(frames, narrow, 8 * bytes),
        }
        codes
    }
}

fn codes(bundle: &Bundle) -> u32 {
    bundle.by_frame().map(|f| f.len() as u32).sum()
}

/// A stream on its way out.
struct Outflow {
    encoder: Encoder,
    client: Target,
    plan: Plan,
    lengths: Lengths,
    schedule: Schedule,
    frames: u64,
    stage_frames: u64,
    /// Frames of a bundle, for whoever searches.
    part: Arc<AtomicU8>,
}

impl Outflow {
    /// Takes what was read and searched for; gives the steps of the search.
    fn take(&mut self, piece: &Piece) -> u32 {
        self.encoder.push(&piece.pcm);
        if !piece.latents.is_empty() {
            self.encoder.push_latents(&piece.latents);
        }
        piece.steps
    }

    /// Publishes the bundles that are complete, each when its time has come.
    fn publish(&mut self, processor: &mut Processor, runtime: &Runtime) -> Result<()> {
        self.plan.prepare(&mut self.encoder, self.lengths.now);
        while let Some(made) = processor.encode(&mut self.encoder)? {
            runtime.block_on(hold(&mut self.schedule, processor.profile().media_time(made.frames)));
            self.stage_frames += runtime.block_on(self.plan.publish(&mut self.client, &mut self.encoder, &made))?;
            self.frames += u64::from(made.frames);
            if self.lengths.follow(self.client.bundle_frames()) {
                self.encoder.set_bundle_frames(self.lengths.now);
                self.part.store(self.lengths.now, Ordering::Relaxed);
            }
            self.plan.prepare(&mut self.encoder, self.lengths.now);
        }
        Ok(())
    }

    /// What was sent, in words; `hello` bytes of it were the greeting.
    fn summary(&self, hello: u64) -> Option<String> {
        let Self { encoder, client, frames, stage_frames, .. } = self;
        if *frames == 0 {
            return None;
        }
        let late = match client {
            Target::Quic(client) if client.stale() > 0 => {
                format!(", {} bundles were too late and not sent", client.stale())
            }
            _ => String::new(),
        };
        let seconds = *frames as f64 / 50.0;
        let kbps = (client.bytes_sent() - hello) as f64 * 8.0 / 1000.0 / seconds;
        let stages = *stage_frames as f64 / *frames as f64;
        let saved = |b: &Bucket| format!(", {:.1} s of the rate left over", b.saved_s());
        let saved = encoder.bucket().map_or_else(String::new, saved);
        let how = if client.is_coded().0 { "coded" } else { "packed" };
        Some(format!(
            "{kbps:.2} kbit/s of messages in {seconds:.1} s, {how}, {stages:.1} stages on average{saved}{late}"
        ))
    }
}

/// Waits until media of this length may be sent.
async fn hold(schedule: &mut Schedule, media: Duration) {
    let now = Instant::now();
    let due = schedule.due(media, now);
    schedule.pass(media, now);
    tokio::time::sleep_until(due.into()).await;
}

/// What comes through a pipe may be either; the daemon sees that.
fn pace(args: &Args) -> Pace {
    match (&args.device, args.input.as_deref()) {
        (Some(_), _) => Pace::Live,
        (None, Some(path)) if path != Path::new("-") => Pace::Recording,
        _ => Pace::Unknown,
    }
}

/// The first message of the session.
fn hello(args: &Args, model_id: ModelId, most: StageCount, bundle: u8, constant: Option<MessageRate>) -> Result<Hello> {
    let (token, pace) = (args.remote.token()?, pace(args));
    Ok(Hello { token, pace, constant, ..Hello::publish(args.stream.clone(), model_id, most, bundle) })
}

/// What searches, unless nothing does: bundles of `frames` frames as they come, or a recording further ahead.
fn searching(args: &Args, model: &LoadedModel, frames: &Arc<AtomicU8>) -> Result<Option<Searching>> {
    let is_recording = pace(args) == Pace::Recording;
    let effort = Effort::new(EFFORT_BUDGET, REFINE_STEPS);
    let effort = if is_recording { effort.from_the_top() } else { effort };
    let Some(refiner) = args.effort.refiner(model, &effort)? else { return Ok(None) };
    let effort = (args.effort == Search::Auto).then_some(effort);
    let part = if is_recording { Part::Recording } else { Part::Live(Arc::clone(frames)) };
    Ok(Some(Searching { processor: model.processor(args.beam)?, refiner, effort, part }))
}

pub(super) fn run(args: Args) -> Result<()> {
    let input = Input::open(&args)?;
    let model = args.model.load()?;
    let mut processor = model.processor(args.beam)?;
    let profile = processor.profile();
    let options = args.remote.coded(&model, args.coded, args.packed)?;
    let constant = args.constant.then(|| MessageRate::new((args.kbps * 1e3).round() as u32)).transpose()?;
    let lengths = Lengths::new(&args, constant);
    let bundle = lengths.now;
    let mut encoder = Encoder::new(profile.clone(), profile.stages, bundle)?;
    encoder.set_job_frames(usize::from(bundle));
    let (plan, most) = Plan::new(&args, &mut encoder, &profile)?;
    let part = Arc::new(AtomicU8::new(bundle));
    let searching = searching(&args, &model, &part)?;
    if searching.is_some() {
        encoder.push_latents(&[]);
    }
    let hello = hello(&args, profile.model_id, most, lengths.most, constant)?;
    let runtime = runtime()?;
    let client = Target::connect(&args, hello, options, &runtime)?;
    let hello_bytes = client.bytes_sent();
    let plan = plan.begin(&args, constant, &client, &mut encoder);
    // Messages of one size say nothing if there is always one.
    if args.dtx == Switch::On && !args.constant && client.knows_silence() {
        encoder.leave_out_silence();
    }
    let schedule = Schedule::new(AHEAD);
    let mut out = Outflow { encoder, client, plan, lengths, schedule, frames: 0, stage_frames: 0, part };
    // Reading blocks and searching takes its time, so they have threads of their own; the queues are short, and the server's
    // back-pressure reaches them.
    let (pieces, mut steps) = (search_ahead(read_ahead(input), searching), 0);
    loop {
        let piece = match pieces.recv_timeout(out.client.silence()) {
            Ok(piece) => Some(piece?),
            Err(RecvTimeoutError::Timeout) => {
                runtime.block_on(out.client.sign_of_life())?;
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => None,
        };
        match &piece {
            Some(piece) => steps = out.take(piece),
            None => out.encoder.finish(),
        }
        out.publish(&mut processor, &runtime)?;
        if piece.is_none() {
            break;
        }
    }
    let summary = out.summary(hello_bytes);
    runtime.block_on(out.client.finish())?;
    if let Some(summary) = summary {
        let search = if args.effort == Search::Auto { format!(", effort {steps} at the end") } else { String::new() };
        errln!("undertone: {summary}{search}");
    }
    Ok(())
}
