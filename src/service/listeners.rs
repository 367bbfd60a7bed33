//! Ports, admission, shutdown.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::access::{Gate, Purpose};
use super::cluster::Cluster;
use super::devices::Devices;
use super::door::{Door, Room};
use super::hub::Hub;
use super::outbox::Outbox;
use super::quic::{Port, PortError};
use super::record::{self, Recorder};
use super::sockets::{self, Pulse};
use super::tls::{Server, Socket, TlsError};
use super::web::PageCodec;
use super::{Coding, Counters, Shared, codes, http, pcm};
use crate::bus::{Bus, BusError};
use crate::config::{Config, PcmPort, Record};
use crate::engine::EngineHandle;
use crate::session::{Close, Reason};
use crate::token::TokenModel;

/// How long a shutdown may take before what is left is dropped.
const DRAIN: Duration = Duration::from_secs(5);

/// How long a TLS handshake that is under way may go on while the daemon stops.
const LAST_HANDSHAKES: Duration = Duration::from_millis(500);

/// Connections at once that are told why they are refused; beyond these they are dropped without a word.
const REFUSALS: usize = 16;

/// Why the daemon could not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// A port could not be opened.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A listener was passed that no port of the configuration has the address of.
    #[error("a socket was passed for {0}, but no port of the configuration listens there; they listen on: {1}")]
    Passed(SocketAddr, String),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Recordings cannot be written.
    #[error("record.folder = {folder}: {source}")]
    Record {
        /// The folder.
        folder: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// NATS could not be set up; that it is away is no error.
    #[error(transparent)]
    Bus(#[from] BusError),
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
    /// Sessions that asked for coded bundles and got packed ones.
    pub fallbacks: u64,
}

impl Summary {
    fn of(counters: &Counters) -> Self {
        Self {
            connections: counters.connections.load(Ordering::Relaxed),
            refused: counters.refused.load(Ordering::Relaxed),
            hostile: counters.hostile.load(Ordering::Relaxed),
            slow: counters.slow.load(Ordering::Relaxed),
            bundles: counters.bundles.load(Ordering::Relaxed),
            fallbacks: counters.fallbacks.load(Ordering::Relaxed),
        }
    }
}

enum Kind {
    Input(Arc<PcmPort>),
    Output(Arc<PcmPort>),
    Codes,
    Http,
}

impl Kind {
    fn plain(&self) -> bool {
        match self {
            Self::Input(port) | Self::Output(port) => port.plain,
            Self::Codes | Self::Http => false,
        }
    }

    fn purpose(&self) -> Purpose {
        match self {
            Self::Input(_) | Self::Output(_) | Self::Codes => Purpose::Sound,
            Self::Http => Purpose::Http,
        }
    }

    /// Whether nobody stays on this port without having logged in, or it is the operators'.
    fn may_use_reserve(&self, config: &Config) -> bool {
        let certified = !self.plain() && config.tls.as_ref().is_some_and(|t| t.client_ca.is_some());
        match self {
            Self::Input(_) | Self::Output(_) => certified,
            Self::Codes => certified || !config.tokens.is_empty(),
            Self::Http => true,
        }
    }
}

/// Open ports.
pub struct Bound {
    ports: Vec<(TcpListener, Kind)>,
    tls: Option<Arc<Server>>,
    bus: Option<Bus>,
    recorder: Option<Recorder>,
    quic: Option<Port>,
    page_codec: Option<Arc<PageCodec>>,
    /// Addresses in the order raw in, raw out, codes, HTTP, QUIC; port 0 has become a real one.
    pub addresses: Vec<SocketAddr>,
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bound").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// Whether what a configuration names can be used, as far as that shows without opening a port: certificates, keys, the
/// credentials for NATS, the folder for recordings.
///
/// # Errors
/// [`ServiceError`] with the file or folder.
pub fn check(config: &Config) -> Result<(), ServiceError> {
    config.tls.as_ref().map(Server::load).transpose()?;
    config.nats.as_ref().map(|nats| nats.bus.check()).transpose()?;
    config.record.as_ref().map(|r| record::check(r).map_err(no_folder(r))).transpose()?;
    Ok(())
}

fn no_folder(record: &Record) -> impl FnOnce(std::io::Error) -> ServiceError + '_ {
    |source| ServiceError::Record { folder: record.folder.clone(), source }
}

impl Bound {
    /// Offers pages what they need to decode and encode by themselves.
    pub fn offer(&mut self, codec: PageCodec) {
        self.page_codec = Some(Arc::new(codec));
    }

    /// Opens every port of the configuration.
    ///
    /// # Errors
    /// [`ServiceError`] with the address or the file.
    pub async fn open(config: &Config) -> Result<Self, ServiceError> {
        Self::open_with(config, Vec::new()).await
    }

    /// Opens every port of the configuration; listeners that somebody else opened take the place of ports with the same
    /// address.
    ///
    /// # Errors
    /// [`ServiceError`] with the address or the file.
    pub async fn open_with(config: &Config, passed: Vec<std::net::TcpListener>) -> Result<Self, ServiceError> {
        let mut passed: Vec<(SocketAddr, std::net::TcpListener)> =
            passed.into_iter().filter_map(|l| Some((l.local_addr().ok()?, l))).collect();
        let input = config.pcm_input.iter().map(|p| (p.listen, Kind::Input(Arc::new(p.clone()))));
        let output = config.pcm_output.iter().map(|p| (p.listen, Kind::Output(Arc::new(p.clone()))));
        let codes = config.codes.iter().map(|&a| (a, Kind::Codes));
        let tls = config.tls.as_ref().map(Server::load).transpose()?.map(Arc::new);
        let http = config.http.listen.iter().map(|&a| (a, Kind::Http));
        let bus = match &config.nats {
            Some(nats) => Some(Bus::start(&nats.bus).await?),
            None => None,
        };
        let recorder = match &config.record {
            Some(record) => Some(Recorder::open(record.clone()).await.map_err(no_folder(record))?),
            None => None,
        };
        let mut bound =
            Self { tls, bus, recorder, page_codec: None, quic: None, ports: Vec::new(), addresses: Vec::new() };
        let wanted: Vec<(SocketAddr, Kind)> = input.chain(output).chain(codes).chain(http).collect();
        if let Some((stray, _)) = passed.iter().find(|(a, _)| wanted.iter().all(|(w, _)| w != a)) {
            let all: Vec<String> = wanted.iter().map(|(a, _)| a.to_string()).collect();
            return Err(ServiceError::Passed(*stray, all.join(", ")));
        }
        for (address, kind) in wanted {
            let bind = |source| ServiceError::Bind { address, source };
            let buffer = match &kind {
                Kind::Codes | Kind::Http => config.limits.send_buffer,
                Kind::Input(port) | Kind::Output(port) => config.limits.send_buffer.max(one_second(port)),
            };
            let listener = match passed.iter().position(|(a, _)| *a == address) {
                Some(at) => sockets::adopt(passed.swap_remove(at).1),
                None => sockets::listen(address, buffer),
            };
            let listener = listener.map_err(bind)?;
            bound.addresses.push(listener.local_addr().map_err(bind)?);
            bound.ports.push((listener, kind));
        }
        if let Some(address) = config.quic {
            let bind = |source| ServiceError::Bind { address, source };
            let port = Port::open(address, bound.tls.as_deref()).map_err(|e| match e {
                PortError::Io(e) => bind(e),
                PortError::Tls(e) => e.into(),
            })?;
            bound.addresses.push(port.address().map_err(bind)?);
            bound.quic = Some(port);
        }
        Ok(bound)
    }
}

/// Bytes of a second of samples.
fn one_second(port: &PcmPort) -> u32 {
    u32::try_from(port.format.bytes_per_sample()).unwrap_or(u32::MAX).saturating_mul(port.format.rate.hz())
}

/// Serves until `shutdown`; with `tokens`, sessions that have the same token model are coded. Then it stops input, flushes
/// encoders, drains listeners, and gives up after 5 s.
pub async fn run(
    bound: Bound,
    engine: EngineHandle,
    tokens: Option<Arc<TokenModel>>,
    config: watch::Receiver<Arc<Config>>,
    shutdown: impl Future<Output = ()>,
) -> Summary {
    let devices = Devices::new(&config.borrow());
    let joiner = bound.recorder.as_ref().map(Recorder::joiner);
    let recorded = bound.recorder.as_ref().map(Recorder::counts).unwrap_or_default();
    let shared = Shared {
        engine,
        hub: Arc::new(Hub::new(joiner)),
        stop_input: CancellationToken::new(),
        stop_output: CancellationToken::new(),
        counters: Arc::new(Counters { recorded, ..Counters::default() }),
        guesses: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from))),
        coding: tokens.map(|t| Coding::new(t, config.borrow().limits.coded_sessions)),
        devices: devices.states().into(),
        tls: bound.tls,
        page_codec: bound.page_codec,
        cluster: bound.bus.map(|bus| Arc::new(Cluster::new(bus))),
        config,
    };
    let _relaying = shared.cluster.as_ref().map(|cluster| relay(cluster, &shared));
    let gate = Arc::new(Gate::default());
    let (room, refusals) = (Arc::new(Room::default()), Arc::new(Semaphore::new(REFUSALS)));
    let (inputs, outputs) = (TaskTracker::new(), TaskTracker::new());
    let accepting = TaskTracker::new();
    let door = || Door { room: Arc::clone(&room), gate: Arc::clone(&gate), refusals: Arc::clone(&refusals) };
    if let Some(port) = bound.quic {
        accepting.spawn(port.serve(shared.clone(), door(), inputs.clone()));
    }
    for (listener, kind) in bound.ports {
        let tracker = if matches!(kind, Kind::Output(_)) { outputs.clone() } else { inputs.clone() };
        accepting.spawn(accept(listener, kind, shared.clone(), door(), tracker));
    }
    devices.start(&shared, &inputs, &outputs);
    accepting.spawn(renew(shared.clone()));
    let recording = bound.recorder.map(|r| tokio::spawn(r.run(shared.clone())));
    shutdown.await;
    let (streams, listeners) = shared.hub.count();
    info!(streams, listeners, "shutting down");
    shared.stop_input.cancel();
    accepting.close();
    accepting.wait().await;
    if tokio::time::timeout(DRAIN, drain(&shared, &inputs, &outputs)).await.is_err() {
        warn!("connections were still busy after {DRAIN:?} and are dropped");
    }
    shared.stop_output.cancel();
    if let Some(recording) = recording
        && tokio::time::timeout(record::PATIENCE, recording).await.is_err()
    {
        warn!("the disk took more than {:?}: the last bundles are not recorded", record::PATIENCE);
    }
    Summary::of(&shared.counters)
}

