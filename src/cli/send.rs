//! `undertone send`: encode here, publish the codes to a daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::encode::{parse_beam, parse_kbps, refiner, tokens};
use crate::capture::device::{CpalBackend, DeviceInput};
use crate::capture::{AudioInput, CaptureError};
use crate::codec::Encoder;
use crate::infer;
use crate::jitter::{Pace, Schedule};
use crate::profile::Profile;
use crate::rvq::BeamWidth;
use crate::service::{Client, ClientError, UdpClient};
use crate::session::{Hello, PROTOCOL_VERSION, PackedBundle, Role, StreamName};
use crate::synthesis::Analyser;
use crate::units::{CODEC_RATE, PcmFormat, StageCount};

/// Silence of the input after which the server is told that we are still here; its patience is 30 s by default.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// The same over UDP, where a pause that is not announced looks like a loss.
const SIGN_OF_LIFE_UDP: Duration = Duration::from_millis(100);

/// How far ahead of real time a recording is sent. What is on its way is heard even if this program is killed, and keeps its
/// stream's name taken for as long.
const AHEAD: Duration = Duration::from_secs(1);

/// Pieces of the input that may wait to be encoded.
const READ_AHEAD: usize = 2;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recording (WAV, FLAC, Ogg Vorbis, MP3), or - for the standard input
    #[arg(required_unless_present = "device")]
    input: Option<PathBuf>,
    /// A sound device instead (`undertone devices` lists them; default is the system's), until interrupted
    #[arg(long, value_name = "NAME", conflicts_with_all = ["input", "raw"])]
    device: Option<String>,
    /// Stop after so many seconds of the device
    #[arg(long, requires = "device")]
    seconds: Option<f64>,
    /// The daemon's port for codes; udp://HOST:PORT is its port for datagrams
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7701")]
    to: String,
    /// Name of the stream
    #[arg(long, default_value = "main", value_parser = parse_stream)]
    stream: StreamName,
    /// Rate in kbit/s, 0.5 to 12 in steps of 0.5; on average, unless --even is given
    #[arg(long, default_value = "6", value_parser = parse_kbps)]
    kbps: StageCount,
    /// The input is bare samples: s16le or f32le, rate, channels, as in s16le:24000:1
    #[arg(long, value_name = "FORMAT")]
    raw: Option<PcmFormat>,
    /// Frames of 20 ms that travel together, 1 to 50
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u8).range(1..=i64::from(Profile::MAX_FRAMES_PER_BUNDLE)))]
    bundle: u8,
    /// Give every bundle the same number of stages, instead of more to loud ones and fewer to quiet ones
    #[arg(long)]
    even: bool,
    /// Code the indices with the token model, if the daemon has the same: fewer bits, the same sound
    #[arg(long)]
    coded: bool,
    /// Width of the codebook search, 1 (fastest) to 16 (best)
    #[arg(long, default_value = "4", value_parser = parse_beam)]
    beam: BeamWidth,
    /// Steps of analysis by synthesis, 0 to 200: every bundle is moved until what is decoded sounds like the input. Ten cost about
    /// a third of a core and no delay but their own time
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=200))]
    refine: u32,
    /// Model folder [default: the shipped model]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[command(flatten)]
    remote: super::remote::Args,
}

pub(super) fn parse_stream(s: &str) -> Result<StreamName, String> {
    StreamName::new(s).map_err(|e| e.to_string())
}

/// Where samples come from.
enum Input {
    Recording(Box<AudioInput>),
    Device { device: Box<DeviceInput>, samples_left: u64, stop: Arc<AtomicBool> },
}

impl Input {
    fn open(args: &Args) -> Result<Self> {
        if let Some(name) = &args.device {
            let device = DeviceInput::open(name, Box::new(CpalBackend), super::devices::report(name))?;
            let samples = |seconds: f64| (seconds * f64::from(CODEC_RATE.hz())).ceil() as u64;
            let (samples_left, stop) = (args.seconds.map_or(u64::MAX, samples), super::devices::stop_flag()?);
            return Ok(Self::Device { device: Box::new(device), samples_left, stop });
        }
        let path = args.input.as_deref().unwrap_or(Path::new("-"));
        Ok(Self::Recording(Box::new(AudioInput::open(path, args.raw)?)))
    }

    /// Appends the next piece; false at the end.
    fn read(&mut self, pcm: &mut Vec<f32>) -> Result<bool, CaptureError> {
        match self {
            Self::Recording(input) => input.read(pcm),
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
                return;
            }
        }
    });
    receiver
}

/// Where a stream goes.
enum Target {
    Tcp(Box<Client>),
    Udp(Box<UdpClient>),
}

