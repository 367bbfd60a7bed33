//! The other end over UDP.

use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::time::{sleep_until, timeout};

use super::flow::{Incoming, Outgoing, REPORT, trimmed};
use crate::jitter::{Pacing, Played, PlayoutOptions, Report, Spans};
use crate::profile::Profile;
use crate::service::ClientError;
use crate::session::{Close, Hello, Message, PackedBundle, Reason, Wire};
use crate::units::StageCount;
use crate::wire::{COOKIE_LEN, Datagram, MAX_DATAGRAM, WireError};

/// How long a server may take to answer, and how often it is asked meanwhile.
const ANSWER: Duration = Duration::from_secs(10);
const ASK_EVERY: Duration = Duration::from_millis(300);

/// How long the last bundles may take after the server's last words.
const STRAGGLERS: Duration = Duration::from_millis(300);

/// How late live sound may be that is still sent. The daemon's own bound comes on top only for what the network does.
const MAX_LAG: Duration = Duration::from_millis(400);

/// Datagrams of the server that are read with a sign of life; it says little to a publisher.
const SIGNS: usize = 16;

/// What a listener hears next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UdpEvent {
    /// Frames that follow what was before, with as many stages as the server sends now, or as copies have.
    Bundle(PackedBundle),
    /// So many frames did not come in time.
    Lost(u64),
    /// What follows does not continue what was before.
    Restart,
}

/// A session with a server over UDP.
pub struct UdpClient {
    socket: UdpSocket,
    address: String,
    patience: Duration,
    session: u64,
    incoming: Incoming,
    outgoing: Outgoing,
    /// Frame that follows what was given to the caller.
    next: u64,
    heard: Instant,
    reported: Instant,
    /// The server's last words, when they came, and how many bundles it had sent.
    ended: Option<(Close, Instant, u64)>,
    /// What is published, on its way out: a recording in real time, live sound no later than the bound.
    pacing: Pacing<PackedBundle>,
    spans: Spans,
    wire: Wire,
}

impl std::fmt::Debug for UdpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UdpClient").field("address", &self.address).finish_non_exhaustive()
    }
}

