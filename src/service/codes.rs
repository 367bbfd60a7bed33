//! Connections that speak the protocol: publishers and subscribers of codes.

mod coded;
mod forward;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{sleep_until, timeout};
use tracing::{debug, info, warn};

use super::Shared;
use super::access::{Flood, Pass, authorize};
use super::codings::ListenerCoder;
use super::door::Guest;
use super::foreign::Foreign;
use super::hub::{Ended, Heard, Listener, Publisher};
use super::intake::Intake;
use super::outbox::Outbox;
use super::tls::Socket;
use super::wishes::Wishes;
use crate::config::Config;
use crate::jitter::{Keep, Pacing, Passed, Spans};
use crate::profile::Profile;
use crate::session::{
    Close, Control, Event, Hello, Message, PackedBundle, Reason, Role, ServerSession, StreamName, ThinReader,
    ThinWriter, Wire,
};
use crate::units::StageCount;
use crate::wire::Framer;

/// Bytes read at a time.
const CHUNK: usize = 4 << 10;

/// How long the last words may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// A subscriber that nothing was sent to gets a sign of life this many times in the idle time, so that either end
/// notices when the other has vanished.
const SIGNS_OF_LIFE: u32 = 2;

/// And at least this often, whatever the idle time: clients lose patience after `client::PATIENCE`.
const LONGEST_SILENCE: Duration = Duration::from_secs(15);

/// Where a session comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    /// The codes port.
    Port,
    /// A WebSocket of the HTTP port.
    Page,
}

/// What a session does once it is open.
enum Task {
    Waiting,
    Publish(Box<Publishing>),
    Subscribe(Box<Subscription>),
}

/// A stream on its way from the hub to a subscriber.
struct Subscription {
    name: StreamName,
    listener: Listener,
    stages: StageCount,
    sequence: u64,
    wishes: Wishes,
    /// Bytes of every message of a stream whose messages have one size.
    padded: usize,
}

/// A stream on its way from its publisher to the hub.
struct Publishing {
    publisher: Publisher,
    pacing: Pacing<PackedBundle>,
    spans: Spans,
    taken: u64,
    /// Frames of a bundle that its listeners want, as the publisher was told.
    frames: Option<u8>,
    /// Bundles that were dropped because they were too late, as far as they are counted.
    stale: u64,
}

struct Connection<'a> {
    shared: &'a Shared,
    guest: &'a Guest,
    via: Via,
    /// Changes of the configuration; a token may be taken back.
    config: watch::Receiver<Arc<Config>>,
    /// What the session was let in for.
    pass: Option<Pass>,
    since: Instant,
    session: ServerSession,
    framer: Framer,
    task: Task,
    out: Outbox,
    coder: Coder,
    /// What was agreed on, and both directions of thin bundles.
    wire: Wire,
    thin: (ThinWriter, ThinReader),
    flood: Flood,
    /// When the peer was last told anything.
    told_at: Instant,
}

