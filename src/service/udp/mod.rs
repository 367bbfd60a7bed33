//! UDP: one bundle a datagram, for networks that lose some.
//!
//! One task reads the port and hands datagrams to the sessions. A client proves with a cookie that it receives at its address
//! before anything is kept for it or more is sent to it than it sent.

mod client;
mod cookie;
mod counters;
mod flow;
mod peer;
mod session;

pub use client::{UdpClient, UdpEvent};
pub(super) use counters::ListenerState;
pub(crate) use counters::UdpCounters;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::access::Purpose;
use super::door::Door;
use super::{Counters, Shared, tls};
use crate::session::{Close, Hello, Message, Reason};
use crate::wire::{Datagram, MAX_DATAGRAM};
use cookie::Cookies;
use peer::Peer;

/// Datagrams that may wait for a session; more are dropped, as a network would.
const INBOX: usize = 64;

/// A session as the reader of the port knows it.
struct Known {
    session: u64,
    inbox: mpsc::Sender<Datagram>,
}

/// Reads the port until input stops.
pub(super) async fn serve(socket: UdpSocket, shared: Shared, door: Door, tracker: TaskTracker) {
    let (key, socket) = (tls::random(), Arc::new(socket));
    let Some(key) = key else {
        warn!("no random numbers from the system: UDP is off");
        return;
    };
    let mut port = Port {
        cookies: Cookies::new(key, Instant::now()),
        socket,
        shared,
        door,
        tracker,
        known: HashMap::new(),
        sessions: HashMap::new(),
    };
    // One byte more than allowed tells a datagram that is too large.
    let mut buffer = [0; MAX_DATAGRAM + 1];
    loop {
        let received = tokio::select! {
            () = port.shared.stop_input.cancelled() => return,
            received = port.socket.recv_from(&mut buffer) => received,
        };
        match received {
            Ok((n, peer)) => port.take(&buffer[..n], peer),
            Err(e) => {
                debug!(error = %e, "UDP receive failed");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

struct Port {
    cookies: Cookies,
    socket: Arc<UdpSocket>,
    shared: Shared,
    door: Door,
    tracker: TaskTracker,
    known: HashMap<SocketAddr, Known>,
    /// Address of every session.
    sessions: HashMap<u64, SocketAddr>,
}

/// Said to a session whose datagrams come from elsewhere.
const MOVED: &str =
    "this session belongs to another port: a NAT or firewall on the way gave yours a new one; connect again";

impl Port {
    fn take(&mut self, bytes: &[u8], from: SocketAddr) {
        let counters = &self.shared.counters.udp;
        let Ok(datagram) = Datagram::decode(bytes) else {
            UdpCounters::count(&counters.ignored);
            return;
        };
        match (&datagram.content, self.known.get(&from)) {
            (Some(Message::Hello(_)), _) => self.hello(datagram, from),
            (_, Some(known)) if known.session == datagram.session => {
                if known.inbox.try_send(datagram).is_err() {
                    UdpCounters::count(&counters.overflow);
                }
            }
            _ => {
                UdpCounters::count(&counters.ignored);
                // Who knows the number of a session was told it by us. The answer is said once a datagram, as it may be lost.
                let elsewhere = self.sessions.get(&datagram.session).and_then(|a| self.known.get(a));
                if elsewhere.is_some_and(|k| k.session == datagram.session && !k.inbox.is_closed())
                    && !matches!(datagram.content, Some(Message::Close(_)))
                {
                    let close = Message::Close(Close::new(Reason::Protocol, MOVED));
                    let peer = Peer { socket: Arc::clone(&self.socket), address: from, session: datagram.session };
                    peer.send(&Datagram::message(datagram.session, close).encode());
                }
            }
        }
    }

    fn hello(&mut self, datagram: Datagram, from: SocketAddr) {
        let (now, counters) = (Instant::now(), &self.shared.counters);
        // Without room for a cookie the answer would be longer than the question.
        let Some(cookie) = &datagram.cookie else { return UdpCounters::count(&counters.udp.ignored) };
        if !self.cookies.check(cookie, from, now) {
            UdpCounters::count(&counters.udp.unproven);
            let retry = Datagram { cookie: Some(self.cookies.make(from, now)), ..Datagram::default() };
            let _ = self.socket.try_send_to(&retry.encode(), from);
            return;
        }
        if let Some(known) = self.known.get(&from).filter(|k| !k.inbox.is_closed()) {
            // Our answer was lost, or this is another session from the same port: the session knows. If it has no room, or
            // ends just now, the client asks again.
            let _ = known.inbox.try_send(datagram);
        } else if let Some(Message::Hello(hello)) = datagram.content {
            self.open(hello, from);
        }
    }

    fn open(&mut self, hello: Hello, from: SocketAddr) {
        let (limits, logs_in) = {
            let config = self.shared.config.borrow();
            (config.limits, !config.tokens.is_empty())
        };
        let peer = |session| Peer { socket: Arc::clone(&self.socket), address: from, session };
        Counters::add(&self.shared.counters.connections);
        let guest = self.door.enter(from, Purpose::Sound, &limits, logs_in).ok();
        let session = tls::random().map(u64::from_ne_bytes).filter(|&s| s != 0);
        let (Some(guest), Some(session)) = (guest, session) else {
            Counters::add(&self.shared.counters.refused);
            let close = Close::new(Reason::Full, "no room for another session (limits)");
            peer(0).send(&Datagram::message(0, Message::Close(close)).encode());
            return;
        };
        self.known.retain(|_, k| !k.inbox.is_closed());
        let known = &self.known;
        self.sessions.retain(|session, address| known.get(address).is_some_and(|k| k.session == *session));
        let (inbox, datagrams) = mpsc::channel(INBOX);
        self.known.insert(from, Known { session, inbox });
        self.sessions.insert(session, from);
        let (shared, peer) = (self.shared.clone(), peer(session));
        self.tracker.spawn(async move {
            session::serve(shared, peer, hello, datagrams).await;
            drop(guest);
        });
    }
}
