//! Raw samples in (encode here) and out (decode here).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf};
use tokio::task::spawn_blocking;
use tokio::time::{timeout, timeout_at};
use tracing::{info, warn};

use super::access::SlotShare;
use super::door::Guest;
use super::foreign::Foreign;
use super::hub::{Ended, Heard, Publisher};
use super::listener::USUAL_FRAMES;
use super::shared::{Searcher, encode, process};
use super::sockets::Pulse;
use super::tls::Socket;
use super::until::until;
use super::{Counters, Shared};
use crate::capture::unusable_remark;
use crate::codec::{Bucket, Concealer, Decoder, Encoder, Guess};
use crate::config::PcmPort;
use crate::dsp::{PcmReader, PcmWriter};
use crate::engine::{EngineError, Slot};
use crate::jitter::{Gaps, Keep, Pace, Pacing, Passed, Spans};
use crate::profile::Profile;
use crate::session::{PackedBundle, StreamName};
use crate::units::{CODEC_RATE, MAX_STAGES, MessageRate, StageCount};

/// Bytes of a message besides its codes, and of a description of silence; bits of a code while nobody says what it takes.
const HEAD: usize = 2;
const DESCRIPTION: u64 = 8;
const CODE_BITS: f64 = 10.0;

/// Bytes read at a time.
const CHUNK: usize = 8 << 10;

/// Why a raw connection ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum PcmError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Codec(#[from] crate::codec::CodecError),
    #[error(transparent)]
    Bitstream(#[from] crate::bitstream::BitstreamError),
    #[error("nothing arrived for {0:?}")]
    Silent(Duration),
    #[error("somebody else publishes stream {0}")]
    Taken(StreamName),
    #[error("an earlier publisher of this stream is on another daemon")]
    Overruled,
    #[error("the listener does not read fast enough")]
    Slow,
    #[error("its address has all the engine slots that one may have ({0}, half of engine.slots)")]
    Share(usize),
    #[error("{}", .0.to_client())]
    Foreign(Foreign),
}

/// Serves one connection that brings samples.
pub(super) async fn serve_input(shared: Shared, port: Arc<PcmPort>, mut socket: Socket, guest: &Guest) {
    match input(&shared, &port, &mut socket, guest).await {
        Ok(samples) => {
            info!(stream = %port.stream, seconds = samples as f64 / f64::from(CODEC_RATE.hz()), "input ended")
        }
        Err(e) => {
            Counters::add(&shared.counters.refused);
            warn!(stream = %port.stream, error = %e, "input closed");
        }
    }
}

/// The engine slot of a connection, counted for its address.
pub(super) fn slot_share(shared: &Shared, guest: &Guest) -> Result<SlotShare, PcmError> {
    let share = shared.config.borrow().limits.slots_per_address(shared.engine.slots().1);
    guest.visit.slot(share).ok_or(PcmError::Share(share))
}

async fn input(shared: &Shared, port: &PcmPort, socket: &mut Socket, guest: &Guest) -> Result<u64, PcmError> {
    let _share = slot_share(shared, guest)?;
    let mut source = EncodedStream::open(shared, &port.stream, port.pace).await?;
    let (mut reader, mut bytes, mut pcm) = (PcmReader::new(port.format), vec![0; CHUNK], Vec::new());
    let idle = shared.config.borrow().limits.timeouts.idle;
    let mut heard = Instant::now();
    let mut first = true;
    let result = loop {
        let reads = source.reads();
        let read = tokio::select! {
            biased;
            () = shared.stop_input.cancelled() => break Ok(()),
            read = timeout_at((heard + idle).into(), socket.read(&mut bytes)), if reads => read,
            () = source.wait() => {
                source.pass_on()?;
                if !reads {
                    heard = Instant::now();
                }
                continue;
            }
        };
        match read {
            Err(_) => break Err(PcmError::Silent(idle)),
            Ok(Ok(0)) => break Ok(()),
            Ok(Ok(n)) => {
                heard = Instant::now();
                if std::mem::take(&mut first)
                    && let Some(foreign) = Foreign::of_samples(&bytes[..n])
                {
                    return Err(PcmError::Foreign(foreign));
                }
                pcm.clear();
                reader.push(&bytes[..n], &mut pcm);
                shared.hub.heard(&port.stream, &pcm);
                source.push(&pcm).await?;
            }
            // What arrived before the connection broke is still sent.
            Ok(Err(e)) => break Err(e.into()),
        }
    };
    pcm.clear();
    reader.finish(&mut pcm);
    if let Some(remark) = unusable_remark(reader.unusable()) {
        warn!(stream = %port.stream, "{remark}");
    }
    source.encoder.push(&pcm);
    source.finish().await?;
    result.map(|()| source.encoder.samples_in())
}

