//! Who may come in: connections by address, sessions by token.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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

/// The token with this secret.
fn find<'a>(tokens: &'a [Token], secret: &str) -> Option<&'a Token> {
    find_digest(tokens, &Token::digest(secret))
}

/// The token whose secret has this digest. Every one is compared, in constant time.
fn find_digest<'a>(tokens: &'a [Token], digest: &[u8; 32]) -> Option<&'a Token> {
    let mut found = None;
    for token in tokens {
        let same: Choice = token.digest.ct_eq(digest);
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

/// What a session was let in for, so that it can be asked again after a reload.
#[derive(Debug, Clone)]
pub(super) struct Pass {
    digest: [u8; 32],
    role: Role,
    stream: StreamName,
}

impl Pass {
    pub(super) fn of(hello: &Hello) -> Self {
        Self { digest: Token::digest(&hello.token), role: hello.role, stream: hello.stream.clone() }
    }

    /// Whether it would still be let in.
    ///
    /// # Errors
    /// The last words to the session.
    pub(super) fn check(&self, tokens: &[Token]) -> Result<(), Close> {
        if tokens.is_empty() || find_digest(tokens, &self.digest).is_some_and(|t| t.allows(self.role, &self.stream)) {
            return Ok(());
        }
        let stream = &self.stream;
        let text = format!("the configuration was read again: this session's token may no longer use stream {stream}");
        Err(Close::new(Reason::Denied, text))
    }
}

/// Who asks for state and metrics, and what of them is shown.
#[derive(Debug, Clone)]
pub(super) enum View {
    /// Everything: there are no tokens, or none is needed.
    All,
    /// The streams that this token may listen to or publish.
    Of(Token),
}

impl View {
    /// None if the secret is of no token, and there are some.
    pub(super) fn of(tokens: &[Token], secret: &str) -> Option<Self> {
        if tokens.is_empty() { Some(Self::All) } else { find(tokens, secret).cloned().map(Self::Of) }
    }

    pub(super) fn shows(&self, stream: &StreamName) -> bool {
        match self {
            Self::All => true,
            Self::Of(token) => token.allows(Role::Subscribe, stream) || token.allows(Role::Publish, stream),
        }
    }
}

/// What a connection is for. Each address has a share of either kind, so that a flood on one port leaves the other open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Samples and codes.
    Sound = 0,
    /// The port for operators and pages.
    Http = 1,
}

/// Why an address may not come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It has all the connections that one may have.
    Share(usize),
    /// It opens them faster than `limits.new_connections_per_s`.
    Flood,
}

/// Fewest HTTP connections of an address, however small its share.
const HTTP_SHARE: usize = 8;

impl Purpose {
    /// Connections of one address at once.
    fn share(self, limits: &Limits) -> usize {
        match self {
            Self::Http if !limits.share_given => (limits.max_connections_per_address / 4).max(HTTP_SHARE),
            _ => limits.max_connections_per_address,
        }
    }
}

/// Work that what an address sends may cost over time, as a share of one core: see [`Visit::charge`].
const WORK_SHARE: f64 = 0.05;

/// Work that an address may have done at once: many clients behind one address may come together.
const WORK_AT_ONCE: Duration = Duration::from_secs(1);

/// Connections of every address: how many are open, and how many may still come.
#[derive(Default)]
pub(super) struct Gate {
    peers: Mutex<HashMap<IpAddr, Peer>>,
}

struct Peer {
    /// By purpose.
    open: [usize; 2],
    /// Engine slots.
    slots: usize,
    /// Connections that may come at once.
    credit: f64,
    at: Instant,
    /// When the work done so far is paid for.
    paid: Instant,
}

impl Peer {
    fn credit(&self, rate: f64, now: Instant) -> f64 {
        (self.credit + now.saturating_duration_since(self.at).as_secs_f64() * rate).min(rate)
    }

    /// Whether forgetting it would forget nothing.
    fn is_idle(&self, rate: f64, now: Instant) -> bool {
        self.open == [0, 0] && self.slots == 0 && self.paid <= now && self.credit(rate, now) >= rate
    }
}

/// An open connection; dropping it counts it out.
pub(super) struct Visit {
    gate: Arc<Gate>,
    peer: Option<IpAddr>,
    purpose: Purpose,
}

/// An engine slot that an address holds; dropping it gives it back.
pub(super) struct SlotShare(Arc<Visit>);

