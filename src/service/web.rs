//! The page for people: its files, and the WebSocket that tells it of streams and plays one.
//!
//! A page that plays is a listener of the hub with a slot of the engine, as any raw output is. A page that decodes codes itself, or
//! publishes, speaks the protocol of the codes port over a second WebSocket (channel.rs).

mod channel;
mod files;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use hyper::header::{
    CONNECTION, CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, REFERRER_POLICY, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role as Side, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tracing::{debug, info, warn};

use channel::Channel;
pub use files::PageCodec;
pub(super) use files::{CodecFile, PIECE};

use super::access::{Flood, SlotShare, known, may_listen};
use super::codes::{self, Via};
use super::door::Guest;
use super::hub::{Ended, Heard, Listener};
use super::names::{header, our_page};
use super::pcm::{PcmError, Sound, slot_share};
use super::tls::Socket;
use super::{Counters, Shared};
use crate::config::Config;
use crate::dsp::PcmWriter;
use crate::jitter::Keep;
use crate::profile::Profile;
use crate::session::{StreamName, Timeouts};
use crate::units::{PcmFormat, StageCount};

/// Query of the WebSocket over which codes go.
pub(super) const CODES: &str = "codes=1";

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The page's files: path, kind, text.
const FILES: [(&str, &str, &str); 8] = [
    ("/", "text/html; charset=utf-8", include_str!("web/index.html")),
    ("/face.css", "text/css; charset=utf-8", include_str!("web/face.css")),
    ("/face.js", SCRIPT, include_str!("web/face.js")),
    ("/codes.js", SCRIPT, include_str!("web/codes.js")),
    ("/codec.js", SCRIPT, include_str!("web/codec.js")),
    ("/worker.js", SCRIPT, include_str!("web/worker.js")),
    ("/player.js", SCRIPT, include_str!("web/player.js")),
    ("/recorder.js", SCRIPT, include_str!("web/recorder.js")),
];

/// Sent with every answer: nothing from elsewhere, nothing inline, in nobody's frame.
pub(super) const HEADERS: [(HeaderName, &str); 2] = [
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (REFERRER_POLICY, "no-referrer"),
];

/// How often the page is told of streams.
const STATUS: Duration = Duration::from_millis(500);

/// Longest message of a page.
const MAX_MESSAGE: usize = 4 << 10;

/// How often a page is told how its stream does.
const HEARD: Duration = Duration::from_millis(200);

/// How long the last words may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// A file of the page, with its kind.
pub(super) fn file(path: &str) -> Option<(&'static str, &'static str)> {
    FILES.iter().find(|(p, ..)| *p == path).map(|(_, kind, text)| (*kind, *text))
}

/// Answers a request for the WebSocket; the connection is one from there on.
///
/// # Errors
/// What to answer instead.
pub(super) fn upgrade(
    shared: &Shared,
    headers: &HeaderMap,
    guest: &Guest,
) -> Result<Response<()>, (StatusCode, &'static str)> {
    let has = |name: HeaderName, word: &str| {
        header(headers, name.as_str()).is_some_and(|v| v.split(',').any(|w| w.trim().eq_ignore_ascii_case(word)))
    };
    let Some(key) = header(headers, SEC_WEBSOCKET_KEY.as_str()).filter(|k| k.len() == 24) else {
        return Err((StatusCode::UPGRADE_REQUIRED, "a WebSocket is here\n"));
    };
    if !has(UPGRADE, "websocket") || !has(CONNECTION, "upgrade") || !has(SEC_WEBSOCKET_VERSION, "13") {
        return Err((StatusCode::UPGRADE_REQUIRED, "a WebSocket of version 13 is here\n"));
    }
    let config = shared.config.borrow();
    our_page(headers, &config.http, shared.tls.is_some()).map_err(|why| (StatusCode::FORBIDDEN, why))?;
    if guest.permit.is_reserved && config.tokens.is_empty() {
        let why = "all connections (limits.max_connections) are in use\n";
        return Err((StatusCode::SERVICE_UNAVAILABLE, why));
    }
    let switching = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(UPGRADE, "websocket")
        .header(CONNECTION, "Upgrade")
        .header(SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes()));
    Ok(switching.body(()).expect("a key in base 64 is a header value"))
}

