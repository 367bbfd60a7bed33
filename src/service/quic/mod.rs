//! QUIC: one bundle a datagram, for networks that lose some, encrypted.
//!
//! Messages go over one stream of the connection, bundles and reports in datagrams. A client proves that it receives at its
//! address before anything is kept for it; afterwards it may move to another one, as behind a NAT.

mod client;
mod congestion;
mod counters;
mod flow;
mod link;
mod session;

pub use client::{Published, QuicClient, QuicEvent};
pub(super) use counters::ListenerState;
pub(crate) use counters::QuicCounters;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, EndpointConfig, Incoming, ServerConfig, TokioRuntime, ValidationTokenConfig};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::access::Purpose;
use super::door::Door;
use super::tls::{QuicSide, Server, TlsError};
use super::{Counters, Shared};

/// Connections that are not looked at yet, and bytes that are kept for them.
const INCOMING: usize = 256;
const INCOMING_BYTES: u64 = 1 << 20;

/// How long a proof of an address is good for.
const PROOF: Duration = Duration::from_secs(10);

/// An open port.
pub(super) struct Port {
    endpoint: Endpoint,
    config: ServerConfig,
    crypto: QuicSide,
}

impl Port {
    /// Opens a port with the certificates of `tls`, or with one made here, which only clients on this machine accept.
    pub(super) fn open(address: SocketAddr, tls: Option<&Server>) -> Result<Self, PortError> {
        let crypto = match tls {
            Some(server) => server.quic(),
            None => Server::made_here()?,
        };
        let mut config = ServerConfig::with_crypto(Arc::new(packets(&crypto)?));
        let mut tokens = ValidationTokenConfig::default();
        tokens.sent(0);
        config
            .transport_config(link::transport(1))
            .retry_token_lifetime(PROOF)
            .validation_token_config(tokens)
            .max_incoming(INCOMING)
            .incoming_buffer_size(INCOMING_BYTES)
            .incoming_buffer_size_total(INCOMING_BYTES);
        let socket = UdpSocket::bind(address)?;
        let (kind, runtime) = (EndpointConfig::default(), Arc::new(TokioRuntime));
        let endpoint = Endpoint::new(kind, Some(config.clone()), socket, runtime)?;
        Ok(Self { endpoint, config, crypto })
    }

    pub(super) fn address(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Serves the port until input stops; what is open then goes on.
    pub(super) async fn serve(mut self, shared: Shared, door: Door, tracker: TaskTracker) {
        loop {
            let incoming = tokio::select! {
                () = shared.stop_input.cancelled() => break,
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { return };
            self.take(incoming, &shared, &door, &tracker);
        }
        self.endpoint.set_server_config(None);
    }

    fn take(&mut self, incoming: Incoming, shared: &Shared, door: &Door, tracker: &TaskTracker) {
        let (from, counters) = (incoming.remote_address(), &shared.counters);
        if !incoming.remote_address_validated() {
            QuicCounters::count(&counters.quic.unproven);
            let _ = incoming.retry();
            return;
        }
        Counters::add(&counters.connections);
        let (limits, logs_in) = {
            let config = shared.config.borrow();
            let certified = config.tls.as_ref().is_some_and(|t| t.client_ca.is_some());
            (config.limits, certified || !config.tokens.is_empty())
        };
        let guest = match door.enter(from, Purpose::Sound, &limits, logs_in) {
            Ok(guest) => guest,
            Err(why) => {
                Counters::add(&counters.refused);
                match why {
                    Some(why) => {
                        warn!(peer = %from, why);
                        incoming.refuse();
                    }
                    None => incoming.ignore(),
                }
                return;
            }
        };
        self.renew(shared);
        match incoming.accept_with(Arc::new(self.config.clone())) {
            Ok(connecting) => {
                let shared = shared.clone();
                tracker.spawn(async move { session::serve(shared, connecting, &guest).await });
            }
            Err(e) => {
                Counters::add(&counters.hostile);
                debug!(peer = %from, error = %e, "QUIC handshake failed");
            }
        }
    }

    /// Follows certificates that were read again.
    fn renew(&mut self, shared: &Shared) {
        let Some(new) = shared.tls.as_ref().map(|s| s.quic()).filter(|new| !Arc::ptr_eq(new, &self.crypto)) else {
            return;
        };
        if let Ok(packets) = packets(&new) {
            self.config.crypto = Arc::new(packets);
            self.crypto = new;
        }
    }
}

fn packets(crypto: &QuicSide) -> Result<QuicServerConfig, TlsError> {
    QuicServerConfig::try_from(Arc::clone(crypto)).map_err(|e| TlsError::Quic(e.to_string()))
}

/// Why a port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum PortError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
}