impl Gate {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection in.
    ///
    /// # Errors
    /// The address has too many connections, or opens them too fast.
    pub(super) fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        purpose: Purpose,
        limits: &Limits,
        now: Instant,
    ) -> Result<Visit, Refusal> {
        let rate = f64::from(limits.new_connections_per_s);
        let key = network(address);
        let mut peers = self.lock();
        if peers.len() >= ADDRESSES && !peers.contains_key(&key) {
            peers.retain(|_, p| !p.is_idle(rate, now));
            if peers.len() >= ADDRESSES {
                return Ok(Visit { gate: Arc::clone(self), peer: None, purpose });
            }
        }
        let peer = peers.entry(key).or_insert(Peer { open: [0, 0], slots: 0, credit: rate, at: now, paid: now });
        (peer.credit, peer.at) = (peer.credit(rate, now), now);
        if peer.credit < 1.0 {
            return Err(Refusal::Flood);
        }
        peer.credit -= 1.0;
        let (open, share) = (&mut peer.open[purpose as usize], purpose.share(limits));
        if *open >= share {
            return Err(Refusal::Share(share));
        }
        *open += 1;
        Ok(Visit { gate: Arc::clone(self), peer: Some(key), purpose })
    }
}

impl Visit {
    /// Runs with the entry of the address, if there is one.
    fn with<T>(&self, what: impl FnOnce(&mut Peer) -> T) -> Option<T> {
        self.gate.lock().get_mut(&self.peer?).map(what)
    }

    /// Counts an engine slot for the address; None if it has `share` of them.
    pub(super) fn slot(self: &Arc<Self>, share: usize) -> Option<SlotShare> {
        let fits = self.with(|p| {
            let fits = p.slots < share;
            p.slots += usize::from(fits);
            fits
        });
        fits.unwrap_or(true).then(|| SlotShare(Arc::clone(self)))
    }

    /// How long work for this address has to wait until it has paid for what was done.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let at_once = WORK_AT_ONCE.div_f64(WORK_SHARE);
        self.with(|p| p.paid.saturating_duration_since(now).saturating_sub(at_once)).unwrap_or_default()
    }

    /// Notes work for a client that is new, or that brought what nobody can use: over time these cost at most
    /// [`WORK_SHARE`] of a core, however often it connects again.
    pub(super) fn charge(&self, work: Duration, now: Instant) {
        self.with(|p| p.paid = p.paid.max(now) + work.div_f64(WORK_SHARE));
    }
}

impl Drop for SlotShare {
    fn drop(&mut self) {
        self.0.with(|p| p.slots = p.slots.saturating_sub(1));
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let purpose = self.purpose as usize;
        self.with(|p| p.open[purpose] = p.open[purpose].saturating_sub(1));
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
    what: &'static str,
    rate: f64,
    at_once: f64,
    credit: f64,
    at: Instant,
}

/// Messages a second that are not bundles, and such that may come at once; bundles are held to real time.
const MESSAGES: (f64, f64) = (50.0, 200.0);

/// Bundles in datagrams, which nothing holds up: twice as many as there are frames in a second, and what a network keeps for some.
const BUNDLES: (f64, f64) = (100.0, 500.0);

impl Flood {
    pub(super) fn new(now: Instant) -> Self {
        Self::of("messages", MESSAGES, now)
    }

    pub(super) fn of_bundles(now: Instant) -> Self {
        Self::of("bundles", BUNDLES, now)
    }

    fn of(what: &'static str, (rate, at_once): (f64, f64), now: Instant) -> Self {
        Self { what, rate, at_once, credit: at_once, at: now }
    }

