//! The server's side: handshake, roles, deadlines.

use std::time::{Duration, Instant};

use super::{Close, Hello, Message, PROTOCOL_VERSION, PackedBundle, Reason, Role, TokenTag, Wire};
use crate::bitstream::Form;
use crate::profile::Profile;
use crate::units::StageCount;

/// How long a peer may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From the connection to a complete Hello.
    pub handshake: Duration,
    /// Between two messages of a publisher. A subscriber need not speak.
    pub idle: Duration,
}

/// What the caller should do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The handshake is complete; answer with the second part.
    Opened(Hello, Message),
    /// A publisher's bundle.
    Bundle(PackedBundle),
    /// A subscriber wants at most this many stages.
    Stages(StageCount),
    /// The peer is alive, nothing else.
    Alive,
    /// The peer is done.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    /// With what the Hello promised.
    Open {
        role: Role,
        stages: StageCount,
        frames_per_bundle: u8,
        wire: Wire,
    },
    Closed,
}

/// One session. Time is an argument; there is no clock inside.
#[derive(Debug)]
pub struct ServerSession {
    timeouts: Timeouts,
    /// Token model that this server offers.
    coding: Option<TokenTag>,
    /// Forms of messages that this server uses on this connection.
    wire: Wire,
    state: State,
    /// When the peer was last heard, or the connection made.
    heard: Instant,
    next_frame: u64,
}

impl ServerSession {
    /// A connection that was made at `now`.
    pub fn new(timeouts: Timeouts, coding: Option<TokenTag>, wire: Wire, now: Instant) -> Self {
        Self { timeouts, coding, wire, state: State::Waiting, heard: now, next_frame: 0 }
    }

