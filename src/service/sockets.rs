//! What the system does for sockets. The only file that names socket2.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, Socket, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tracing::debug;

/// Connections that the system completes before they are accepted.
const BACKLOG: u32 = 1024;

/// A port whose connections hold at most about `buffer` bytes that their peers do not read. By itself Linux would let
/// megabytes pile up: an hour of codes for a listener that stopped reading long ago.
pub(super) fn listen(address: SocketAddr, buffer: u32) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(buffer)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A listener that was opened by somebody else, who also said how much its connections hold.
pub(super) fn adopt(listener: std::net::TcpListener) -> std::io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Questions that a peer may leave unanswered before the system gives it up.
const QUESTIONS: u32 = 3;

/// Lets the system ask a silent peer whether it is still there, and give it up after about `patience`: who listens to raw
/// samples says nothing, and a machine that lost its power hangs up no more. What is sent and not taken is the business of
/// whoever sends: a peer that is there and does not read for a while must still be told how it ended.
pub(super) fn keep_alive(socket: &TcpStream, patience: Duration) {
    let whole = |part: Duration| Duration::from_secs(part.as_secs().max(1));
    let every = whole(patience / (2 * QUESTIONS));
    let questions = TcpKeepalive::new().with_time(whole(patience / 2)).with_interval(every).with_retries(QUESTIONS);
    if let Err(e) = SockRef::from(socket).set_tcp_keepalive(&questions) {
        debug!(error = %e, "the system does not look after this connection");
    }
}

/// Patience with a peer that acknowledges nothing of what was sent: so many times that with a silent one, and at least so long,
/// so that whoever is there and does not read has been told how it ended before.
const UNHEARD: u32 = 4;
const LEAST_UNHEARD: Duration = Duration::from_secs(60);

/// Gives up a peer that acknowledges nothing. For connections on which something is said now and then: with signs of life on
/// their way the system asks no questions, and would by itself send these again for a quarter of an hour.
pub(super) fn give_up(socket: &TcpStream, patience: Duration) {
    let unheard = (UNHEARD * patience).max(LEAST_UNHEARD);
    if let Err(e) = SockRef::from(socket).set_tcp_user_timeout(Some(unheard)) {
        debug!(error = %e, "the system does not look after this connection");
    }
}

/// Whether a connection still lives whose peer has nothing more to say.
pub(super) struct Pulse(Socket);

impl Pulse {
    /// None if the process has no descriptor left for it.
    pub(super) fn of(socket: &TcpStream) -> Option<Self> {
        SockRef::from(socket).try_clone().ok().map(Self)
    }

    /// Whether the system has given the connection up since the last question.
    pub(super) fn is_lost(&self) -> bool {
        !matches!(self.0.take_error(), Ok(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_that_vanished_is_given_up_after_about_the_idle_time() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), 4_096).unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        keep_alive(&socket, Duration::from_secs(30));
        let set = SockRef::from(&socket);
        assert!(set.keepalive().unwrap());
        assert_eq!(set.tcp_keepalive_time().unwrap(), Duration::from_secs(15));
        assert_eq!(set.tcp_keepalive_interval().unwrap(), Duration::from_secs(5));
        assert_eq!(set.tcp_keepalive_retries().unwrap(), 3);
        // It would take the place of these questions.
        assert_eq!(set.tcp_user_timeout().unwrap(), None);
        give_up(&socket, Duration::from_secs(30));
        assert_eq!(set.tcp_user_timeout().unwrap(), Some(Duration::from_secs(120)));
        let pulse = Pulse::of(&socket).unwrap();
        assert!(!pulse.is_lost());
        // A reset, as a vanished machine sends once it is back.
        SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        socket.readable().await.unwrap();
        assert!(pulse.is_lost());
    }
}