    /// Counts a message.
    pub(super) fn message(&mut self, now: Instant) -> Result<(), Close> {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * self.rate;
        (self.credit, self.at) = ((self.credit + earned).min(self.at_once) - 1.0, now);
        if self.credit >= 0.0 {
            return Ok(());
        }
        let Self { what, rate, at_once, .. } = self;
        let text = format!("a flood of {what}, allowed {rate} a second and {at_once} at once");
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
        let enter = |address, now| gate.enter(ip(address), Purpose::Sound, &limits, now);
        let first = enter("192.0.2.1", now).unwrap();
        let _second = enter("::ffff:192.0.2.1", now).unwrap();
        assert_eq!(enter("192.0.2.1", now).err(), Some(Refusal::Share(2)));
        assert!(enter("192.0.2.2", now).is_ok());
        drop(first);
        // There is room, but three came in this second already.
        assert_eq!(enter("192.0.2.1", now).err(), Some(Refusal::Flood));
        assert!(enter("192.0.2.1", now + Duration::from_millis(400)).is_ok());
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_memory_is_bounded() {
        let limits = Config::parse("[limits]\nmax_connections_per_address = 1").unwrap().limits;
        let (gate, now) = (Arc::new(Gate::default()), Instant::now());
        let _held = gate.enter(ip("2001:db8::1"), Purpose::Sound, &limits, now).unwrap();
        assert!(gate.enter(ip("2001:db8::2"), Purpose::Sound, &limits, now).is_err());
        for n in 0..10_000u32 {
            let _ = gate.enter(IpAddr::V4(n.into()), Purpose::Sound, &limits, now);
        }
        assert!(gate.lock().len() <= ADDRESSES);
    }

    #[test]
    fn who_fills_the_ports_for_sound_leaves_that_of_operators_open_and_half_of_all_places() {
        let limits = Config::default().limits;
        let (gate, now) = (Arc::new(Gate::default()), Instant::now());
        let fill = |purpose| -> Vec<_> {
            std::iter::from_fn(|| gate.enter(ip("192.0.2.1"), purpose, &limits, now).ok()).collect()
        };
        let (sound, http) = (fill(Purpose::Sound), fill(Purpose::Http));
        assert_eq!((sound.len(), http.len()), (128, 32));
        assert!(sound.len() + http.len() < limits.max_connections - limits.reserved);
        // Half of the engine, too.
        let visit = Arc::new(sound.into_iter().next().unwrap());
        let slots: Vec<_> = std::iter::from_fn(|| visit.slot(limits.slots_per_address(16))).collect();
        assert_eq!(slots.len(), 8);
        drop(slots);
        assert!(visit.slot(1).is_some());
    }

    #[test]
    fn useless_work_costs_a_twentieth_of_a_core_however_often_its_sender_comes_back() {
        let limits = Config::default().limits;
        let (gate, start) = (Arc::new(Gate::default()), Instant::now());
        let (work, mut now, mut done) = (Duration::from_millis(20), start, Duration::ZERO);
        while now < start + Duration::from_secs(600) {
            let Ok(visit) = gate.enter(ip("192.0.2.1"), Purpose::Sound, &limits, now) else {
                now += Duration::from_millis(1);
                continue;
            };
            now += visit.wait(now);
            visit.charge(work, now);
            done += work;
        }
        assert!(done > Duration::from_secs(30) && done <= Duration::from_secs(31) + work, "{done:?}");
        let other = gate.enter(ip("192.0.2.2"), Purpose::Sound, &limits, start).unwrap();
        assert_eq!(other.wait(start), Duration::ZERO);
    }

    #[test]
    fn a_pass_ends_with_its_token_or_its_right() {
        let tokens = |text: &str| Config::parse(text).unwrap().tokens;
        let token =
            |secret: &str, rights: &str| tokens(&format!("[[token]]\nname = \"t\"\nsecret = \"{secret}\"\n{rights}"));
        let hello = Hello {
            token: "0123456789abcdef".to_owned(),
            ..Hello::subscribe(StreamName::new("news").unwrap(), crate::units::ModelId([0; 8]))
        };
        let pass = Pass::of(&hello);
        assert!(pass.check(&[]).is_ok());
        assert!(pass.check(&token("0123456789abcdef", "listen = [\"*\"]")).is_ok());
        for gone in [
            token("0123456789abcdeX", "listen = [\"*\"]"),
            token("0123456789abcdef", "listen = [\"radio\"]"),
            token("0123456789abcdef", "publish = [\"*\"]"),
        ] {
            let close = pass.check(&gone).unwrap_err();
            assert!(close.reason == Reason::Denied && close.text.contains("read again"), "{close}");
        }
        assert!(!format!("{pass:?}").contains("0123456789abcdef"));
    }

    #[test]
    fn a_view_shows_what_its_token_may_hear_or_say() {
        let text = "[[token]]\nname = \"t\"\nsecret = \"0123456789abcdef\"\nlisten = [\"a\"]\npublish = [\"b\"]";
        let tokens = Config::parse(text).unwrap().tokens;
        let shows = |view: &View| ["a", "b", "c"].map(|n| view.shows(&StreamName::new(n).unwrap()));
        assert_eq!(shows(&View::of(&tokens, "0123456789abcdef").unwrap()), [true, true, false]);
        assert!(View::of(&tokens, "").is_none() && View::of(&tokens, "0123456789abcdeF").is_none());
        assert_eq!(shows(&View::of(&[], "").unwrap()), [true; 3]);
    }

    #[test]
    fn a_flood_of_messages_ends_and_a_trickle_does_not() {
        let now = Instant::now();
        let (mut flood, mut trickle) = (Flood::new(now), Flood::new(now));
        assert!((0..200).all(|_| flood.message(now).is_ok()));
        assert!(flood.message(now).is_err());
        assert!((0..2_000).all(|n| trickle.message(now + Duration::from_millis(20 * n)).is_ok()));
        // Bundles of one frame, after a network has kept five seconds of them.
        let mut bundles = Flood::of_bundles(now);
        assert!((0..250).all(|_| bundles.message(now).is_ok()));
        assert!((0..2_000).all(|n| bundles.message(now + Duration::from_millis(20 * n)).is_ok()));
        let close = (0..501).find_map(|_| bundles.message(now + Duration::from_secs(40)).err()).unwrap();
        assert!(close.text.contains("a flood of bundles, allowed 100 a second"), "{close}");
    }
}
