//! Who may come in: connections by address, sessions by token.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use subtle::{Choice, ConstantTimeEq};

use crate::config::{Limits, Token};
use crate::session::{Close, Hello, Reason, Role, StreamName};

/// Addresses that are remembered at once. When all have open connections, new addresses are not counted but still
/// held by `limits.max_connections`.
const ADDRESSES: usize = 4096;

/// Whether the token of a Hello gives the right it asks for. Without tokens everybody may.
///
/// Every token is compared in constant time, and by its digest, so that the time tells nothing about a secret.
pub(super) fn authorize(tokens: &[Token], hello: &Hello) -> Result<(), Close> {
    if tokens.is_empty() {
        return Ok(());
    }
    let found = find(tokens, &hello.token);
    let verb = match hello.role {
        Role::Publish => "publish",
        Role::Subscribe => "listen to",
    };
    match found {
        None => Err(Close::new(Reason::Denied, "the token is missing or not known")),
        Some(token) if token.allows(hello.role, &hello.stream) => Ok(()),
        Some(token) => {
            Err(Close::new(Reason::Denied, format!("token {} may not {verb} stream {}", token.name, hello.stream)))
        }
    }
}

/// The token with this secret. Every one is compared, in constant time.
fn find<'a>(tokens: &'a [Token], secret: &str) -> Option<&'a Token> {
    let digest = Token::digest(secret);
    let mut found = None;
    for token in tokens {
        let same: Choice = token.digest.ct_eq(&digest);
        if same.into() {
            found = Some(token);
        }
    }
    found
}

/// Whether there is a token with this secret, or none is needed.
pub(super) fn known(tokens: &[Token], secret: &str) -> bool {
    tokens.is_empty() || find(tokens, secret).is_some()
}

/// Whether who has this secret may listen to a stream.
pub(super) fn may_listen(tokens: &[Token], secret: &str, stream: &StreamName) -> bool {
    tokens.is_empty() || find(tokens, secret).is_some_and(|t| t.allows(Role::Subscribe, stream))
}

/// Connections of every address: how many are open, and how many may still come.
#[derive(Default)]
pub(super) struct Gate {
    peers: Mutex<HashMap<IpAddr, Peer>>,
}

struct Peer {
    open: usize,
    /// Connections that may come at once.
    credit: f64,
    at: Instant,
}

/// An open connection; dropping it counts it out.
pub(super) struct Visit {
    gate: Arc<Gate>,
    peer: Option<IpAddr>,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None if the address has too many connections, or opens them too fast.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr, limits: &Limits, now: Instant) -> Option<Visit> {
        let rate = f64::from(limits.new_connections_per_s);
        let credit = |p: &Peer| (p.credit + now.saturating_duration_since(p.at).as_secs_f64() * rate).min(rate);
        let key = network(address);
        let mut peers = self.lock();
        if peers.len() >= ADDRESSES && !peers.contains_key(&key) {
            peers.retain(|_, p| p.open > 0 || credit(p) < rate);
            if peers.len() >= ADDRESSES {
                return Some(Visit { gate: Arc::clone(self), peer: None });
            }
        }
        let peer = peers.entry(key).or_insert(Peer { open: 0, credit: rate, at: now });
        (peer.credit, peer.at) = (credit(peer), now);
        if peer.open >= limits.max_connections_per_address || peer.credit < 1.0 {
            return None;
        }
        peer.open += 1;
        peer.credit -= 1.0;
        Some(Visit { gate: Arc::clone(self), peer: Some(key) })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let Some(peer) = self.peer else { return };
        if let Some(peer) = self.gate.lock().get_mut(&peer) {
            peer.open = peer.open.saturating_sub(1);
        }
    }
}

/// An IPv6 host has a whole /64 to itself.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() & (u128::MAX << 64)).into()),
        v4 => v4,
    }
}

/// Messages of one connection: more than a peer can have reason to send are a flood.
pub(super) struct Flood {
    credit: f64,
    at: Instant,
}

/// Messages a second that are not bundles; bundles are held to real time.
const MESSAGES_PER_S: f64 = 50.0;
/// Messages that may come at once.
const MESSAGES_AT_ONCE: f64 = 200.0;

impl Flood {
    pub(super) fn new(now: Instant) -> Self {
        Self { credit: MESSAGES_AT_ONCE, at: now }
    }

    /// Counts a message.
    pub(super) fn message(&mut self, now: Instant) -> Result<(), Close> {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * MESSAGES_PER_S;
        (self.credit, self.at) = ((self.credit + earned).min(MESSAGES_AT_ONCE) - 1.0, now);
        if self.credit >= 0.0 {
            return Ok(());
        }
        let text = format!("a flood of messages, allowed {MESSAGES_PER_S} a second and {MESSAGES_AT_ONCE} at once");
        Err(Close::new(Reason::Protocol, text))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Config;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_its_share_and_no_more() {
        let text = "[limits]\nmax_connections_per_address = 2\nnew_connections_per_s = 3";
        let limits = Config::parse(text).unwrap().limits;
        let (gate, now) = (Arc::new(Gate::default()), Instant::now());
        let first = gate.enter(ip("192.0.2.1"), &limits, now).unwrap();
        let _second = gate.enter(ip("::ffff:192.0.2.1"), &limits, now).unwrap();
        assert!(gate.enter(ip("192.0.2.1"), &limits, now).is_none());
        assert!(gate.enter(ip("192.0.2.2"), &limits, now).is_some());
        drop(first);
        let third = gate.enter(ip("192.0.2.1"), &limits, now).unwrap();
        drop(third);
        // There is room, but three came in this second already.
        assert!(gate.enter(ip("192.0.2.1"), &limits, now).is_none());
        assert!(gate.enter(ip("192.0.2.1"), &limits, now + Duration::from_millis(400)).is_some());
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_memory_is_bounded() {
        let limits = Config::parse("[limits]\nmax_connections_per_address = 1").unwrap().limits;
        let (gate, now) = (Arc::new(Gate::default()), Instant::now());
        let _held = gate.enter(ip("2001:db8::1"), &limits, now).unwrap();
        assert!(gate.enter(ip("2001:db8::2"), &limits, now).is_none());
        for n in 0..10_000u32 {
            gate.enter(IpAddr::V4(n.into()), &limits, now);
        }
        assert!(gate.lock().len() <= ADDRESSES);
    }

    #[test]
    fn a_flood_of_messages_ends_and_a_trickle_does_not() {
        let now = Instant::now();
        let (mut flood, mut trickle) = (Flood::new(now), Flood::new(now));
        assert!((0..200).all(|_| flood.message(now).is_ok()));
        assert!(flood.message(now).is_err());
        assert!((0..2_000).all(|n| trickle.message(now + Duration::from_millis(20 * n)).is_ok()));
    }
}