/// A stream that is encoded here.
pub(super) struct EncodedStream<'a> {
    shared: &'a Shared,
    publisher: Publisher,
    slot: Slot,
    encoder: Encoder,
    searcher: Searcher,
    /// Holds messages to one size; None: to a rate, or a number of stages.
    constant: Option<Bucket>,
    /// As configured, and as the engine has time for.
    stages: (StageCount, StageCount),
    pacing: Pacing<PackedBundle>,
    spans: Spans,
    /// Frames of a bundle unless listeners want others.
    frames: u8,
    /// Bundles that were dropped because they were too late, as far as they are counted.
    stale: u64,
}

impl<'a> EncodedStream<'a> {
    /// Takes the stream's name and a slot of the engine.
    pub(super) async fn open(shared: &'a Shared, stream: &StreamName, pace: Pace) -> Result<Self, PcmError> {
        let publisher = shared.publish(stream).await.ok_or_else(|| PcmError::Taken(stream.clone()))?;
        let config = Arc::clone(&shared.config.borrow());
        let (profile, slot) = (shared.engine.profile(), shared.engine.admit()?);
        let stages = config.codec.stages.min(profile.stages);
        let mut encoder = Encoder::new(profile, stages, config.codec.frames_per_bundle)?;
        encoder.set_job_frames(usize::from(config.codec.frames_per_bundle));
        let constant = config.codec.constant.then(|| Bucket::new(stages.kbps(), HEAD, CODE_BITS));
        if constant.is_some() {
            publisher.make_constant(MessageRate::of_stages(stages));
        } else if config.codec.graded {
            // Packed until it is known what messages take.
            encoder.hold_rate(Bucket::new(stages.kbps(), HEAD, CODE_BITS), shared.coding.is_some());
        }
        info!(%stream, %stages, "input started");
        // Messages of one size say nothing if there is always one.
        if config.codec.dtx && constant.is_none() {
            encoder.leave_out_silence();
        }
        let frames = config.codec.frames_per_bundle;
        let (pacing, spans) = (Pacing::new(pace, config.limits.max_lag), Spans::default());
        let searcher = Searcher::new(&shared.engine);
        Ok(Self {
            shared,
            publisher,
            slot,
            encoder,
            searcher,
            constant,
            stages: (stages, stages),
            pacing,
            spans,
            frames,
            stale: 0,
        })
    }

    /// Encodes samples that were recorded just now.
    pub(super) async fn push(&mut self, pcm: &[f32]) -> Result<(), PcmError> {
        self.encoder.push(pcm);
        self.encode(Instant::now()).await
    }

    /// Encodes what is left, and publishes all of it, in its time unless the daemon stops.
    pub(super) async fn finish(&mut self) -> Result<(), PcmError> {
        self.encoder.finish();
        self.encode(Instant::now()).await?;
        while self.pacing.wake().is_some() {
            tokio::select! {
                () = self.shared.stop_input.cancelled() => break,
                () = self.wait() => self.pass_on()?,
            }
        }
        while let Some(passed) = self.pacing.flush() {
            self.send(passed);
        }
        Ok(())
    }

    /// Whether more samples may be taken in. What could be passed on waits while there are some: of a backlog only the newest
    /// is wanted.
    pub(super) fn reads(&self) -> bool {
        !self.pacing.is_full() && !self.pacing.is_overdue(Instant::now())
    }

    /// Waits until something may be passed on. Cancel-safe.
    pub(super) async fn wait(&self) {
        until(self.pacing.wake()).await;
    }

    /// Passes on what may be.
    pub(super) fn pass_on(&mut self) -> Result<(), PcmError> {
        let now = Instant::now();
        while let Some(passed) = self.pacing.pop(now) {
            self.send(passed);
        }
        if self.publisher.is_overruled() { Err(PcmError::Overruled) } else { Ok(()) }
    }

    fn send(&mut self, passed: Passed<PackedBundle>) {
        let media = self.shared.engine.profile().media_time(passed.item.frames);
        self.shared.counters.bundle(&passed.item);
        self.publisher.send(Heard::new(passed.item, media, passed.recorded, self.pacing.is_live()));
    }

