//! The other end over QUIC.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connecting, ConnectionError, Endpoint, TokioRuntime, TransportErrorCode};
use tokio::time::{sleep_until, timeout};

use super::flow::{Incoming, Outgoing, Part, REPORT, agreed, trimmed};
use super::link::{self, Link, LinkError, Received};
use crate::jitter::{Pacing, Played, PlayoutOptions, Report, Spans};
use crate::profile::Profile;
use crate::service::{ClientError, ClientOptions, ClientTls};
use crate::session::{
    Close, Control, Hello, Message, PackedBundle, Reason, SessionDecoder, SessionEncoder, Thin, TokenTag, Wire,
};
use crate::units::{MessageRate, StageCount};
use crate::wire::{Datagram, WireError};

/// How long a server may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How long the last bundles may take after the server's last words.
const STRAGGLERS: Duration = Duration::from_millis(300);

/// How long our last packet may take to leave.
const FAREWELL: Duration = Duration::from_millis(100);

/// How late live sound may be that is still sent. The daemon's own bound comes on top only for what the network does.
const MAX_LAG: Duration = Duration::from_millis(400);

/// What the server says that is read with a sign of life; it says little to a publisher.
const SIGNS: usize = 16;

/// What a listener hears next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuicEvent {
    /// Frames that follow what was before, with as many stages as the server sends now, or as copies have.
    Bundle(PackedBundle),
    /// So many frames did not come in time.
    Lost(u64),
    /// What follows does not continue what was before.
    Restart,
}

/// A session with a server over QUIC. It needs a runtime that also runs while none of its methods does: one with threads.
pub struct QuicClient {
    endpoint: Endpoint,
    link: Link,
    address: String,
    patience: Duration,
    incoming: Incoming,
    outgoing: Outgoing,
    /// Frame that follows what was given to the caller.
    next: u64,
    heard: Instant,
    reported: Instant,
    /// The server's last words, and when they came.
    ended: Option<(Close, Instant)>,
    /// How many bundles the server said it had sent.
    sent: u64,
    /// Nothing more comes.
    is_lost: bool,
    /// What is published, on its way out: a recording in real time, live sound no later than the bound.
    pacing: Pacing<PackedBundle>,
    spans: Spans,
    wire: Wire,
    coder: Option<Coder>,
    /// What every datagram of what is published takes, padding included.
    constant: Option<MessageRate>,
    published: Published,
    /// Frames of a bundle that the server says our listeners want.
    bundle_frames: Option<u8>,
}

/// What has left of what was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Published {
    /// Frames in datagrams.
    pub frames: u64,
    /// Codes in them; those of descriptions of silence are none.
    pub codes: u64,
    /// Bytes of the datagrams.
    pub bytes: u64,
    /// Of these, bytes that only make them equally long.
    pub padding: u64,
}

/// Both directions of a coded session. Every bundle is coded alone.
struct Coder {
    /// Before its first bundle.
    out: SessionEncoder,
    back: SessionDecoder,
}

impl std::fmt::Debug for QuicClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuicClient").field("address", &self.address).finish_non_exhaustive()
    }
}