impl Target {
    async fn publish(&mut self, bundle: PackedBundle) -> Result<(), ClientError> {
        match self {
            Self::Tcp(client) => client.publish(bundle).await,
            Self::Udp(client) => client.publish(&bundle).await,
        }
    }

    /// Silence of the input after which [`Target::sign_of_life`] is to be called.
    fn silence(&self) -> Duration {
        match self {
            Self::Tcp(_) => SIGN_OF_LIFE,
            Self::Udp(_) => SIGN_OF_LIFE_UDP,
        }
    }

    async fn sign_of_life(&mut self) -> Result<(), ClientError> {
        match self {
            Self::Tcp(client) => client.sign_of_life().await,
            Self::Udp(client) => client.sign_of_life().await,
        }
    }

    async fn finish(self) -> Result<(), ClientError> {
        match self {
            Self::Tcp(client) => client.finish().await,
            Self::Udp(client) => client.finish().await,
        }
    }
}

/// Waits until media of this length may be sent.
async fn hold(schedule: &mut Schedule, media: Duration) {
    let now = Instant::now();
    let due = schedule.due(media, now);
    schedule.pass(media, now);
    tokio::time::sleep_until(due.into()).await;
}

pub(super) fn run(args: Args) -> Result<()> {
    let input = Input::open(&args)?;
    let model = infer::load_model(args.model.as_deref())?;
    let mut processor = model.processor(args.beam)?;
    let tokens = if args.coded { Some(tokens(&model)?) } else { None };
    let profile = processor.profile();
    let mut encoder = Encoder::new(profile.clone(), args.kbps, args.bundle)?;
    encoder.set_job_frames(usize::from(args.bundle));
    let most = if args.even { args.kbps } else { encoder.grade_bundles() };
    let mut refiner = refiner(&model, args.refine)?;
    let mut analyser = refiner.as_mut().map(|refiner| {
        let mut analyser = Analyser::new(profile.clone(), Some(refiner));
        analyser.set_part(usize::from(args.bundle));
        analyser
    });
    // What comes through a pipe may be either; the daemon sees that.
    let pace = match (&args.device, args.input.as_deref()) {
        (Some(_), _) => Pace::Live,
        (None, Some(path)) if path != Path::new("-") => Pace::Recording,
        _ => Pace::Unknown,
    };
    let hello = Hello {
        version: PROTOCOL_VERSION,
        role: Role::Publish,
        stream: args.stream,
        model_id: profile.model_id,
        stages: Some(most),
        frames_per_bundle: args.bundle,
        token: args.remote.token()?,
        coding: None,
        continuation: None,
        pace,
    };
    // Reading blocks, so it has a thread of its own; the queue is short, and the server's back-pressure reaches it.
    let mut options = args.remote.options()?;
    options.tokens = tokens;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut client = match args.to.strip_prefix("udp://") {
        Some(_) if args.coded => bail!("--coded needs a connection that loses nothing: leave udp:// or it away"),
        Some(_) if options.tls.is_some() => bail!("--tls is not to be had over udp://"),
        Some(address) => {
            Target::Udp(Box::new(runtime.block_on(UdpClient::connect(address, hello, options.patience))?))
        }
        None => {
            let client = runtime.block_on(Client::connect_with(&args.to, hello, &options))?;
            if args.coded && !client.is_coded() {
                eprintln!("undertone: {} does not code with this token model; the codes travel packed", args.to);
            }
            Target::Tcp(Box::new(client))
        }
    };
    let mut schedule = Schedule::new(AHEAD);
    let chunks = read_ahead(input);
    loop {
        let pcm = match chunks.recv_timeout(client.silence()) {
            Ok(chunk) => Some(chunk?),
            Err(RecvTimeoutError::Timeout) => {
                runtime.block_on(client.sign_of_life())?;
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => None,
        };
        let more = pcm.is_some();
        match &pcm {
            Some(pcm) => encoder.push(pcm),
            None => encoder.finish(),
        }
        if let Some(analyser) = &mut analyser {
            match &pcm {
                Some(pcm) => analyser.push(pcm),
                None => analyser.finish(),
            }
            let mut latents = Vec::new();
            while analyser.next_part(&mut processor, &mut latents)? {}
            encoder.push_latents(&latents);
        }
        while let Some(bundle) = processor.encode(&mut encoder)? {
            runtime.block_on(hold(&mut schedule, profile.media_time(bundle.frames)));
            runtime.block_on(client.publish(PackedBundle::pack(&bundle)))?;
        }
        if !more {
            break;
        }
    }
    runtime.block_on(client.finish())?;
    Ok(())
}
