//! One session over QUIC.

mod publish;
mod subscribe;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{Connecting, ConnectionError};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::QuicCounters;
use super::flow::{REPORT, agreed};
use super::link::{Link, LinkError, Received};
use crate::config::Config;
use crate::jitter::{Keep, Report};
use crate::service::access::{Flood, Pass, Visit, authorize};
use crate::service::codings::{Codings, Kind, ListenerCoder};
use crate::service::door::Guest;
use crate::service::intake::Intake;
use crate::service::{Counters, Shared};
use crate::session::{Close, Control, Event, Hello, Message, Reason, Role, ServerSession, SessionDecoder, Wire};
use crate::units::StageCount;
use crate::wire::{Brief, Datagram};

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(50);

/// A client that is silent for this long is gone: it says something every second.
const SILENCE: Duration = Duration::from_secs(10);

/// How long the last words may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// How long a publisher that is done is waited for, should its last bundles still be on their way.
const STRAGGLERS: Duration = Duration::from_millis(500);

struct Connection {
    shared: Shared,
    /// Changes of the configuration; a token may be taken back.
    config: watch::Receiver<Arc<Config>>,
    pass: Pass,
    peer: SocketAddr,
    link: Link,
    hello: Hello,
    /// Most stages that a listener asks for now.
    stages: Option<StageCount>,
    ack: Message,
    session: ServerSession,
    flood: Flood,
    bundles: Flood,
    heard: Instant,
    wire: Wire,
    coder: Coder,
    visit: Arc<Visit>,
}

/// Whether the session is coded.
enum Coder {
    Packed,
    Publisher(Intake),
    Listener(Box<ListenerCoder>, #[allow(dead_code)] OwnedSemaphorePermit),
}

/// What either role may hear.
enum Said {
    Bundle {
        message: Message,
        copies: Vec<u8>,
    },
    Brief(Brief),
    Report(Report),
    /// Bundles that a publisher has sent.
    Sent(u64),
    Nothing,
}

/// Serves a client whose address is proven, to the end.
pub(super) async fn serve(shared: Shared, connecting: Connecting, guest: &Guest) {
    let patience = shared.config.borrow().limits.timeouts.handshake;
    let opening = timeout(patience, open(connecting));
    let opened = tokio::select! {
        biased;
        opened = opening => opened,
        () = shared.stop_input.cancelled() => return,
    };
    let peer = guest.peer;
    let (link, hello) = match opened {
        Ok(Ok((link, Ok(hello)))) => (link, hello),
        Ok(Ok((link, Err(close)))) => return end(&shared, peer, link, close).await,
        Ok(Err(e)) => {
            Counters::add(&shared.counters.hostile);
            return warn!(%peer, error = %e, "QUIC handshake failed");
        }
        Err(_) => {
            Counters::add(&shared.counters.hostile);
            return warn!(%peer, "no QUIC handshake and Hello within {patience:?}");
        }
    };
    session(shared, guest, link, hello).await;
}

/// The handshake, and the first message.
async fn open(connecting: Connecting) -> Result<(Link, Result<Hello, Close>), ConnectionError> {
    let connection = connecting.await?;
    let stream = connection.accept_bi().await?;
    let mut link = Link::new(connection, stream);
    let first = match link.receive().await {
        Ok(Received::Message(Message::Hello(hello))) => Ok(hello),
        Ok(_) => Err(Close::new(Reason::Protocol, "the first message must be Hello")),
        Err(LinkError::Lost(e)) => return Err(e),
        Err(e) => Err(ended(e)),
    };
    Ok((link, first))
}

/// Serves a client that has said what it wants.
async fn session(shared: Shared, guest: &Guest, link: Link, hello: Hello) {
    let peer = guest.peer;
    let now = Instant::now();
    let mut config = shared.config.clone();
    config.mark_unchanged();
    let tag = shared.coding.as_ref().map(|c| c.tag);
    let mut session = ServerSession::new(shared.config.borrow().limits.timeouts, tag, Wire::ALL, now);
    let opened = session.handle(Message::Hello(hello.clone()), &shared.engine.profile(), now);
    let opened = opened.and_then(|event| {
        let tokens = &shared.config.borrow().tokens;
        authorize(tokens, &hello).map(|()| event)
    });
    let (hello, ack) = match opened {
        Ok(Event::Opened(hello, ack)) => (hello, ack),
        Ok(_) => return,
        Err(close) => return end(&shared, peer, link, close).await,
    };
    let wire = match ack {
        Message::HelloAck { wire, .. } => agreed(wire),
        _ => Wire::default(),
    };
    let mut connection = Connection {
        shared: shared.clone(),
        config,
        pass: Pass::of(&hello),
        peer,
        link,
        stages: hello.stages,
        hello,
        ack,
        session,
        flood: Flood::new(now),
        bundles: Flood::of_bundles(now),
        heard: now,
        wire,
        coder: Coder::Packed,
        visit: Arc::clone(&guest.visit),
    };
    let close = connection.run().await;
    let Err(close) = close else { return };
    end(&shared, peer, connection.link, close).await;
}

/// Counts why a session ended, and says so.
async fn end(shared: &Shared, peer: SocketAddr, mut link: Link, close: Close) {
    shared.counters.ended(close.reason);
    match close.reason {
        Reason::StreamEnded | Reason::Done | Reason::ShuttingDown => {
            info!(%peer, reason = %close, "QUIC session ended");
        }
        _ => warn!(%peer, reason = %close, "QUIC session closed"),
    }
    if link.tell(&Message::Close(close)).await.is_ok() {
        link.close(GOODBYE).await;
    }
}

/// Why a session ends whose connection failed.
fn ended(e: LinkError) -> Close {
    match e {
        LinkError::Wire(e) => Close::new(Reason::Protocol, e.to_string()),
        LinkError::Full => Close::new(Reason::SlowConsumer, "messages were not taken"),
        LinkError::Over => Close::new(Reason::Done, "the peer hung up"),
        LinkError::Lost(ConnectionError::TimedOut) => Close::new(Reason::Timeout, "the peer vanished"),
        LinkError::Lost(e) => {
            debug!(error = %e, "QUIC connection lost");
            Close::new(Reason::Done, "the peer hung up")
        }
    }
}

impl Connection {
    fn close(reason: Reason, text: impl Into<String>) -> Close {
        Close::new(reason, text)
    }