/// Whether this session is coded.
enum Coder {
    Packed,
    Publisher(Intake),
    Subscriber(Box<ListenerCoder>, #[allow(dead_code)] OwnedSemaphorePermit),
}

/// Serves one connection to its end.
pub(super) async fn serve(shared: Shared, mut socket: Socket, guest: &Guest, via: Via) {
    let (peer, mut config) = (guest.peer, shared.config.clone());
    config.mark_unchanged();
    let timeouts = shared.config.borrow().limits.timeouts;
    let session = ServerSession::new(timeouts, shared.coding.as_ref().map(|c| c.tag), Wire::ALL, Instant::now());
    let mut connection = Connection {
        shared: &shared,
        guest,
        via,
        config,
        pass: None,
        since: Instant::now(),
        session,
        framer: Framer::default(),
        task: Task::Waiting,
        out: Outbox::default(),
        coder: Coder::Packed,
        wire: Wire::default(),
        thin: (ThinWriter::default(), ThinReader::new(false, Wire::default())),
        flood: Flood::new(Instant::now()),
        told_at: Instant::now(),
    };
    let close = connection.run(&mut socket).await;
    // The stream ends for its listeners before the publisher is told so.
    connection.task = Task::Waiting;
    let Some(close) = close else {
        debug!(%peer, "connection closed by the peer");
        return;
    };
    shared.counters.ended(close.reason);
    match close.reason {
        Reason::StreamEnded | Reason::Done | Reason::ShuttingDown => info!(%peer, reason = %close, "session ended"),
        _ => warn!(%peer, reason = %close, "session closed"),
    }
    let out = std::mem::take(&mut connection.out);
    goodbye(socket, out, close).await;
}

/// Sends the rest of a message and the last words, and hangs up.
pub(super) async fn goodbye(mut socket: Socket, mut out: Outbox, close: Close) {
    out.put(&Message::Close(close));
    let _ = timeout(GOODBYE, async {
        out.flush(&mut socket).await?;
        socket.shutdown().await?;
        // Unread bytes would turn our last words into a reset.
        let mut rest = [0; CHUNK];
        while socket.read(&mut rest).await? > 0 {}
        Ok::<(), std::io::Error>(())
    })
    .await;
}

impl Connection<'_> {
    /// Runs until somebody is done; None if the peer hung up.
    async fn run(&mut self, socket: &mut Socket) -> Option<Close> {
        let mut bytes = vec![0; CHUNK];
        let shared = self.shared;
        loop {
            let deadline = self.wake();
            // What could be passed on waits while there is more to read: of a backlog only the newest is wanted.
            let reads = self.reads(Instant::now());
            let listener = match &mut self.task {
                Task::Subscribe(s) => Some(&mut s.listener),
                _ => None,
            };
            let stop = if listener.is_some() { &shared.stop_output } else { &shared.stop_input };
            let step = tokio::select! {
                biased;
                () = stop.cancelled() => Wakeup::Stop,
                Ok(()) = self.config.changed() => Wakeup::Reloaded,
                next = async { match listener { Some(l) => l.next().await, None => std::future::pending().await } } => {
                    Wakeup::Next(next)
                }
                read = socket.read(&mut bytes), if reads => Wakeup::Read(read),
                () = sleep_until(deadline.into()) => Wakeup::Deadline,
            };
            // What woke us may be what the reload did to somebody else, such as the end of the stream.
            if self.config.has_changed().unwrap_or(false)
                && let Err(close) = self.still_allowed()
            {
                return Some(close);
            }
            let result = match step {
                Wakeup::Stop => {
                    let flushed = self.flush_queue(socket).await;
                    return Some(flushed.err().unwrap_or_else(|| self.shutting_down()));
                }
                Wakeup::Next(next) => self.next(next, socket).await,
                Wakeup::Reloaded => self.still_allowed(),
                Wakeup::Read(Ok(0) | Err(_)) => {
                    // What was taken is still heard, in its time.
                    let _ = self.drain().await;
                    return None;
                }
                Wakeup::Read(Ok(n)) => match self.foreign(&bytes[..n]) {
                    Some(close) => Err(close),
                    None => {
                        self.framer.push(&bytes[..n]);
                        self.messages(socket).await
                    }
                },
                Wakeup::Deadline => self.deadline(socket).await,
            };
            if let Err(close) = result {
                return Some(close);
            }
        }
    }

    /// Sends a listener what the hub has for it, or says why there is nothing more.
    async fn next(&mut self, next: Result<Heard, Ended>, socket: &mut Socket) -> Result<(), Close> {
        match next {
            Ok(heard) => self.forward(&heard, socket).await,
            Err(Ended::Stream) => {
                self.continuation(socket).await?;
                Err(Close::new(Reason::StreamEnded, "the publisher ended the stream"))
            }
            Err(Ended::Slow) => {
                Err(Close::new(Reason::SlowConsumer, "more bundles waited than the server keeps for a listener"))
            }
        }
    }

    /// Whether the token would still open this session. Asked again whenever the configuration has changed.
    fn still_allowed(&mut self) -> Result<(), Close> {
        let config = self.config.borrow_and_update();
        self.pass.as_ref().map_or(Ok(()), |pass| pass.check(&config.tokens))
    }

    /// What the connection speaks instead of our protocol, if these are its first bytes.
    fn foreign(&self, bytes: &[u8]) -> Option<Close> {
        let first = matches!(self.task, Task::Waiting) && self.framer.buffered() == 0;
        let foreign = if first { Foreign::of_messages(bytes) } else { None };
        foreign.map(|f| Close::new(Reason::Protocol, f.to_client()))
    }

    /// When to look at the clock again.
    fn wake(&self) -> Instant {
        let speak = self.told_at + self.longest_silence();
        let passes = self.wake_to_pass();
        // Who is not read cannot be heard.
        let deadline = self.session.deadline().filter(|_| self.reads(Instant::now()));
        match &self.task {
            Task::Waiting => deadline.unwrap_or(speak),
            Task::Subscribe(s) => [deadline, s.wishes.due()].into_iter().flatten().fold(speak, Instant::min),
            Task::Publish(_) => [deadline, passes].into_iter().flatten().fold(speak, Instant::min),
        }
    }

    /// Whether more may be read now.
    fn reads(&self, now: Instant) -> bool {
        match &self.task {
            Task::Publish(p) => !p.pacing.is_full() && !p.pacing.is_overdue(now),
            _ => true,
        }
    }