/// What a page may ask.
#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
enum Ask {
    Login { token: String },
    Listen { stream: String, stages: u8 },
    Stages { stages: u8 },
    Stop {},
    Ping { at: f64 },
}

/// Why a page's connection ends; None is the peer's own wish.
type End = Option<(CloseCode, &'static str)>;

struct Page<'a> {
    shared: &'a Shared,
    guest: &'a Guest,
    config: watch::Receiver<Arc<Config>>,
    socket: WebSocketStream<Socket>,
    /// Empty until the page logs in.
    secret: String,
    login: Login,
    player: Option<Player<'a>>,
    heard_from: Instant,
    flood: Flood,
}

/// How far a page has come with its login.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Login {
    /// Not asked yet.
    New,
    /// It was in, and a reload changed that.
    Lost,
    /// Asked, then; what it sent before it could know is no offence for so long.
    Asked(Instant, Duration),
    /// It has shown a token that is still known, or none is needed.
    In,
}

struct Player<'a> {
    _share: SlotShare,
    listener: Listener,
    sound: Sound<'a>,
    writer: PcmWriter,
    stages: StageCount,
    frames: u64,
    told: Option<Instant>,
}

/// Serves a page that speaks the protocol of the codes port, from the end of the handshake; `read` was read already.
pub(super) async fn serve_codes(shared: Shared, socket: Socket, read: Vec<u8>, guest: &Guest) {
    let channel = Channel::new(socket, read).await;
    codes::serve(shared, Box::new(channel), guest, Via::Page).await;
}

/// Serves a page from the end of the handshake; `read` was read already.
pub(super) async fn serve(shared: Shared, socket: Socket, read: Vec<u8>, guest: &Guest) {
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    let socket = WebSocketStream::from_partially_read(socket, read, Side::Server, Some(config)).await;
    let now = Instant::now();
    let mut page = Page {
        shared: &shared,
        guest,
        config: shared.config.clone(),
        socket,
        secret: String::new(),
        login: Login::New,
        player: None,
        heard_from: now,
        flood: Flood::new(now),
    };
    let end = page.run().await;
    if let Some((code, reason)) = end {
        if code == CloseCode::Policy {
            Counters::add(&shared.counters.hostile);
            warn!(reason, "a page's connection was closed");
        }
        let frame = CloseFrame { code, reason: reason.into() };
        let _ = timeout(GOODBYE, page.socket.close(Some(frame))).await;
    } else {
        debug!("a page went away");
    }
}

