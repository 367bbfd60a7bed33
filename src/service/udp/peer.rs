//! The other end of a session.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::UdpSocket;

/// Where a session sends to.
pub(super) struct Peer {
    pub(super) socket: Arc<UdpSocket>,
    pub(super) address: SocketAddr,
    pub(super) session: u64,
}

impl Peer {
    /// False: the system had no room for it.
    pub(super) fn send(&self, bytes: &[u8]) -> bool {
        self.socket.try_send_to(bytes, self.address).is_ok()
    }
}
