//! What the tasks of the daemon share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::cluster::Cluster;
use super::hub::{Hub, Listener, Publisher};
use super::quic::QuicCounters;
use super::record::Recorded;
use super::tls;
use super::web::PageCodec;
use crate::bitstream::Bundle;
use crate::capture::device::DeviceStats;
use crate::codec::{EncodeJob, Encoder, Work};
use crate::config::{Config, DevicePort};
use crate::engine::{EngineError, EngineHandle, Histogram, Job, SearchJob, Slot};
use crate::jitter::{Backlog, Keep};
use crate::profile::Profile;
use crate::session::{PackedBundle, Reason, StreamName, TokenTag};
use crate::synthesis::Track;
use crate::token::TokenModel;
use crate::units::{CODEC_RATE, MAX_STAGES};

/// What connections share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) engine: EngineHandle,
    pub(super) hub: Arc<Hub>,
    /// None is plain TCP.
    pub(super) tls: Option<Arc<tls::Server>>,
    pub(super) config: watch::Receiver<Arc<Config>>,
    /// Cancelled first: nobody may bring anything new.
    pub(super) stop_input: CancellationToken,
    /// Cancelled when the input has been flushed: listeners get what is queued and are closed.
    pub(super) stop_output: CancellationToken,
    pub(super) counters: Arc<Counters>,
    pub(super) coding: Option<Coding>,
    /// Guesses of lost sound that may be made at once; whoever finds no room repeats the last frame.
    pub(super) guesses: Arc<Semaphore>,
    pub(super) devices: Arc<[DeviceState]>,
    /// What pages decode with by themselves; None if the daemon has nothing to offer.
    pub(super) page_codec: Option<Arc<PageCodec>>,
    /// None unless other daemons are reached through NATS.
    pub(super) cluster: Option<Arc<Cluster>>,
}

impl Shared {
    /// Joins a stream with a queue as the configuration has it.
    pub(super) fn listen(&self, name: &StreamName, keep: Keep) -> Listener {
        let limits = self.config.borrow().limits;
        self.hub.listen(name, Backlog::new(keep, limits.listener_queue, limits.max_lag))
    }

    /// Counts what a listener did without that plays in real time, and says so.
    pub(super) fn skipped(&self, listener: &mut Listener, stream: &StreamName) -> u64 {
        let frames = listener.take_skipped();
        if frames > 0 {
            self.counters.skipped.fetch_add(frames, Ordering::Relaxed);
            warn!(%stream, frames, "a listener does not keep up and skips ahead");
        }
        frames
    }

    /// The right to publish a stream here and, with NATS, on all daemons; None if somebody has it already.
    pub(super) async fn publish(&self, name: &StreamName) -> Option<Publisher> {
        match &self.cluster {
            Some(cluster) => cluster.publish(&self.hub, name, self.engine.profile().model_id).await,
            None => self.hub.publish(name),
        }
    }
}

/// A device as operators see it.
#[derive(Debug, Clone)]
pub(super) struct DeviceState {
    /// `input` or `output`.
    pub(super) direction: &'static str,
    pub(super) port: DevicePort,
    pub(super) stats: Arc<DeviceStats>,
}

/// What coded sessions need: the token model, its tag, and room.
#[derive(Clone)]
pub(super) struct Coding {
    pub(super) model: Arc<TokenModel>,
    pub(super) tag: TokenTag,
    pub(super) room: Arc<Semaphore>,
}

impl Coding {
    pub(super) fn new(model: Arc<TokenModel>, sessions: usize) -> Self {
        Self { tag: TokenTag::of(&model), model, room: Arc::new(Semaphore::new(sessions)) }
    }
}