    /// Does what is due.
    async fn deadline(&mut self, socket: &mut Socket) -> Result<(), Close> {
        let now = Instant::now();
        self.pass_on(now)?;
        if matches!(&self.task, Task::Subscribe(s) if s.wishes.due().is_some_and(|due| due <= now)) {
            self.forward_held(socket).await?;
        }
        self.tell_frames(socket).await?;
        // What waited for room.
        self.messages(socket).await?;
        match self.session.expired(now) {
            Some(close) if self.reads(now) => Err(close),
            _ => self.sign_of_life(socket).await,
        }
    }

    /// Tells a publisher how long bundles its listeners want, when that has changed.
    async fn tell_frames(&mut self, socket: &mut Socket) -> Result<(), Close> {
        let Task::Publish(p) = &mut self.task else { return Ok(()) };
        let wanted = p.publisher.wanted_frames();
        if wanted.is_none() || std::mem::replace(&mut p.frames, wanted) == wanted {
            return Ok(());
        }
        self.send(&Message::Control(Control { bundle_frames: wanted, ..Control::default() }), socket).await
    }

    fn longest_silence(&self) -> Duration {
        (self.shared.config.borrow().limits.timeouts.idle / SIGNS_OF_LIFE).min(LONGEST_SILENCE)
    }

    /// Says something if nothing was said for long.
    async fn sign_of_life(&mut self, socket: &mut Socket) -> Result<(), Close> {
        if matches!(self.task, Task::Waiting) || self.told_at.elapsed() < self.longest_silence() {
            return Ok(());
        }
        self.send(&Message::Control(Control::default()), socket).await
    }

    /// Takes in what has been read, as far as there is room.
    async fn messages(&mut self, socket: &mut Socket) -> Result<(), Close> {
        loop {
            if matches!(&self.task, Task::Publish(p) if p.pacing.is_full()) {
                return Ok(());
            }
            let next = self.framer.next().map_err(|e| Close::new(Reason::Protocol, e.to_string()))?;
            let Some(message) = next else { return Ok(()) };
            // A reload holds from the next message on, however many have arrived.
            if self.config.has_changed().unwrap_or(false) {
                self.still_allowed()?;
            }
            let message = if self.wire.thin {
                self.thin.1.whole(message).map_err(|e| Close::new(Reason::Protocol, e.to_string()))?
            } else {
                message
            };
            let (message, work) = self.decoded(message).await?;
            let profile = self.shared.engine.profile();
            if !matches!(message, Message::Bundle { .. }) {
                self.flood.message(Instant::now())?;
            }
            let handled = self.session.handle(message, &profile, Instant::now());
            if let Coder::Publisher(intake) = &self.coder {
                intake.charge(handled.is_err(), work, &self.guest.visit);
            }
            match handled? {
                Event::Opened(hello, ack) => self.open(&hello, ack, socket).await?,
                Event::Bundle(bundle) => {
                    self.take(bundle);
                    self.tell_frames(socket).await?;
                    self.sign_of_life(socket).await?;
                }
                Event::Stages(wanted) => {
                    if let Task::Subscribe(s) = &mut self.task {
                        s.stages = wanted;
                        s.listener.want(wanted);
                        if let Coder::Subscriber(coder, _) = &mut self.coder {
                            coder.want(wanted);
                        }
                    }
                }
                Event::Alive => {}
                Event::Done => {
                    self.drain().await?;
                    return Err(Close::new(Reason::Done, "as asked"));
                }
            }
        }
    }

    async fn open(&mut self, hello: &Hello, ack: Message, socket: &mut Socket) -> Result<(), Close> {
        let name = &hello.stream;
        {
            let config = self.config.borrow_and_update();
            authorize(&config.tokens, hello)?;
            // Nobody could publish before there was a page: that stays so until somebody says who may.
            if self.via == Via::Page
                && hello.role == Role::Publish
                && config.tokens.is_empty()
                && config.codes.is_none()
            {
                let why = "publishing from a page needs a token that may publish, or the codes port (codes.listen)";
                return Err(Close::new(Reason::Denied, why));
            }
        }
        self.pass = Some(Pass::of(hello));
        self.task = match hello.role {
            Role::Publish => Task::Publish(Box::new(self.publishing(hello).await?)),
            Role::Subscribe => Task::Subscribe(Box::new(self.subscription(hello, &ack))),
        };
        info!(stream = %name, role = ?hello.role, "session open");
        let ack = self.agree(hello, ack);
        self.send(&ack, socket).await
    }

    async fn publishing(&self, hello: &Hello) -> Result<Publishing, Close> {
        let busy = || Close::new(Reason::Busy, format!("somebody else publishes stream {}", hello.stream));
        let publisher = self.shared.publish(&hello.stream).await.ok_or_else(busy)?;
        if let Some(rate) = hello.constant {
            publisher.make_constant(rate);
        }
        let pacing = Pacing::new(hello.pace, self.shared.config.borrow().limits.max_lag);
        Ok(Publishing { publisher, pacing, spans: Spans::default(), taken: 0, frames: None, stale: 0 })
    }

