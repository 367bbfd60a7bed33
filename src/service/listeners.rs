//! Ports, admission, shutdown.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::hub::Hub;
use super::{Counters, Shared, codes, pcm};
use crate::config::{Config, PcmPort};
use crate::engine::EngineHandle;

/// How long a shutdown may take before what is left is dropped.
const DRAIN: Duration = Duration::from_secs(5);

/// Why the daemon could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A port could not be opened.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// What happened from start to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Connections accepted.
    pub connections: u64,
    /// Connections or streams refused for lack of room or a taken name, or that failed.
    pub refused: u64,
    /// Sessions closed because of what the peer sent or did not send.
    pub hostile: u64,
    /// Listeners closed because they did not keep up.
    pub slow: u64,
    /// Bundles published.
    pub bundles: u64,
}

enum Kind {
    Input(Arc<PcmPort>),
    Output(Arc<PcmPort>),
    Codes,
}

/// Open ports.
pub struct Bound {
    ports: Vec<(TcpListener, Kind)>,
    /// Addresses in the order raw in, raw out, codes; port 0 has become a real one.
    pub addresses: Vec<SocketAddr>,
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bound").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Bound {
    /// Opens every port of the configuration.
    ///
    /// Errors: [`ServiceError::Bind`] with the address.
    pub async fn open(config: &Config) -> Result<Self, ServiceError> {
        let input = config.pcm_input.iter().map(|p| (p.listen, Kind::Input(Arc::new(p.clone()))));
        let output = config.pcm_output.iter().map(|p| (p.listen, Kind::Output(Arc::new(p.clone()))));
        let codes = config.codes.iter().map(|&a| (a, Kind::Codes));
        let mut bound = Self { ports: Vec::new(), addresses: Vec::new() };
        for (address, kind) in input.chain(output).chain(codes) {
            let bind = |source| ServiceError::Bind { address, source };
            let listener = TcpListener::bind(address).await.map_err(bind)?;
            bound.addresses.push(listener.local_addr().map_err(bind)?);
            bound.ports.push((listener, kind));
        }
        Ok(bound)
    }
}

/// Serves until `shutdown`, then stops input, flushes encoders, drains listeners, and gives up after 5 s.
pub async fn run(
    bound: Bound,
    engine: EngineHandle,
    config: watch::Receiver<Arc<Config>>,
    shutdown: impl Future<Output = ()>,
) -> Summary {
    let shared = Shared {
        engine,
        hub: Arc::new(Hub::default()),
        stop_input: CancellationToken::new(),
        stop_output: CancellationToken::new(),
        counters: Arc::new(Counters::default()),
        config,
    };
    let room = Arc::new(Semaphore::new(shared.config.borrow().limits.max_connections));
    let (inputs, outputs) = (TaskTracker::new(), TaskTracker::new());
    let accepting = TaskTracker::new();
    for (listener, kind) in bound.ports {
        let (shared, room) = (shared.clone(), Arc::clone(&room));
        let tracker = if matches!(kind, Kind::Output(_)) { outputs.clone() } else { inputs.clone() };
        accepting.spawn(accept(listener, kind, shared, room, tracker));
    }
    shutdown.await;
    let (streams, listeners) = shared.hub.count();
    info!(streams, listeners, "shutting down");
    shared.stop_input.cancel();
    accepting.close();
    accepting.wait().await;
    let drain = async {
        // Publishers and encoders end first; subscribers share their port, so only the streams' end is waited for.
        while shared.hub.count().0 > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        shared.stop_output.cancel();
        inputs.close();
        outputs.close();
        inputs.wait().await;
        outputs.wait().await;
    };
    if tokio::time::timeout(DRAIN, drain).await.is_err() {
        warn!("connections were still busy after {DRAIN:?} and are dropped");
    }
    let counters = &shared.counters;
    Summary {
        connections: counters.connections.load(Ordering::Relaxed),
        refused: counters.refused.load(Ordering::Relaxed),
        hostile: counters.hostile.load(Ordering::Relaxed),
        slow: counters.slow.load(Ordering::Relaxed),
        bundles: counters.bundles.load(Ordering::Relaxed),
    }
}

async fn accept(listener: TcpListener, kind: Kind, shared: Shared, room: Arc<Semaphore>, tracker: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            () = shared.stop_input.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of descriptors, most likely: wait for some to be freed.
                warn!(error = %e, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        Counters::add(&shared.counters.connections);
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            Counters::add(&shared.counters.refused);
            warn!(%peer, "all connections of limits.max_connections are in use");
            continue;
        };
        let _ = socket.set_nodelay(true);
        let served = serve(&kind, shared.clone(), socket, peer);
        tracker.spawn(async move {
            served.await;
            drop(permit);
        });
    }
}

fn serve(
    kind: &Kind,
    shared: Shared,
    socket: TcpStream,
    peer: SocketAddr,
) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
    match kind {
        Kind::Input(port) => Box::pin(pcm::serve_input(shared, Arc::clone(port), socket)),
        Kind::Output(port) => Box::pin(pcm::serve_output(shared, Arc::clone(port), socket)),
        Kind::Codes => Box::pin(codes::serve(shared, socket, peer)),
    }
}