/// What happened since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) connections: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) hostile: AtomicU64,
    pub(super) slow: AtomicU64,
    /// Bundles of publishers that were dropped because they were too late, and frames that slow listeners did without.
    pub(super) stale: AtomicU64,
    pub(super) skipped: AtomicU64,
    pub(super) bundles: AtomicU64,
    pub(super) fallbacks: AtomicU64,
    /// Bundles that were coded for listeners, and coded bundles that were sent to them.
    pub(super) coder_runs: AtomicU64,
    pub(super) coded: AtomicU64,
    /// Bytes without a meaning in messages to listeners, which make them equally long.
    pub(super) padding: AtomicU64,
    pub(super) recorded: Arc<Recorded>,
    /// Bits of code by stage.
    pub(super) stage_bits: [AtomicU64; MAX_STAGES as usize],
    /// How long messages to peers took to leave.
    pub(super) send: Histogram,
    pub(super) quic: QuicCounters,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts why a session ended, unless it ended as it should.
    pub(super) fn ended(&self, reason: Reason) {
        match reason {
            Reason::Protocol | Reason::Timeout | Reason::Model => Self::add(&self.hostile),
            Reason::Busy | Reason::Full | Reason::Denied => Self::add(&self.refused),
            Reason::SlowConsumer => Self::add(&self.slow),
            Reason::StreamEnded | Reason::Done | Reason::ShuttingDown => {}
        }
    }

    /// Counts a bundle that is published.
    pub(super) fn bundle(&self, bundle: &PackedBundle) {
        Self::add(&self.bundles);
        for (stage, frames) in self.stage_bits.iter().zip(bundle.frames_by_stage()) {
            stage.fetch_add(u64::from(frames) * u64::from(Profile::BITS_PER_CODE), Ordering::Relaxed);
        }
    }
}

/// The next bundle of a stream, encoded in the engine; None if samples are missing.
///
/// # Errors
/// Why the engine did not run a job.
pub(super) async fn encode(
    slot: &Slot,
    encoder: &mut Encoder,
    searcher: &mut Searcher,
) -> Result<Option<Bundle>, EngineError> {
    loop {
        if let Some(bundle) = encoder.next_bundle() {
            return Ok(Some(bundle));
        }
        let Some(job) = encoder.next_job() else { return Ok(None) };
        let within = Profile::FRAME_TIME * job.frames as u32;
        let job = if searcher.wants(encoder) {
            searcher.searched(slot, job, within).await?
        } else {
            process(slot, job, within).await?
        };
        encoder.accept(job);
    }
}

/// Samples that may wait while a stream's latents are searched for; with more it is behind, and goes on without.
const BEHIND: usize = CODEC_RATE.hz() as usize / 4;

/// Bundles that are not searched for after one that took so long that the next had to wait.
const REST: u32 = 20;

/// The search of one stream, as far as there is time for it.
pub(super) struct Searcher {
    engine: EngineHandle,
    track: Option<Track>,
    /// Bundles that are left alone.
    rest: u32,
}

impl Searcher {
    pub(super) fn new(engine: &EngineHandle) -> Self {
        Self { engine: engine.clone(), track: None, rest: 0 }
    }

    /// Whether what was taken from the encoder is to be searched for; what is not breaks the track.
    fn wants(&mut self, encoder: &Encoder) -> bool {
        let in_time = self.rest == 0 && encoder.backlog() < BEHIND;
        self.rest = self.rest.saturating_sub(1);
        let wants = in_time && encoder.is_active() && self.engine.effort().is_some_and(|steps| steps > 0);
        if !wants {
            self.track = None;
        }
        wants
    }

    /// Runs a job with a search between its network and its codes. A search that does not come back in time is not waited for.
    async fn searched(&mut self, slot: &Slot, mut job: EncodeJob, within: Duration) -> Result<EncodeJob, EngineError> {
        job.work = Work::Latents;
        let mut job = process(slot, job, within).await?;
        let (pcm, latents) = (job.pcm.clone(), job.latents.clone());
        let search = SearchJob { track: self.track.take(), first_frame: job.first_frame, pcm, latents };
        let (tell, told) = oneshot::channel();
        self.engine.submit_search(search, within, move |done| drop(tell.send(done)));
        // It ends at half of that by itself, if its thread is let run.
        match timeout(within * 3 / 4, told).await {
            Ok(done) => {
                let done = done.map_err(|_| EngineError::Stopped)?;
                (self.track, job.latents) = (done.track, done.latents);
            }
            Err(_) => self.rest = REST,
        }
        job.work = Work::Codes;
        process(slot, job, within).await
    }
}

/// Runs one job in the engine and waits for it.
///
/// # Errors
/// Why the engine did not run it.
pub(super) async fn process<J>(slot: &Slot, job: J, within: Duration) -> Result<J, EngineError>
where
    J: Job + Send + 'static,
{
    let (tell, told) = oneshot::channel();
    let done = Box::new(move |result| {
        let _ = tell.send(result);
    });
    slot.submit(job, Instant::now() + within, done)?;
    told.await.unwrap_or(Err(EngineError::Stopped))
}