impl QuicClient {
    /// Opens a session. Without `options.tls` only a server on this machine is trusted.
    ///
    /// # Errors
    /// [`ClientError`], with the server's reason if it refused.
    pub async fn connect(address: &str, mut hello: Hello, options: &ClientOptions) -> Result<Self, ClientError> {
        let io = |source| ClientError::Io { address: address.to_owned(), source };
        let mut found = tokio::net::lookup_host(address).await.map_err(io)?;
        let server = found.next().ok_or_else(|| io(std::io::ErrorKind::NotFound.into()))?;
        let (crypto, name) = ClientTls::quic(options.tls.as_ref(), address, server).map_err(io)?;
        let crypto = QuicClientConfig::try_from(crypto).map_err(|e| io(std::io::Error::other(e)))?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(link::transport(0));
        let socket = UdpSocket::bind(any(server)).map_err(io)?;
        let endpoint = Endpoint::new(link::single(), None, socket, Arc::new(TokioRuntime)).map_err(io)?;
        let connecting = endpoint.connect_with(config, server, &name).map_err(|e| io(std::io::Error::other(e)))?;
        let (wanted, constant) = (hello.stages.unwrap_or(StageCount::MAX), hello.constant);
        hello.wire = Wire::ALL;
        hello.coding = options.tokens.as_ref().map(TokenTag::of);
        let pacing = Pacing::new(hello.pace, MAX_LAG).never_ahead();
        let answer = ANSWER.min(options.patience);
        let silent = |_| ClientError::Silent { address: address.to_owned(), patience: answer };
        let opened = timeout(answer, handshake(connecting, hello)).await.map_err(silent)?;
        let (link, coding, wire) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(close)) => return Err(ClientError::Closed(close)),
            Err(e) => return Err(failed(address, options.patience, e)),
        };
        let now = Instant::now();
        let tokens = options.tokens.as_ref().filter(|t| coding == Some(t.id()));
        let coder = tokens.map(|t| Coder {
            out: SessionEncoder::new(Arc::clone(t)).on(wire),
            back: SessionDecoder::new(Arc::clone(t)).on(wire),
        });
        Ok(Self {
            endpoint,
            link,
            address: address.to_owned(),
            patience: options.patience,
            incoming: Incoming::new(PlayoutOptions::default()),
            outgoing: Outgoing::new(wanted, wire, now),
            next: 0,
            heard: now,
            reported: now,
            ended: None,
            sent: 0,
            is_lost: false,
            pacing,
            spans: Spans::default(),
            wire,
            coder,
            constant,
            published: Published::default(),
            bundle_frames: None,
        })
    }

    /// Goes on from another port of this machine, as after its network has changed. The server follows.
    ///
    /// # Errors
    /// The system's.
    pub fn rebind(&self) -> std::io::Result<()> {
        let local = self.endpoint.local_addr()?;
        self.endpoint.rebind(UdpSocket::bind(any(local))?)
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

    async fn tell(&mut self, message: &Message) -> Result<(), ClientError> {
        match self.link.tell(message).await {
            Err(e) => Err(failed(&self.address, self.patience, e)),
            Ok(()) => Ok(()),
        }
    }

    fn take(&mut self, received: Received) {
        let now = Instant::now();
        self.heard = now;
        match received {
            Received::Datagram(Datagram::Bundle { sequence, first_frame, thin, copies }) => {
                // What the server would not write is as good as lost.
                if let Some(bundle) = self.unpacked(thin, sequence, first_frame) {
                    let _ = self.incoming.push(sequence, &bundle, &copies, now);
                }
            }
            Received::Datagram(Datagram::Brief(brief)) => {
                if let Ok(Some((sequence, bundle))) = self.incoming.whole(brief) {
                    let _ = self.incoming.push(sequence, &bundle, &[], now);
                }
            }
            Received::Datagram(Datagram::Report(report)) => self.outgoing.rate.report(&report, now),
            Received::Message(Message::Control(Control { bundles_sent: Some(sent), .. })) => {
                self.sent = sent;
                self.incoming.announce(sent);
            }
            Received::Message(Message::Control(Control { bundle_frames: Some(frames), .. })) => {
                self.bundle_frames = Some(frames);
            }
            Received::Message(Message::Close(close)) => {
                self.ended.get_or_insert((close, now));
            }
            Received::Message(_) => {}
        }
    }

    fn unpacked(&mut self, thin: Thin, sequence: u64, first_frame: u64) -> Option<PackedBundle> {
        match (thin.whole(sequence, first_frame, self.coder.is_some(), self.wire).ok()?, &mut self.coder) {
            (Message::Bundle { bundle, .. }, _) => Some(bundle),
            (Message::Coded { bundle, checked, .. }, Some(coder)) => coder.back.decode(&bundle, checked).ok(),
            _ => None,
        }
    }

    /// Sends a part of what is published.
    fn send_part(&mut self, part: Part) -> Result<(), ClientError> {
        let (frames, mut size) = (part.bundle.frames, 0);
        for attempt in part.attempts() {
            let attempt = attempt.map_err(|_| WireError::Missing("codes"))?;
            size = attempt.size().unwrap_or_default();
            let codes = if attempt.bundle.is_background() { 0 } else { attempt.bundle.codes() };
            let made = match &self.coder {
                Some(coder) if codes > 0 => {
                    let (bundle, checked) = coder.out.clone().encode(&attempt.bundle)?;
                    attempt.coded(bundle, checked)
                }
                _ => attempt.packed(),
            };
            let Some((datagram, padding)) = made else { continue };
            let p = &mut self.published;
            (p.frames, p.codes) = (p.frames + u64::from(frames), p.codes + u64::from(codes));
            (p.bytes, p.padding) = (p.bytes + datagram.len() as u64, p.padding + padding as u64);
            self.link.send(datagram);
            return Ok(());
        }
        Err(ClientError::Small { bytes: size, frames })
    }

    /// Waits for what comes, but not longer than to `wake`. Cancel-safe.
    async fn wait(&mut self, wake: Instant) -> Result<(), ClientError> {
        let limit = self.heard + self.patience;
        tokio::select! {
            biased;
            received = self.link.receive(), if !self.is_lost => match received {
                Ok(received) => self.take(received),
                // What came before is still played.
                Err(_) if self.ended.is_some() => self.is_lost = true,
                Err(e) => return Err(failed(&self.address, self.patience, e)),
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
    /// # Errors
    /// [`ClientError`].
    pub async fn next(&mut self) -> Result<Option<QuicEvent>, ClientError> {
        loop {
            let now = Instant::now();
            if now.duration_since(self.reported) >= REPORT {
                self.reported = now;
                let report = self.incoming.report();
                self.link.send(Datagram::Report(report).encode());
            }
            let mut wake = self.reported + REPORT;
            if let Some((close, at)) = self.ended.as_ref().filter(|_| self.incoming.is_empty()) {
                let over = *at + STRAGGLERS + self.incoming.delay();
                if self.incoming.has_all(self.sent) || now >= over {
                    return match close.reason {
                        Reason::StreamEnded | Reason::ShuttingDown | Reason::Done => Ok(None),
                        _ => Err(ClientError::Closed(close.clone())),
                    };
                }
                wake = wake.min(over);
            } else {
                match self.incoming.pop(now) {
                    Some(Played::Packet(bundle)) => {
                        let Some(bundle) = trimmed(bundle, self.next) else { continue };
                        self.next = bundle.first_frame.saturating_add(u64::from(bundle.frames));
                        return Ok(Some(QuicEvent::Bundle(bundle)));
                    }
                    Some(Played::Lost { first_frame, frames }) => {
                        self.next = first_frame.saturating_add(frames);
                        return Ok(Some(QuicEvent::Lost(frames)));
                    }
                    // Whoever plays makes it up.
                    Some(Played::Quiet { .. }) => {}
                    Some(Played::Restart) => {
                        self.next = 0;
                        return Ok(Some(QuicEvent::Restart));
                    }
                    None => wake = self.incoming.wake().map_or(wake, |w| w.min(wake)),
                }
            }
            self.wait(wake).await?;
        }
    }

    /// Asks for at most this many stages.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn set_stages(&mut self, stages: StageCount) -> Result<(), ClientError> {
        self.tell(&Message::Control(Control { stages: Some(stages), ..Control::default() })).await
    }

    /// Hangs up.
    pub async fn leave(self) {
        let Self { endpoint, link, .. } = self;
        link.close(Duration::ZERO).await;
        let _ = timeout(FAREWELL, endpoint.wait_idle()).await;
    }

    fn closed(&self) -> Result<(), ClientError> {
        match &self.ended {
            Some((close, _)) => Err(ClientError::Closed(close.clone())),
            None => Ok(()),
        }
    }

    /// Publishes a bundle. Nothing else holds a publisher to real time here: of a recording this waits until its time has come; live
    /// sound that is too late is left out.
    ///
    /// # Errors
    /// [`ClientError`], with the server's reason if it closed the session.
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
            let packed = self.outgoing.pack(&passed.item, self.constant, Instant::now());
            for part in packed.map_err(|_| WireError::Missing("a payload that fits"))? {
                self.send_part(part)?;
            }
        }
        Ok(())
    }

    /// Whether the server agreed to coded bundles.
    pub fn is_coded(&self) -> bool {
        self.coder.is_some()
    }

    /// Whether silence may be described instead of sent.
    pub fn knows_silence(&self) -> bool {
        self.wire.silence
    }

    /// Whether frames of a bundle may have stage counts of their own.
    pub fn is_graded(&self) -> bool {
        self.wire.graded
    }

    /// What has left so far of what was published.
    pub fn published(&self) -> Published {
        self.published
    }

    /// Most frames of bundles that all who listen want, as the server said last; None if it has not.
    pub fn bundle_frames(&self) -> Option<u8> {
        self.bundle_frames
    }

    /// Bundles of live sound that were not sent because they were too late.
    pub fn stale(&self) -> u64 {
        self.pacing.dropped()
    }

    /// To be called several times a second while there is nothing to publish: tells the server soon that it is a pause and no
    /// loss, and then every second that we are still here.
    ///
    /// # Errors
    /// [`ClientError`], with the server's reason if it closed the session.
    pub async fn sign_of_life(&mut self) -> Result<(), ClientError> {
        self.pass_on().await?;
        if let Some(announcement) = self.outgoing.announcement(Instant::now()) {
            self.tell(&announcement).await?;
        }
        // What has arrived meanwhile: a report a second, or the last words.
        for _ in 0..SIGNS {
            self.wait(Instant::now()).await?;
        }
        self.closed()
    }

    /// Ends the session; waits until the server says that it is done.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn finish(mut self) -> Result<(), ClientError> {
        while let Some(wake) = self.pacing.wake() {
            self.closed()?;
            self.wait(wake).await?;
            self.pass_on().await?;
        }
        let last = self.outgoing.count();
        self.tell(&last).await?;
        self.tell(&Message::Close(Close::new(Reason::Done, ""))).await?;
        let limit = Instant::now() + ANSWER;
        while self.ended.is_none() {
            if Instant::now() >= limit {
                return Err(ClientError::Silent { address: self.address, patience: ANSWER });
            }
            self.wait(limit).await?;
        }
        let ended = self.ended.take();
        self.leave().await;
        match ended {
            Some((close, _)) if close.reason != Reason::Done => Err(ClientError::Closed(close)),
            _ => Ok(()),
        }
    }
}