impl Page<'_> {
    async fn run(&mut self) -> End {
        let mut ticks = interval(STATUS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let shared = self.shared;
        loop {
            let listener = self.player.as_mut().map(|p| &mut p.listener);
            let result = tokio::select! {
                biased;
                () = shared.stop_output.cancelled() => Err(Some((CloseCode::Away, "the daemon is shutting down"))),
                Ok(()) = self.config.changed() => {
                    self.config.mark_unchanged();
                    self.tick().await
                }
                _ = ticks.tick() => self.tick().await,
                message = self.socket.next() => match message {
                    Some(Ok(message)) => self.message(message).await,
                    Some(Err(_)) | None => Err(None),
                },
                next = async { match listener { Some(l) => l.next().await, None => std::future::pending().await } } => {
                    match next {
                        Ok(heard) => self.play(&heard).await,
                        Err(Ended::Stream) => self.stop("The stream ended").await,
                        Err(Ended::Slow) => {
                            Counters::add(&shared.counters.slow);
                            self.stop("This connection is too slow for the stream").await
                        }
                    }
                }
            };
            if let Err(end) = result {
                return end;
            }
        }
    }

    async fn send(&mut self, message: Message) -> Result<(), End> {
        let patience = self.shared.config.borrow().limits.timeouts.idle;
        match timeout(patience, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(None),
            Err(_) => {
                Counters::add(&self.shared.counters.slow);
                Err(None)
            }
        }
    }

    async fn tell(&mut self, value: Value) -> Result<(), End> {
        self.send(Message::text(value.to_string())).await
    }

    /// Whether the page may hear a stream. Asked anew every time: tokens may be taken back by a reload.
    fn may(&self, stream: &StreamName) -> bool {
        may_listen(&self.shared.config.borrow().tokens, &self.secret, stream)
    }

    /// Whether the page may ask for anything now. Asked anew every time: a reload may take its token back, or begin to
    /// ask for one.
    fn is_in(&mut self) -> bool {
        if known(&self.shared.config.borrow().tokens, &self.secret) {
            self.login = Login::In;
            return true;
        }
        if self.login == Login::In {
            self.login = Login::Lost;
        }
        false
    }

    /// Asks for a token once, and then waits for it.
    async fn ask_to_log_in(&mut self, timeouts: Timeouts) -> Result<(), End> {
        let Login::Asked(at, _) = self.login else {
            if self.player.is_some() {
                self.stop("A token is needed now").await?;
            }
            let reason = if self.secret.is_empty() { "" } else { "This token is not known any more." };
            self.secret.clear();
            let late = if self.login == Login::Lost { LATE } else { Duration::ZERO };
            self.login = Login::Asked(Instant::now(), late);
            return self.tell(json!({"type": "login", "reason": reason})).await;
        };
        // A person types the token: they have as long as a silent peer, but not in a place that is kept for who logs in.
        let patience = if self.guest.permit.is_reserved { timeouts.handshake } else { timeouts.idle.max(LOGIN) };
        if at.elapsed() > patience {
            return Err(Some((CloseCode::Policy, "no token in time")));
        }
        self.send(Message::Ping(Bytes::new())).await
    }

    async fn tick(&mut self) -> Result<(), End> {
        let timeouts = self.shared.config.borrow().limits.timeouts;
        if self.heard_from.elapsed() > timeouts.idle {
            return Err(Some((CloseCode::Policy, "nothing was heard from the page")));
        }
        if !self.is_in() {
            return self.ask_to_log_in(timeouts).await;
        }
        if self.player.as_ref().is_some_and(|p| !self.may(p.sound.stream())) {
            self.stop("The token may no longer listen to this stream").await?;
        }
        let (used, slots) = self.shared.engine.slots();
        let stages = self.shared.engine.profile().stages.index();
        let seen = self.shared.hub.list().into_iter().filter(|s| s.published && self.may(&s.name));
        let streams: Vec<_> = seen
            .map(|s| {
                json!({
                    "name": s.name.as_str(), "listeners": s.listeners, "bundles": s.bundles, "bytes": s.bytes,
                    "lost": s.lost, "silent": s.is_silent, "silent_frames": s.silent, "bits": &s.stage_bits[..stages], "level": s.level,
                    "saved_s": s.saved_s, "age_ms": s.age.map(|a| a.as_secs_f64() * 1e3),
                })
            })
            .collect();
        self.tell(json!({
            "type": "status", "version": env!("CARGO_PKG_VERSION"), "slots_used": used, "slots": slots,
            "max_stages": stages, "streams": streams, "effort": self.shared.engine.effort(),
        }))
        .await
    }

    async fn message(&mut self, message: Message) -> Result<(), End> {
        self.heard_from = Instant::now();
        if self.flood.message(self.heard_from).is_err() {
            return Err(Some((CloseCode::Policy, "a flood of messages")));
        }
        let text = match message {
            Message::Text(text) => text,
            Message::Close(_) => return Err(None),
            Message::Ping(_) | Message::Pong(_) => return Ok(()),
            _ => return Err(Some((CloseCode::Unsupported, "text only"))),
        };
        let Ok(ask) = serde_json::from_str::<Ask>(&text) else {
            return Err(Some((CloseCode::Policy, "not a message of the page")));
        };
        match ask {
            Ask::Login { token } => self.login(token).await,
            _ if !self.is_in() => match self.login {
                Login::Lost => {
                    let timeouts = self.shared.config.borrow().limits.timeouts;
                    self.ask_to_log_in(timeouts).await
                }
                Login::Asked(at, late) if at.elapsed() < late => Ok(()),
                _ => Err(Some((CloseCode::Policy, "a token is needed first"))),
            },
            Ask::Listen { stream, stages } => self.listen(&stream, stages).await,
            Ask::Stages { stages } => {
                if let (Some(player), Ok(stages)) = (&mut self.player, StageCount::new(stages)) {
                    player.stages = stages;
                }
                Ok(())
            }
            Ask::Stop {} => {
                self.player = None;
                Ok(())
            }
            Ask::Ping { at } => self.tell(json!({"type": "pong", "at": at})).await,
        }
    }

    async fn login(&mut self, token: String) -> Result<(), End> {
        if !known(&self.shared.config.borrow().tokens, &token) {
            Counters::add(&self.shared.counters.refused);
            warn!("a page showed a token that is not known");
            return self.tell(json!({"type": "login", "reason": "This token is not known."})).await;
        }
        self.secret = token;
        self.tick().await
    }

    async fn listen(&mut self, stream: &str, stages: u8) -> Result<(), End> {
        self.player = None;
        let (Ok(stream), Ok(stages)) = (StreamName::new(stream), StageCount::new(stages)) else {
            return Err(Some((CloseCode::Policy, "no such stream name or rate")));
        };
        if !self.may(&stream) {
            Counters::add(&self.shared.counters.refused);
            return self.stop("The token may not listen to this stream").await;
        }
        let opened = slot_share(self.shared, self.guest).and_then(|s| Ok((s, Sound::open(self.shared, &stream)?)));
        let (share, sound) = match opened {
            Ok(opened) => opened,
            Err(e) => {
                Counters::add(&self.shared.counters.refused);
                let reason = format!("Not possible now: {e}");
                return self.tell(json!({"type": "stopped", "reason": reason})).await;
            }
        };
        info!(%stream, %stages, "a page listens");
        let mut listener = self.shared.listen(&stream, Keep::Prompt);
        listener.fill_silence(Profile::FRAME_TIME);
        self.player = Some(Player {
            _share: share,
            listener,
            sound,
            writer: PcmWriter::new(PcmFormat::CODEC),
            stages,
            frames: 0,
            told: None,
        });
        let name = stream.as_str();
        self.tell(json!({"type": "playing", "stream": name})).await
    }

    async fn stop(&mut self, reason: &str) -> Result<(), End> {
        self.player = None;
        self.tell(json!({"type": "stopped", "reason": reason})).await
    }

    async fn play(&mut self, bundle: &Heard) -> Result<(), End> {
        let Some(player) = &mut self.player else { return Ok(()) };
        let skipped = self.shared.skipped(&mut player.listener, player.sound.stream());
        player.listener.delivered(bundle);
        if skipped > 0 {
            self.tell(json!({"type": "skipped", "frames": skipped})).await?;
        }
        let Some(player) = &mut self.player else { return Ok(()) };
        match player.decode(bundle).await {
            Ok((bytes, heard)) => {
                self.send(Message::binary(bytes)).await?;
                match heard {
                    Some(heard) => self.tell(heard).await,
                    None => Ok(()),
                }
            }
            Err(e) => {
                warn!(error = %e, "a page's stream cannot be decoded");
                self.stop(&format!("The stream cannot be decoded: {e}")).await
            }
        }
    }
}

/// How long a person may take to type a token.
const LOGIN: Duration = Duration::from_secs(120);

/// How long what a page has sent may be on its way.
const LATE: Duration = Duration::from_secs(5);

impl Player<'_> {
    /// Samples as s16le, and now and then how the stream does.
    async fn decode(&mut self, heard: &Heard) -> Result<(Vec<u8>, Option<Value>), PcmError> {
        let start = Instant::now();
        let mut bytes = Vec::new();
        self.writer.push(self.sound.decode(heard, self.stages).await?, &mut bytes);
        self.frames += u64::from(heard.frames);
        if self.told.is_some_and(|at| at.elapsed() < HEARD) {
            return Ok((bytes, None));
        }
        self.told = Some(Instant::now());
        let heard = json!({
            "type": "heard", "stages": heard.stages.min(self.stages).value(), "frames": self.frames,
            "missing": self.sound.missing_frames(), "decode_ms": start.elapsed().as_secs_f64() * 1e3,
        });
        Ok((bytes, Some(heard)))
    }
}
