//! NATS: live streams between daemons, streams that are kept for replay, and a queue of recordings to encode.
//!
//! ```text
//! PREFIX.v1.live.STREAM.LAYER    bundles, cut into layers of stages; kept for replay if that is configured
//! PREFIX.v1.claim.STREAM         who publishes a stream says so here, and answers whoever asks
//! PREFIX.v1.job.BATCH.NUMBER     a recording to encode
//! PREFIX.v1.done.BATCH.NUMBER    what became of it
//! PREFIX.v1.dead.BATCH.NUMBER    why nothing will become of it
//! ```
//! A dot in a name of a stream becomes `~` in a subject: dots separate a subject's parts.

pub mod following;
pub mod jobs;
pub mod layers;
mod live;
mod replay;
mod rights;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream;
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use tokio::sync::watch;

use crate::session::StreamName;

pub use live::{Claim, Heard, LiveStream};
pub use replay::{Kept, Replay, parse_time};

/// Messages that a subscription may hold; beyond them NATS' client drops, and counts.
const SUBSCRIPTION_QUEUE: usize = 1024;

/// Messages on their way to the server; while it is away nothing is put here.
const CLIENT_QUEUE: usize = 2048;

/// Longest wait between two attempts to connect.
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// How long answers may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Where NATS is and what to call things there.
#[derive(Clone, PartialEq, Eq)]
pub struct BusOptions {
    /// Addresses, separated by commas: `nats://HOST:4222`, `tls://HOST:4222`.
    pub url: String,
    /// Credentials file of NATS.
    pub credentials: Option<PathBuf>,
    /// Authorities of the server's certificate; None are the system's.
    pub ca: Option<PathBuf>,
    /// First part of every subject.
    pub prefix: Prefix,
}

impl std::fmt::Debug for BusOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The address may hold a password.
        f.debug_struct("BusOptions").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl BusOptions {
    /// Whether the files can be read and the addresses are some; whether NATS is there is not asked.
    ///
    /// # Errors
    /// [`BusError`] naming the file.
    pub fn check(&self) -> Result<(), BusError> {
        for path in self.credentials.iter().chain(&self.ca) {
            std::fs::File::open(path).map_err(|source| BusError::Credentials { path: path.clone(), source })?;
        }
        self.addresses().map(|_| ())
    }

    fn addresses(&self) -> Result<Vec<ServerAddr>, BusError> {
        // The reason for a wrong one could repeat its password.
        let wrong = |_| BusError::Connect("an address is not nats://HOST:PORT or tls://HOST:PORT".to_owned());
        self.url.split(',').map(|a| a.trim().parse().map_err(wrong)).collect()
    }
}

/// First part of every subject, 1 to 32 characters of `A-Z a-z 0-9 _ -`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    ///
    /// # Errors
    /// `OutOfRange` for another length or other characters.
    pub fn new(prefix: &str) -> Result<Self, crate::units::OutOfRange> {
        if token(prefix, 32) {
            Ok(Self(prefix.to_owned()))
        } else {
            let got = prefix.chars().take(40).flat_map(char::escape_default).collect();
            Err(crate::units::OutOfRange { what: "prefix", got, allowed: "1 to 32 characters of A-Z a-z 0-9 _ -" })
        }
    }

    fn subject(&self, kind: &str, rest: &str) -> String {
        format!("{}.v1.{kind}.{rest}", self.0)
    }

    /// Name of a stream of JetStream, which must not have dots.
    fn kept(&self, kind: &str) -> String {
        format!("{}-{kind}", self.0)
    }
}

impl Default for Prefix {
    fn default() -> Self {
        Self("undertone".to_owned())
    }
}

/// Whether a text can be a part of a subject and of a name in JetStream.
fn token(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// A name of a stream as part of a subject.
fn stream_token(name: &StreamName) -> String {
    name.as_str().replace('.', "~")
}

/// Why NATS did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The credentials, or the authorities, could not be read.
    #[error("nats: {path}: {source}")]
    Credentials {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// There is no connection, or it could not be made.
    #[error("nats: {0}")]
    Connect(String),
    /// The server refused something, or did not answer.
    #[error("nats: cannot {what}: {why}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// The server's or the client's reason.
        why: String,
    },
    /// A job that cannot be done by anybody.
    #[error("job: {0}")]
    Job(String),
}

fn refused<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> BusError {
    move |why| BusError::Refused { what, why: why.to_string() }
}