fn any(like: SocketAddr) -> &'static str {
    if like.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
}

/// A session, the token model that was agreed on, and the forms of messages.
type Opened = (Link, Option<[u8; 8]>, Wire);

/// The handshake, and the server's answer to Hello.
async fn handshake(connecting: Connecting, hello: Hello) -> Result<Result<Opened, Close>, LinkError> {
    let connection = connecting.await.map_err(LinkError::Lost)?;
    let stream = connection.open_bi().await.map_err(LinkError::Lost)?;
    let mut link = Link::new(connection, stream);
    link.tell(&Message::Hello(hello)).await?;
    loop {
        match link.receive().await? {
            Received::Message(Message::HelloAck { coding, wire, .. }) => return Ok(Ok((link, coding, agreed(wire)))),
            Received::Message(Message::Close(close)) => return Ok(Err(close)),
            // The first bundle may overtake the answer; it counts as not heard.
            Received::Datagram(_) => {}
            Received::Message(_) => return Err(WireError::Missing("HelloAck").into()),
        }
    }
}

/// What a failed connection means.
fn failed(address: &str, patience: Duration, e: LinkError) -> ClientError {
    let address = address.to_owned();
    let lost = match e {
        LinkError::Wire(e) => return e.into(),
        LinkError::Over => return ClientError::Cut(address),
        LinkError::Full => return ClientError::Silent { address, patience },
        LinkError::Lost(e) => e,
    };
    match lost {
        ConnectionError::TimedOut => ClientError::Silent { address, patience },
        ConnectionError::ApplicationClosed(_) | ConnectionError::Reset => ClientError::Cut(address),
        ConnectionError::ConnectionClosed(frame) if frame.error_code == TransportErrorCode::CONNECTION_REFUSED => {
            ClientError::Closed(Close::new(Reason::Full, "the server has no room for another session"))
        }
        e => ClientError::Io { address, source: std::io::Error::new(std::io::ErrorKind::ConnectionAborted, e) },
    }
}