    /// Follows what the engine has time for.
    fn choose_stages(&mut self, frames: u8) {
        let engine = &self.shared.engine;
        let now = match &self.constant {
            // One more than usually fits: what does not is left out on the way to a listener.
            Some(bucket) => {
                let stages = (bucket.mean_stages(frames) + 1.0).clamp(1.0, f64::from(MAX_STAGES)) as u8;
                engine.stages(StageCount::new(stages).unwrap_or(self.stages.0))
            }
            None => engine.stages(self.stages.0),
        };
        if now != self.stages.1 {
            self.stages.1 = now;
            self.encoder.set_stages(now);
            self.encoder.limit_stages(engine.stages(engine.profile().stages));
        }
    }

    /// Encodes what is ready, which came at `arrived`.
    async fn encode(&mut self, arrived: Instant) -> Result<(), PcmError> {
        // Listeners that say nothing want what the configuration says.
        let wanted = self.publisher.wanted_frames().filter(|&f| f != USUAL_FRAMES).unwrap_or(self.frames);
        self.encoder.set_bundle_frames(wanted);
        self.choose_stages(wanted);
        while let Some(bundle) = encode(&self.slot, &mut self.encoder, &mut self.searcher).await? {
            let packed = self.encoder.pack(&bundle);
            let codes = packed.as_ref().filter(|p| !p.is_background()).map_or(0, PackedBundle::codes);
            let bits = match (&packed, codes) {
                (None, _) => 0,
                (Some(_), 0) => 8 * DESCRIPTION,
                (Some(_), codes) => {
                    let code_bits = self.publisher.code_bits().unwrap_or(CODE_BITS);
                    8 * HEAD as u64 + (code_bits * f64::from(codes)) as u64
                }
            };
            self.encoder.spent(bundle.frames, codes, bits);
            if let Some(bucket) = &mut self.constant {
                bucket.spent(bundle.frames, codes, bits);
                self.choose_stages(wanted);
            }
            if let Some(bucket) = self.encoder.bucket() {
                self.publisher.note_saved(bucket.saved_s());
            }
            let Some(packed) = packed else { continue };
            let frames = self.spans.frames(packed.first_frame, packed.frames, packed.is_background());
            self.pacing.push(packed, Profile::FRAME_TIME * frames as u32, arrived);
        }
        let stale = self.pacing.dropped() - std::mem::replace(&mut self.stale, self.pacing.dropped());
        self.shared.counters.stale.fetch_add(stale, Ordering::Relaxed);
        Ok(())
    }
}

/// Serves one connection that takes samples; `pulse` tells whether it still lives.
pub(super) async fn serve_output(
    shared: Shared,
    port: Arc<PcmPort>,
    socket: Socket,
    guest: &Guest,
    pulse: Option<Pulse>,
) {
    match output(&shared, &port, socket, guest, pulse).await {
        Ok(()) => info!(stream = %port.stream, "output ended"),
        Err(e) => {
            match e {
                PcmError::Slow => Counters::add(&shared.counters.slow),
                PcmError::Share(_) => Counters::add(&shared.counters.refused),
                PcmError::Foreign(_) => Counters::add(&shared.counters.hostile),
                _ => {}
            }
            warn!(stream = %port.stream, error = %e, "output closed");
        }
    }
}

async fn output(
    shared: &Shared,
    port: &PcmPort,
    socket: Socket,
    guest: &Guest,
    pulse: Option<Pulse>,
) -> Result<(), PcmError> {
    let _share = slot_share(shared, guest)?;
    let config = Arc::clone(&shared.config.borrow());
    let sound = Sound::open(shared, &port.stream)?;
    let mut listener = shared.listen(&port.stream, Keep::Prompt);
    listener.fill_silence(Profile::FRAME_TIME);
    let mut sink = Player { sound, writer: PcmWriter::new(port.format), bytes: Vec::new() };
    let (reader, mut writer) = tokio::io::split(socket);
    let mut gone = std::pin::pin!(hung_up(reader, pulse));
    let ended = loop {
        tokio::select! {
            next = listener.next() => match next {
                Ok(heard) => {
                    shared.skipped(&mut listener, &port.stream);
                    let write = sink.decode(&heard, &mut writer);
                    timeout(config.limits.timeouts.idle, write).await.map_err(|_| PcmError::Slow)??;
                    listener.delivered(&heard);
                }
                Err(ended) => break ended,
            },
            // Who hangs up is noticed even while the stream is silent.
            gone = &mut gone => return gone,
            () = shared.stop_output.cancelled() => {
                while let Some(bundle) = listener.queued() {
                    sink.decode(&bundle, &mut writer).await?;
                }
                break Ended::Stream;
            }
        }
    };
    if ended == Ended::Slow {
        return Err(PcmError::Slow);
    }
    sink.bytes.clear();
    sink.writer.finish(&mut sink.bytes);
    writer.write_all(&sink.bytes).await?;
    writer.shutdown().await?;
    Ok(())
}