/// Waits until everybody has been served who is still there.
async fn drain(shared: &Shared, inputs: &TaskTracker, outputs: &TaskTracker) {
    // Publishers and encoders end first; subscribers share their port, so only the streams' end is waited for.
    while shared.hub.count().0 > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if let Some(cluster) = &shared.cluster {
        cluster.drained().await;
    }
    shared.stop_output.cancel();
    inputs.close();
    outputs.close();
    inputs.wait().await;
    outputs.wait().await;
}

/// Ends a task when dropped.
struct Running(tokio::task::JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Fetches streams of other daemons, and has streams kept, until dropped.
fn relay(cluster: &Arc<Cluster>, shared: &Shared) -> [Running; 2] {
    let (here, hub, profile) = (Arc::clone(cluster), Arc::clone(&shared.hub), shared.engine.profile());
    let relaying = tokio::spawn(async move { here.relay(&hub, &profile).await });
    let here = Arc::clone(cluster);
    let kept = shared.config.borrow().nats.as_ref().and_then(|n| n.kept);
    let keeping = tokio::spawn(async move {
        if let Some(kept) = kept {
            here.keep(kept).await;
        }
    });
    [Running(relaying), Running(keeping)]
}

/// Follows the configuration in what is not asked of it each time: the effort, and the certificates, which are read again.
async fn renew(shared: Shared) {
    let mut config = shared.config.clone();
    config.mark_unchanged();
    loop {
        shared.engine.set_effort(config.borrow().codec.effort);
        tokio::select! {
            () = shared.stop_input.cancelled() => return,
            changed = config.changed() => if changed.is_err() { return },
        }
        let Some(server) = &shared.tls else { continue };
        let tls = config.borrow().tls.clone();
        match tls.as_ref().map(|tls| server.reload(tls)) {
            Some(Ok(())) => info!("certificates read again"),
            Some(Err(e)) => warn!(error = %e, "the certificates stay as they were"),
            // Switching TLS off needs a restart.
            None => {}
        }
    }
}

async fn accept(listener: TcpListener, kind: Kind, shared: Shared, door: Door, tracker: TaskTracker) {
    let kind = Arc::new(kind);
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
        let (limits, may_use_reserve) = {
            let config = shared.config.borrow();
            (config.limits, kind.may_use_reserve(&config))
        };
        let guest = match door.enter(peer, kind.purpose(), &limits, may_use_reserve) {
            Ok(entered) => entered,
            Err(why) => {
                Counters::add(&shared.counters.refused);
                let Some(why) = why else { continue };
                warn!(%peer, why);
                // Samples have no words; a peer that speaks the protocol is told.
                if let (Kind::Codes, Ok(word)) = (kind.as_ref(), Arc::clone(&door.refusals).try_acquire_owned()) {
                    let (shared, kind) = (shared.clone(), Arc::clone(&kind));
                    tracker.spawn(async move {
                        if let Some(socket) = secure(&shared, &kind, socket, peer).await {
                            codes::goodbye(socket, Outbox::default(), Close::new(Reason::Full, why)).await;
                        }
                        drop(word);
                    });
                }
                continue;
            }
        };
        let _ = socket.set_nodelay(true);
        sockets::keep_alive(&socket, limits.timeouts.idle);
        if matches!(kind.as_ref(), Kind::Codes | Kind::Http) {
            sockets::give_up(&socket, limits.timeouts.idle);
        }
        let pulse = if matches!(kind.as_ref(), Kind::Output(_)) { Pulse::of(&socket) } else { None };
        let (shared, kind) = (shared.clone(), Arc::clone(&kind));
        tracker.spawn(async move {
            if let Some(socket) = secure(&shared, &kind, socket, peer).await {
                match kind.as_ref() {
                    Kind::Input(port) => pcm::serve_input(shared, Arc::clone(port), socket, &guest).await,
                    Kind::Output(port) => pcm::serve_output(shared, Arc::clone(port), socket, &guest, pulse).await,
                    Kind::Codes => codes::serve(shared, socket, &guest, codes::Via::Port).await,
                    Kind::Http => http::serve(shared, socket, &guest).await,
                }
            }
        });
    }
}

/// The connection after its TLS handshake, if the port has TLS; None if that failed or took too long.
async fn secure(shared: &Shared, kind: &Kind, socket: TcpStream, peer: SocketAddr) -> Option<Socket> {
    let server = match &shared.tls {
        Some(server) if !kind.plain() => server,
        _ => return Some(Box::new(socket)),
    };
    let patience = shared.config.borrow().limits.timeouts.handshake;
    // Whoever arrives while the daemon stops can still be told so, and what failed is still counted.
    let stopped = async {
        shared.stop_input.cancelled().await;
        tokio::time::sleep(LAST_HANDSHAKES).await;
    };
    let error = tokio::select! {
        biased;
        done = tokio::time::timeout(patience, server.accept(socket)) => match done {
            Ok(Ok(socket)) => return Some(socket),
            Ok(Err(e)) => e.to_string(),
            Err(_) => format!("no TLS handshake within {patience:?}"),
        },
        () = stopped => return None,
    };
    Counters::add(&shared.counters.hostile);
    warn!(%peer, error, "TLS handshake failed");
    None
}