    /// Gives the reason of the end.
    async fn run(&mut self) -> Result<(), Close> {
        let name = self.hello.stream.clone();
        info!(peer = %self.peer, stream = %name, role = ?self.hello.role, "QUIC session open");
        match self.hello.role {
            Role::Publish => {
                let publisher = self.shared.publish(&name).await;
                let publisher = publisher
                    .ok_or_else(|| Self::close(Reason::Busy, format!("somebody else publishes stream {name}")))?;
                if let Some(rate) = self.hello.constant {
                    publisher.make_constant(rate);
                }
                self.agree(None);
                self.tell(&self.ack.clone()).await?;
                self.take_in(publisher).await
            }
            Role::Subscribe => {
                let listener = self.shared.listen(&name, Keep::Newest);
                self.agree(Some(listener.codings()));
                self.tell(&self.ack.clone()).await?;
                let number = self.shared.counters.quic.number();
                let result = self.send_out(listener, number).await;
                self.shared.counters.quic.listener(number, None);
                result
            }
        }
    }

    async fn tell(&mut self, message: &Message) -> Result<(), Close> {
        self.link.tell(message).await.map_err(ended)
    }

    fn send(&self, datagram: Vec<u8>) {
        let start = Instant::now();
        if !self.link.send(datagram) {
            QuicCounters::count(&self.shared.counters.quic.overflow);
        }
        self.shared.counters.send.add(start.elapsed());
    }

    /// What the client has said, as far as its role may say it.
    fn heard(&mut self, received: Result<Received, LinkError>) -> Result<Said, Close> {
        let now = Instant::now();
        let received = received.map_err(ended)?;
        self.heard = now;
        let message = match received {
            Received::Datagram(Datagram::Bundle { sequence, first_frame, thin, copies }) => {
                self.may_publish(now)?;
                let message = thin.whole(sequence, first_frame, matches!(self.coder, Coder::Publisher(_)), self.wire);
                let message = message.map_err(|e| Self::close(Reason::Protocol, e.to_string()))?;
                return Ok(Said::Bundle { message, copies });
            }
            Received::Datagram(Datagram::Brief(brief)) => {
                self.may_publish(now)?;
                return Ok(Said::Brief(brief));
            }
            Received::Datagram(Datagram::Report(report)) => {
                self.flood.message(now)?;
                return Ok(Said::Report(report));
            }
            Received::Message(message) => message,
        };
        self.flood.message(now)?;
        match message {
            // The session itself stays open until what is on its way has come.
            Message::Close(_) => return Err(Self::close(Reason::Done, "as asked")),
            Message::Control(Control { bundles_sent: Some(sent), .. }) => return Ok(Said::Sent(sent)),
            Message::Bundle { .. } => return Err(Self::close(Reason::Protocol, "bundles are sent in datagrams here")),
            message => match self.session.handle(message, &self.shared.engine.profile(), now)? {
                Event::Stages(stages) => self.stages = Some(stages),
                Event::Opened(..) | Event::Bundle(_) | Event::Alive | Event::Done => {}
            },
        }
        Ok(Said::Nothing)
    }

    /// Counts a bundle of a publisher.
    fn may_publish(&mut self, now: Instant) -> Result<(), Close> {
        if self.hello.role == Role::Subscribe {
            return Err(Self::close(Reason::Protocol, "a subscriber must not send bundles"));
        }
        self.bundles.message(now)
    }

    /// Whether the client still says something now and then.
    fn still_there(&self, now: Instant) -> Result<(), Close> {
        let limit = self.shared.config.borrow().limits.timeouts.idle.min(SILENCE);
        if now.duration_since(self.heard) > limit {
            return Err(Self::close(Reason::Timeout, format!("nothing heard within {limit:?}")));
        }
        Ok(())
    }

    /// Whether the token would still open this session.
    fn still_allowed(&mut self) -> Result<(), Close> {
        self.pass.check(&self.config.borrow_and_update().tokens)
    }

    /// Settles whether the session is coded.
    fn agree(&mut self, codings: Option<&Arc<Codings>>) {
        let Some((model, room)) = self.shared.room_to_code(&self.hello, &mut self.ack) else { return };
        let wire = self.wire;
        self.coder = match codings {
            Some(codings) => {
                let kind = Kind { wire, stages: self.wanted(), latency: None, alone: true };
                Coder::Listener(Box::new(codings.join(model, kind)), room)
            }
            None => Coder::Publisher(Intake::new(SessionDecoder::new(model).on(wire), room, Instant::now())),
        };
    }
}

/// A bundle that a peer or the hub should not have let through.
fn frame_ms(profile: &crate::codec::Profile) -> u64 {
    profile.media_time(1).as_millis() as u64
}
