//! The daemon: listeners, connections, streams, shutdown.

mod access;
mod client;
mod cluster;
mod codes;
mod devices;
mod ending;
mod http;
mod hub;
mod listeners;
mod metrics;
mod outbox;
mod pacer;
mod pcm;
mod record;
mod tls;
mod udp;
mod web;

pub use client::{Client, ClientError, ClientOptions};
pub use listeners::{Bound, ServiceError, Summary, run};
pub use tls::{ClientTls, TlsError};
pub use udp::{UdpClient, UdpEvent};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::engine::{EngineError, EngineHandle, Histogram, Job, Slot};
use crate::session::{PackedBundle, TokenTag};
use crate::token::TokenModel;
use hub::Hub;

/// What connections share.
#[derive(Clone)]
pub(crate) struct Shared {
    engine: EngineHandle,
    hub: Arc<Hub>,
    /// None is plain TCP.
    tls: Option<Arc<tls::Server>>,
    config: watch::Receiver<Arc<Config>>,
    /// Cancelled first: nobody may bring anything new.
    stop_input: CancellationToken,
    /// Cancelled when the input has been flushed: listeners get what is queued and are closed.
    stop_output: CancellationToken,
    counters: Arc<Counters>,
    coding: Option<Coding>,
    devices: Arc<[devices::DeviceState]>,
    /// None unless other daemons are reached through NATS.
    cluster: Option<Arc<cluster::Cluster>>,
}

/// What coded sessions need: the token model, its tag, and room.
#[derive(Clone)]
struct Coding {
    model: Arc<TokenModel>,
    tag: TokenTag,
    room: Arc<Semaphore>,
}

impl Coding {
    fn new(model: Arc<TokenModel>, sessions: usize) -> Self {
        Self { tag: TokenTag::of(&model), model, room: Arc::new(Semaphore::new(sessions)) }
    }
}

/// Stages that a bundle may have.
const MAX_STAGES: usize = crate::units::MAX_STAGES as usize;

/// A code is an index into 1024 entries.
const BITS_PER_CODE: u64 = 10;

/// What happened since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    connections: AtomicU64,
    refused: AtomicU64,
    hostile: AtomicU64,
    slow: AtomicU64,
    bundles: AtomicU64,
    fallbacks: AtomicU64,
    recorded: Arc<record::Recorded>,
    /// Bits of code by stage.
    stage_bits: [AtomicU64; MAX_STAGES],
    /// How long messages to peers took to leave.
    send: Histogram,
    udp: udp::UdpCounters,
}

impl Counters {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a bundle that is published.
    fn bundle(&self, bundle: &PackedBundle) {
        Self::add(&self.bundles);
        for stage in self.stage_bits.iter().take(bundle.stages.index()) {
            stage.fetch_add(u64::from(bundle.frames) * BITS_PER_CODE, Ordering::Relaxed);
        }
    }
}

/// Runs one job in the engine and waits for it.
///
/// Errors: why the engine did not run it.
async fn process(slot: &Slot, job: Job, within: std::time::Duration) -> Result<Job, EngineError> {
    let (tell, told) = oneshot::channel();
    let done = Box::new(move |result| {
        let _ = tell.send(result);
    });
    slot.submit(job, std::time::Instant::now() + within, done)?;
    told.await.unwrap_or(Err(EngineError::Stopped))
}