/// How often a connection whose peer has nothing more to say is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Waits until a listener of samples has gone; what it says is thrown away. Who says that nothing more will come
/// (`nc -N`, a closed standard input) still listens: such a connection is over when the system says so, which asks now
/// and then.
async fn hung_up(mut reader: ReadHalf<Socket>, pulse: Option<Pulse>) -> Result<(), PcmError> {
    let (mut scratch, mut first) = ([0; 256], true);
    loop {
        match reader.read(&mut scratch).await? {
            0 => break,
            n => {
                if std::mem::take(&mut first)
                    && let Some(foreign) = Foreign::of_samples(&scratch[..n])
                {
                    return Err(PcmError::Foreign(foreign));
                }
            }
        }
    }
    let Some(pulse) = pulse else { return Ok(()) };
    while !pulse.is_lost() {
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// A stream that is decoded here.
pub(super) struct Sound<'a> {
    shared: &'a Shared,
    stream: StreamName,
    slot: Slot,
    decoder: Decoder,
    gaps: Gaps,
    /// Samples before the first one that was encoded.
    skip: usize,
    pcm: Vec<f32>,
}

impl<'a> Sound<'a> {
    /// Takes a slot of the engine.
    pub(super) fn open(shared: &'a Shared, stream: &StreamName) -> Result<Self, PcmError> {
        let (profile, slot) = (shared.engine.profile(), shared.engine.admit()?);
        let skip = profile.overlap_samples();
        let concealer = Concealer::new(shared.coding.as_ref().map(|c| Arc::clone(&c.model)));
        let gaps = Gaps::live(profile.media_time(1));
        let decoder = Decoder::concealing(profile, concealer);
        Ok(Self { shared, stream: stream.clone(), slot, decoder, gaps, skip, pcm: Vec::new() })
    }

    /// The samples that a bundle adds, with those of what was lost before it; with at most so many stages.
    pub(super) async fn decode(&mut self, heard: &Heard, stages: StageCount) -> Result<&[f32], PcmError> {
        self.pcm.clear();
        let budget = self.shared.engine.profile().media_time(heard.frames);
        let missing = self.decoder.missing_before(heard.first_frame);
        self.decoder.fill_at_most(self.gaps.fill(missing, heard.frames, Instant::now()));
        let bundle = heard.unpack()?.truncated(stages);
        match (heard.is_background(), heard.is_filler) {
            (true, true) => self.decoder.push_quiet(heard.frames),
            (true, false) => self.decoder.push_background(heard.first_frame, heard.frames, &bundle.codes)?,
            (false, _) => self.decoder.push(bundle)?,
        }
        loop {
            while let Some(guess) = self.decoder.next_guess() {
                self.decoder.accept_guess(guessed(self.shared, guess).await?);
            }
            let Some(job) = self.decoder.next_job() else { break };
            self.decoder.accept(process(&self.slot, job, budget).await?);
        }
        self.decoder.pcm(&mut self.pcm);
        self.shared.hub.heard(&self.stream, &self.pcm);
        let skipped = self.skip.min(self.pcm.len());
        self.skip -= skipped;
        Ok(&self.pcm[skipped..])
    }

    /// What it is called.
    pub(super) fn stream(&self) -> &StreamName {
        &self.stream
    }

    /// Frames that did not come.
    pub(super) fn missing_frames(&self) -> u64 {
        self.decoder.missing_frames()
    }
}

/// Makes a guess off the threads that serve connections; if all its threads are busy, at once and without the token model.
async fn guessed(shared: &Shared, mut guess: Guess) -> Result<Guess, PcmError> {
    let Ok(permit) = Arc::clone(&shared.guesses).try_acquire_owned() else {
        guess.run_cheaply();
        return Ok(guess);
    };
    let work = spawn_blocking(move || {
        guess.run();
        drop(permit);
        guess
    });
    work.await.map_err(|_| EngineError::Stopped.into())
}

struct Player<'a> {
    sound: Sound<'a>,
    writer: PcmWriter,
    bytes: Vec<u8>,
}

impl Player<'_> {
    async fn decode(&mut self, heard: &Heard, to: &mut (impl tokio::io::AsyncWrite + Unpin)) -> Result<(), PcmError> {
        let pcm = self.sound.decode(heard, StageCount::MAX).await?;
        self.bytes.clear();
        self.writer.push(pcm, &mut self.bytes);
        to.write_all(&self.bytes).await?;
        to.flush().await?;
        Ok(())
    }
}