    fn subscription(&self, hello: &Hello, ack: &Message) -> Subscription {
        let (name, stages) = (hello.stream.clone(), hello.stages.unwrap_or(StageCount::MAX));
        // It may read as fast as it likes, so what is late need not stay late.
        let mut listener = self.shared.listen(&name, Keep::Newest);
        listener.want(stages);
        let knows = matches!(ack, Message::HelloAck { wire, .. } if wire.silence);
        let wishes = Wishes::new(hello, knows, &mut listener);
        Subscription { name, listener, stages, sequence: 0, wishes, padded: 0 }
    }

    /// Takes a bundle in; it is passed on when its time has come.
    fn take(&mut self, bundle: PackedBundle) {
        if let Task::Publish(p) = &mut self.task {
            let frames = p.spans.frames(bundle.first_frame, bundle.frames, bundle.is_background());
            p.pacing.push(bundle, Profile::FRAME_TIME * frames as u32, Instant::now());
            let stale = p.pacing.dropped() - std::mem::replace(&mut p.stale, p.pacing.dropped());
            self.shared.counters.stale.fetch_add(stale, Ordering::Relaxed);
        }
    }

    /// Passes on what may be.
    fn pass_on(&mut self, now: Instant) -> Result<(), Close> {
        let Task::Publish(p) = &mut self.task else { return Ok(()) };
        let p = p.as_mut();
        while let Some(passed) = p.pacing.pop(now) {
            p.send(passed, self.shared);
        }
        if p.publisher.is_overruled() {
            return Err(Close::new(Reason::Busy, "an earlier publisher of this stream is on another daemon"));
        }
        Ok(())
    }

    /// Passes on what was taken in, each bundle in its time; a shutdown does not wait for that.
    async fn drain(&mut self) -> Result<(), Close> {
        let stop = &self.shared.stop_input;
        while let Some(wake) = self.wake_to_pass() {
            tokio::select! {
                () = stop.cancelled() => {
                    self.flush();
                    return Err(self.shutting_down());
                }
                () = sleep_until(wake.into()) => self.pass_on(Instant::now())?,
            }
        }
        Ok(())
    }

    fn wake_to_pass(&self) -> Option<Instant> {
        match &self.task {
            Task::Publish(p) => p.pacing.wake(),
            _ => None,
        }
    }

    /// Passes on whatever waits.
    fn flush(&mut self) {
        if let Task::Publish(p) = &mut self.task {
            while let Some(passed) = p.pacing.flush() {
                p.send(passed, self.shared);
            }
        }
    }

    fn shutting_down(&self) -> Close {
        let text = match &self.task {
            Task::Publish(p) => format!("the server is shutting down; {} bundles were passed on", p.taken),
            _ => "the server is shutting down".to_owned(),
        };
        Close::new(Reason::ShuttingDown, text)
    }

    async fn send(&mut self, message: &Message, socket: &mut Socket) -> Result<(), Close> {
        self.out.put(message);
        self.send_out(socket).await
    }

    /// Puts a message of exactly so many bytes into the outbox, if it fits.
    fn put_padded(&mut self, message: &Message, bytes: usize) -> bool {
        let length = self.out.put_padded(message, bytes);
        let padding = bytes - length.unwrap_or(bytes).min(bytes);
        self.shared.counters.padding.fetch_add(padding as u64, Ordering::Relaxed);
        length.is_some()
    }

    async fn send_out(&mut self, socket: &mut Socket) -> Result<(), Close> {
        let patience = self.shared.config.borrow().limits.timeouts.idle;
        let start = Instant::now();
        let sent = timeout(patience, self.out.flush(socket)).await;
        self.shared.counters.send.add(start.elapsed());
        match sent {
            Ok(Ok(())) => {
                self.told_at = Instant::now();
                Ok(())
            }
            Ok(Err(_)) => Err(Close::new(Reason::Done, "the peer hung up")),
            Err(_) => Err(Close::new(Reason::SlowConsumer, format!("a write took more than {patience:?}"))),
        }
    }
}

impl Publishing {
    fn send(&mut self, passed: Passed<PackedBundle>, shared: &Shared) {
        let media = shared.engine.profile().media_time(passed.item.frames);
        shared.counters.bundle(&passed.item);
        self.publisher.send(Heard::new(passed.item, media, passed.recorded, self.pacing.is_live()));
        self.taken += 1;
    }
}

/// A bundle that a peer or the hub should not have let through.
/// What woke a connection up.
enum Wakeup {
    Stop,
    Reloaded,
    Next(Result<Heard, Ended>),
    Read(std::io::Result<usize>),
    Deadline,
}