/// What happened on the bus since the start.
#[derive(Debug, Default)]
pub struct BusCounters {
    /// Bundles published.
    pub published: AtomicU64,
    /// Messages published: a bundle is several.
    pub messages: AtomicU64,
    /// Bytes of their payload.
    pub bytes: AtomicU64,
    /// Bundles that were not published: NATS was away or too slow.
    pub dropped: AtomicU64,
    /// Bundles of other daemons that came whole enough to be passed on.
    pub received: AtomicU64,
    /// Bundles of other daemons that never came.
    pub lost: AtomicU64,
    /// Messages that made no sense, or were of another model.
    pub malformed: AtomicU64,
    /// Times that a subscription was found full.
    pub overflowed: AtomicU64,
    /// Connections made, the first one included.
    pub connects: AtomicU64,
}

impl BusCounters {
    /// Counts.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// A connection to NATS that comes back by itself.
#[derive(Clone)]
pub struct Bus {
    client: Client,
    prefix: Prefix,
    /// Tells this process from all others.
    id: u64,
    counters: Arc<BusCounters>,
    connections: watch::Receiver<u64>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus").field("prefix", &self.prefix.0).finish_non_exhaustive()
    }
}

impl Bus {
    /// Connects in the background, and again whenever the connection is lost, waiting longer after every failure.
    ///
    /// # Errors
    /// [`BusError`] if the credentials cannot be read or the address is none.
    pub async fn start(options: &BusOptions) -> Result<Self, BusError> {
        Self::open(options, true).await
    }

    /// Connects now.
    ///
    /// # Errors
    /// [`BusError`] if that cannot be done.
    pub async fn connect(options: &BusOptions) -> Result<Self, BusError> {
        Self::open(options, false).await
    }

    async fn open(options: &BusOptions, background: bool) -> Result<Self, BusError> {
        let counters = Arc::new(BusCounters::default());
        let events = Arc::clone(&counters);
        let (made, connections) = watch::channel(0);
        let mut connect = ConnectOptions::new()
            .name("undertone")
            // A daemon must not hear itself: neither its streams nor its claims.
            .no_echo()
            .subscription_capacity(SUBSCRIPTION_QUEUE)
            .client_capacity(CLIENT_QUEUE)
            .request_timeout(Some(ANSWER))
            .ping_interval(Duration::from_secs(10))
            .reconnect_delay_callback(|attempts| {
                let exponent = u32::try_from(attempts).unwrap_or(u32::MAX).min(10);
                (Duration::from_millis(25) * 2u32.pow(exponent)).min(LONGEST_BACKOFF)
            })
            .event_callback(move |event| {
                let (counters, made) = (Arc::clone(&events), made.clone());
                async move {
                    match event {
                        Event::Connected => {
                            BusCounters::add(&counters.connects, 1);
                            made.send_modify(|n| *n += 1);
                            tracing::info!("nats: connected");
                        }
                        Event::Disconnected => tracing::warn!("nats: connection lost, trying again"),
                        Event::SlowConsumer(_) => BusCounters::add(&counters.overflowed, 1),
                        // We did that.
                        Event::Closed => {}
                        other => tracing::warn!("nats: {other}"),
                    }
                }
            });
        if let Some(path) = &options.credentials {
            connect = connect
                .credentials_file(path)
                .await
                .map_err(|source| BusError::Credentials { path: path.clone(), source })?;
        }
        if let Some(ca) = &options.ca {
            connect = connect.add_root_certificates(ca.clone()).require_tls(true);
        }
        if background {
            connect = connect.retry_on_initial_connect();
        }
        let addresses = options.addresses()?;
        let client = connect.connect(addresses).await.map_err(|e| BusError::Connect(e.to_string()))?;
        let id = getrandom::u64().map_err(|e| BusError::Connect(e.to_string()))?;
        Ok(Self { client, prefix: options.prefix.clone(), id, counters, connections })
    }

    /// What happened since the start.
    pub fn counters(&self) -> &BusCounters {
        &self.counters
    }

    /// Number of the connection, which changes whenever one is made.
    pub fn connections(&self) -> watch::Receiver<u64> {
        self.connections.clone()
    }

    /// Whether NATS can be reached now.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Waits until what was published has reached the server.
    ///
    /// # Errors
    /// [`BusError`] if it did not within five seconds.
    pub async fn flush(&self) -> Result<(), BusError> {
        match tokio::time::timeout(ANSWER, self.client.flush()).await {
            Ok(flushed) => flushed.map_err(refused("flush")),
            Err(_) => Err(refused("flush")("no answer")),
        }
    }

    fn jetstream(&self) -> jetstream::Context {
        let mut context = jetstream::new(self.client.clone());
        context.set_timeout(ANSWER);
        context
    }
}