    /// When [`ServerSession::expired`] will be true unless a message comes; None if silence is fine.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting => Some(self.heard + self.timeouts.handshake),
            State::Open { role: Role::Publish, .. } => Some(self.heard + self.timeouts.idle),
            State::Open { role: Role::Subscribe, .. } | State::Closed => None,
        }
    }

    /// Whether the deadline has passed, and what to say then.
    pub fn expired(&self, now: Instant) -> Option<Close> {
        let deadline = self.deadline()?;
        let (what, limit) = match self.state {
            State::Waiting => ("no complete Hello", self.timeouts.handshake),
            _ => ("nothing heard", self.timeouts.idle),
        };
        (now >= deadline).then(|| Close::new(Reason::Timeout, format!("{what} within {limit:?}")))
    }

    /// Takes a message that arrived at `now`.
    ///
    /// # Errors
    /// What to close the session with.
    pub fn handle(&mut self, message: Message, profile: &Profile, now: Instant) -> Result<Event, Close> {
        let result = self.step(message, profile);
        match &result {
            Ok(Event::Done) | Err(_) => self.state = State::Closed,
            Ok(_) => self.heard = now,
        }
        result
    }

    fn step(&mut self, message: Message, profile: &Profile) -> Result<Event, Close> {
        let protocol = |text: &str| Err(Close::new(Reason::Protocol, text));
        match (self.state, message) {
            (State::Closed, _) => protocol("the session is closed"),
            (_, Message::Close(_)) => Ok(Event::Done),
            (State::Waiting, Message::Hello(hello)) => self.open(hello, profile),
            (State::Waiting, _) => protocol("the first message must be Hello"),
            (State::Open { .. }, Message::Hello(_)) => protocol("a second Hello"),
            (State::Open { .. }, Message::HelloAck { .. }) => protocol("HelloAck is the server's word"),
            (State::Open { role: Role::Publish, stages, frames_per_bundle, wire }, Message::Bundle { bundle, .. }) => {
                let agreed = match bundle.form {
                    Form::Plain => true,
                    Form::Graded => wire.graded,
                    Form::Background => wire.silence,
                };
                if !agreed {
                    return protocol(&format!("a {:?} bundle, but nothing of the kind was agreed on", bundle.form));
                }
                if bundle.stages > stages {
                    return protocol(&format!("{} stages, the Hello said {stages}", bundle.stages));
                }
                if bundle.frames > frames_per_bundle {
                    return protocol(&format!("{} frames, the Hello said {frames_per_bundle}", bundle.frames));
                }
                self.bundle(bundle, profile)
            }
            (State::Open { .. }, Message::Thin(_)) => protocol("a thin bundle, but nothing of the kind was agreed on"),
            (State::Open { .. }, Message::Coded { .. }) => protocol("a coded bundle, but no token model was agreed on"),
            (State::Open { .. }, Message::Bundle { .. }) => protocol("a subscriber must not send bundles"),
            (State::Open { role: Role::Subscribe, .. }, Message::Control(c)) => {
                Ok(c.stages.map_or(Event::Alive, Event::Stages))
            }
            (State::Open { .. }, Message::Control(_)) => Ok(Event::Alive),
        }
    }

    fn open(&mut self, hello: Hello, profile: &Profile) -> Result<Event, Close> {
        if hello.version != PROTOCOL_VERSION {
            let text = format!("protocol version {}, this server speaks {PROTOCOL_VERSION}", hello.version);
            return Err(Close::new(Reason::Protocol, text));
        }
        if hello.model_id != profile.model_id {
            let text = format!("model {} is not this server's model {}", hello.model_id, profile.model_id);
            return Err(Close::new(Reason::Model, text));
        }
        let stages = hello.stages.unwrap_or(profile.stages);
        if hello.role == Role::Publish && stages > profile.stages {
            let text = format!("{stages} stages, the model has {}", profile.stages);
            return Err(Close::new(Reason::Protocol, text));
        }
        let stages = stages.min(profile.stages);
        // Both must have the model and compute the same with it; otherwise bundles are packed, which always works.
        let coding = hello.coding.filter(|wanted| Some(*wanted) == self.coding).map(|tag| tag.id);
        let mut wire = hello.wire.common(self.wire);
        // Messages of one size leave out nothing.
        wire.silence &= hello.constant.is_none() || hello.role == Role::Subscribe;
        self.state = State::Open { role: hello.role, stages, frames_per_bundle: hello.frames_per_bundle, wire };
        let ack = Message::HelloAck { version: PROTOCOL_VERSION, model_id: profile.model_id, stages, coding, wire };
        Ok(Event::Opened(hello, ack))
    }

    fn bundle(&mut self, bundle: PackedBundle, profile: &Profile) -> Result<Event, Close> {
        let protocol = |text: String| Err(Close::new(Reason::Protocol, text));
        if bundle.first_frame < self.next_frame {
            let (got, next) = (bundle.first_frame, self.next_frame);
            return protocol(format!("bundle at frame {got}, but frames up to {next} were sent"));
        }
        let unpacked = match bundle.unpack() {
            Ok(unpacked) => unpacked,
            Err(e) => return protocol(e.to_string()),
        };
        if let Some(code) = unpacked.by_frame().flatten().find(|&&c| usize::from(c) >= profile.entries) {
            return protocol(format!("code {code} out of range, allowed 0 to {}", profile.entries - 1));
        }
        self.next_frame = bundle.first_frame + u64::from(bundle.frames);
        Ok(Event::Bundle(bundle))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Control, StreamName};
    use super::*;
    use crate::bitstream::Bundle;
    use crate::fake;
    use crate::units::ModelId;

    const TIMEOUTS: Timeouts = Timeouts { handshake: Duration::from_secs(5), idle: Duration::from_secs(30) };

    fn hello(role: Role) -> Hello {
        let hello = Hello::subscribe(StreamName::new("a").unwrap(), ModelId(*b"fakefake"));
        Hello { role, frames_per_bundle: 5, ..hello }
    }

    fn bundle(first_frame: u64, code: u16) -> Message {
        let stages = StageCount::new(2).unwrap();
        let bundle = PackedBundle::pack(&Bundle::new(first_frame, 1, stages, vec![code; 2]).unwrap());
        Message::Bundle { sequence: 0, bundle }
    }

    fn open(role: Role) -> (ServerSession, Instant, Profile) {
        let (now, profile) = (Instant::now(), fake::profile(16));
        let mut s = ServerSession::new(TIMEOUTS, None, Wire::default(), now);
        assert!(matches!(s.handle(Message::Hello(hello(role)), &profile, now), Ok(Event::Opened(..))));
        (s, now, profile)
    }

    #[test]
    fn a_wrong_model_is_refused_with_both_names() {
        let (now, profile) = (Instant::now(), fake::profile(16));
        let mut s = ServerSession::new(TIMEOUTS, None, Wire::default(), now);
        let wrong = Hello { model_id: ModelId([1; 8]), ..hello(Role::Publish) };
        let close = s.handle(Message::Hello(wrong), &profile, now).unwrap_err();
        assert_eq!(close.reason, Reason::Model);
        assert!(close.text.contains("0101010101010101") && close.text.contains("66616b6566616b65"), "{close}");
    }

    #[test]
    fn silence_ends_a_handshake_and_a_publisher_but_not_a_subscriber() {
        let (now, day) = (Instant::now(), Duration::from_secs(86_400));
        let s = ServerSession::new(TIMEOUTS, None, Wire::default(), now);
        assert_eq!(s.expired(now + Duration::from_millis(4_999)), None);
        assert_eq!(s.expired(now + TIMEOUTS.handshake).unwrap().reason, Reason::Timeout);
        let (mut s, now, profile) = open(Role::Publish);
        let later = now + Duration::from_secs(29);
        s.handle(Message::Control(Control::default()), &profile, later).unwrap();
        assert_eq!(s.deadline(), Some(later + TIMEOUTS.idle));
        assert!(s.expired(later + TIMEOUTS.idle).is_some());
        assert_eq!(open(Role::Subscribe).0.expired(now + day), None);
    }

    #[test]
    fn only_what_a_role_may_say_is_accepted() {
        let reason = |r: Result<Event, Close>| r.unwrap_err().reason;
        let (now, profile) = (Instant::now(), fake::profile(16));
        let mut fresh = ServerSession::new(TIMEOUTS, None, Wire::default(), now);
        assert_eq!(reason(fresh.handle(bundle(0, 1), &profile, now)), Reason::Protocol);
        let (mut s, now, profile) = open(Role::Subscribe);
        assert_eq!(reason(s.handle(bundle(0, 1), &profile, now)), Reason::Protocol);
        let (mut s, now, profile) = open(Role::Publish);
        assert!(matches!(s.handle(bundle(0, 1), &profile, now), Ok(Event::Bundle(_))));
        assert_eq!(reason(s.handle(bundle(0, 1), &profile, now)), Reason::Protocol);
        assert_eq!(reason(s.handle(bundle(1, 1), &profile, now)), Reason::Protocol, "closed stays closed");
        let (mut s, now, profile) = open(Role::Publish);
        assert_eq!(reason(s.handle(bundle(0, 1_000), &profile, now)), Reason::Protocol);
        let (mut s, now, profile) = open(Role::Publish);
        assert_eq!(reason(s.handle(Message::Hello(hello(Role::Publish)), &profile, now)), Reason::Protocol);
    }
}