impl UdpClient {
    /// Opens a session: the server first sees that we receive at our address.
    ///
    /// Errors: [`ClientError`], with the server's reason if it refused.
    pub async fn connect(address: &str, mut hello: Hello, patience: Duration) -> Result<Self, ClientError> {
        let io = |source| ClientError::Io { address: address.to_owned(), source };
        let mut found = tokio::net::lookup_host(address).await.map_err(io)?;
        let server = found.next().ok_or_else(|| io(std::io::ErrorKind::NotFound.into()))?;
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).await.map_err(io)?;
        socket.connect(server).await.map_err(io)?;
        let wanted = hello.stages.unwrap_or(StageCount::MAX);
        hello.wire = Wire::DATAGRAMS;
        let pacing = Pacing::new(hello.pace, MAX_LAG).never_ahead();
        let answer = ANSWER.min(patience);
        let silent = |_| ClientError::Silent { address: address.to_owned(), patience: answer };
        let (session, wire) = timeout(answer, handshake(&socket, address, hello)).await.map_err(silent)??;
        let now = Instant::now();
        Ok(Self {
            socket,
            address: address.to_owned(),
            patience,
            session,
            incoming: Incoming::new(PlayoutOptions::default()),
            outgoing: Outgoing::new(session, wanted, wire, now).map_err(|_| WireError::Missing("stages"))?,
            next: 0,
            heard: now,
            reported: now,
            ended: None,
            pacing,
            spans: Spans::default(),
            wire,
        })
    }

    /// What was received so far.
    pub fn report(&mut self) -> Report {
        self.incoming.report()
    }

    /// How long the client waits for late bundles now.
    pub fn delay(&self) -> Duration {
        self.incoming.delay()
    }

    /// Stages that are sent now: fewer while the server reports losses.
    pub fn stages(&self) -> StageCount {
        self.outgoing.rate.stages()
    }

    async fn send(&self, datagram: &Datagram) {
        // A datagram that the system refuses is one more that is lost.
        let _ = self.socket.send(&datagram.encode()).await;
    }

    /// Takes a datagram; one that is not the server's is ignored.
    fn take(&mut self, bytes: &[u8]) {
        let Ok(datagram) = Datagram::decode(bytes) else { return };
        if datagram.session != self.session {
            return;
        }
        let now = Instant::now();
        self.heard = now;
        if let Some(report) = &datagram.report {
            self.outgoing.rate.report(report, now);
        }
        let sent = datagram.bundles_sent.unwrap_or(0);
        if sent > 0 {
            self.incoming.announce(sent);
        }
        match datagram.content {
            Some(Message::Bundle { sequence, bundle }) => {
                // What the server would not write is as good as lost.
                let _ = self.incoming.push(sequence, &bundle, &datagram.copies, now);
            }
            Some(Message::Close(close)) => {
                self.ended.get_or_insert((close, now, sent));
            }
            _ => {}
        }
    }

    /// Waits for a datagram, but not longer than to `wake`. Cancel-safe.
    async fn wait(&mut self, wake: Instant) -> Result<(), ClientError> {
        // One byte more than allowed tells a datagram that is too large.
        let mut buffer = [0; MAX_DATAGRAM + 1];
        let limit = self.heard + self.patience;
        tokio::select! {
            biased;
            received = self.socket.recv(&mut buffer) => match received {
                Ok(n) => self.take(&buffer[..n]),
                // The server's machine says that nobody listens there; that may pass, or patience ends.
                Err(_) => sleep_until((Instant::now() + Duration::from_millis(20)).into()).await,
            },
            () = sleep_until(wake.min(limit).into()) => {}
        }
        if Instant::now() >= limit {
            return Err(ClientError::Silent { address: self.address.clone(), patience: self.patience });
        }
        Ok(())
    }

    /// What comes next, when its time has come; None when the stream ended. Cancel-safe.
    ///
    /// Errors: [`ClientError`].
    pub async fn next(&mut self) -> Result<Option<UdpEvent>, ClientError> {
        loop {
            let now = Instant::now();
            if now.duration_since(self.reported) >= REPORT {
                self.reported = now;
                let report = Some(self.incoming.report());
                self.send(&Datagram { session: self.session, report, ..Datagram::default() }).await;
            }
            let mut wake = self.reported + REPORT;
            if let Some((close, at, sent)) = self.ended.as_ref().filter(|_| self.incoming.is_empty()) {
                if self.incoming.has_all(*sent) || now >= *at + STRAGGLERS + self.incoming.delay() {
                    let answer = Message::Close(Close::new(Reason::Done, ""));
                    self.send(&Datagram::message(self.session, answer)).await;
                    return match close.reason {
                        Reason::StreamEnded | Reason::ShuttingDown | Reason::Done => Ok(None),
                        _ => Err(ClientError::Closed(close.clone())),
                    };
                }
                wake = wake.min(*at + STRAGGLERS + self.incoming.delay());
            } else {
                match self.incoming.pop(now) {
                    Some(Played::Packet(bundle)) => {
                        let Some(bundle) = trimmed(bundle, self.next) else { continue };
                        self.next = bundle.first_frame.saturating_add(u64::from(bundle.frames));
                        return Ok(Some(UdpEvent::Bundle(bundle)));
                    }
                    Some(Played::Lost { first_frame, frames }) => {
                        self.next = first_frame.saturating_add(frames);
                        return Ok(Some(UdpEvent::Lost(frames)));
                    }
                    // Whoever plays makes it up.
                    Some(Played::Quiet { .. }) => {}
                    Some(Played::Restart) => {
                        self.next = 0;
                        return Ok(Some(UdpEvent::Restart));
                    }
                    None => wake = self.incoming.wake().map_or(wake, |w| w.min(wake)),
                }
            }
            self.wait(wake).await?;
        }
    }

    /// Asks for at most this many stages.
    pub async fn set_stages(&self, stages: StageCount) {
        let control = crate::session::Control { stages: Some(stages), ..Default::default() };
        self.send(&Datagram::message(self.session, Message::Control(control))).await;
    }

    fn closed(&self) -> Result<(), ClientError> {
        match &self.ended {
            Some((close, ..)) => Err(ClientError::Closed(close.clone())),
            None => Ok(()),
        }
    }

    /// Publishes a bundle. Nothing else holds a publisher to real time here: of a recording this waits until its time has come; live
    /// sound that is too late is left out.
    ///
    /// Errors: [`ClientError`], with the server's reason if it closed the session.
    pub async fn publish(&mut self, bundle: &PackedBundle) -> Result<(), ClientError> {
        let frames = self.spans.frames(bundle.first_frame, bundle.frames, bundle.is_background());
        let (span, own) = (Profile::FRAME_TIME * frames as u32, Profile::FRAME_TIME * u32::from(bundle.frames));
        self.pacing.push_after_silence(bundle.clone(), span, own, Instant::now());
        loop {
            self.closed()?;
            self.pass_on().await?;
            let Some(wake) = self.pacing.wake().filter(|_| self.pacing.is_full()) else { break };
            self.wait(wake).await?;
        }
        // What the server says is heard even if nothing waits.
        self.wait(Instant::now()).await?;
        self.closed()
    }

    /// Sends what may be sent now.
    async fn pass_on(&mut self) -> Result<(), ClientError> {
        while let Some(passed) = self.pacing.pop(Instant::now()) {
            let packed = self.outgoing.pack(&passed.item, Instant::now());
            for datagram in packed.map_err(|_| WireError::Missing("a payload that fits"))? {
                let _ = self.socket.send(&datagram).await;
            }
        }
        Ok(())
    }

    /// Whether silence may be described instead of sent.
    pub fn knows_silence(&self) -> bool {
        self.wire.silence
    }

    /// Bundles of live sound that were not sent because they were too late.
    pub fn stale(&self) -> u64 {
        self.pacing.dropped()
    }

    /// To be called several times a second while there is nothing to publish: tells the server soon that it is a pause and no
    /// loss, and then every second that we are still here.
    ///
    /// Errors: [`ClientError`], with the server's reason if it closed the session.
    pub async fn sign_of_life(&mut self) -> Result<(), ClientError> {
        self.pass_on().await?;
        if let Some(announcement) = self.outgoing.announcement(Instant::now()) {
            self.send(&announcement).await;
        }
        // What has arrived meanwhile: a report a second, or the last words.
        for _ in 0..SIGNS {
            self.wait(Instant::now()).await?;
        }
        self.closed()
    }

    /// Ends the session; waits until the server says that it is done.
    ///
    /// Errors: [`ClientError`].
    pub async fn finish(mut self) -> Result<(), ClientError> {
        while let Some(wake) = self.pacing.wake() {
            self.closed()?;
            self.wait(wake).await?;
            self.pass_on().await?;
        }
        let content = Some(Message::Close(Close::new(Reason::Done, "")));
        let bundles_sent = Some(self.outgoing.sent());
        let last = Datagram { session: self.session, content, bundles_sent, ..Datagram::default() };
        let start = Instant::now();
        while self.ended.is_none() {
            if start.elapsed() > ANSWER {
                return Err(ClientError::Silent { address: self.address, patience: ANSWER });
            }
            self.send(&last).await;
            let again = Instant::now() + ASK_EVERY;
            while self.ended.is_none() && Instant::now() < again {
                self.wait(again).await?;
            }
        }
        self.send(&last).await;
        match self.ended {
            Some((close, ..)) if close.reason != Reason::Done => Err(ClientError::Closed(close)),
            _ => Ok(()),
        }
    }
}

/// Asks until the server answers; gives the number of the session.
async fn handshake(socket: &UdpSocket, address: &str, hello: Hello) -> Result<(u64, Wire), ClientError> {
    let io = |source| ClientError::Io { address: address.to_owned(), source };
    let content = Some(Message::Hello(hello));
    let mut ask = Datagram { cookie: Some([0; COOKIE_LEN]), content, ..Datagram::default() };
    let mut buffer = [0; MAX_DATAGRAM + 1];
    loop {
        socket.send(&ask.encode()).await.map_err(io)?;
        let Ok(received) = timeout(ASK_EVERY, socket.recv(&mut buffer)).await else {
            // A cookie grows old; the server gives a new one.
            continue;
        };
        let n = received.map_err(io)?;
        let Ok(answer) = Datagram::decode(&buffer[..n]) else { continue };
        match answer.content {
            Some(Message::HelloAck { wire, .. }) => return Ok((answer.session, wire.common(Wire::DATAGRAMS))),
            Some(Message::Close(close)) => return Err(ClientError::Closed(close)),
            _ => ask.cookie = answer.cookie.or(ask.cookie),
        }
    }
}
