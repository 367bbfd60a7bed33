//! Codes over the WebSocket of the HTTP port: what the codes port says, in binary messages.
#![cfg(feature = "full")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use common::{Daemon, bundle, bytes, hello, tokens, within};
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};
use undertone::config::Config;
use undertone::engine::{Engine, EngineOptions};
use undertone::fake;
use undertone::service::{self, Bound};
use undertone::session::{
    Hello, Message, PackedBundle, Reason, Role, SessionDecoder, SessionEncoder, ThinReader, ThinWriter, TokenTag, Wire,
};
use undertone::wire::Framer;

const HTTP: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";

/// A page that speaks the protocol.
struct Page {
    socket: WebSocketStream<TcpStream>,
    framer: Framer,
}

impl Page {
    async fn open(http: SocketAddr) -> Self {
        Self::from(http, "/ws?codes=1", &format!("http://{http}")).await.unwrap()
    }

    async fn from(http: SocketAddr, path: &str, origin: &str) -> Result<Self, String> {
        let mut request = format!("ws://{http}{path}").into_client_request().unwrap();
        request.headers_mut().insert("Origin", origin.parse().unwrap());
        let socket = TcpStream::connect(http).await.unwrap();
        let (socket, _) = within(client_async(request, socket)).await.map_err(|e| e.to_string())?;
        Ok(Self { socket, framer: Framer::default() })
    }

    async fn say(&mut self, message: &Message) {
        self.socket.send(Frame::binary(bytes(message))).await.unwrap();
    }

    /// The next message; None at the end.
    async fn hear(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.framer.next().unwrap() {
                return Some(message);
            }
            match within(self.socket.next()).await {
                Some(Ok(Frame::Binary(bytes))) => self.framer.push(&bytes),
                Some(Ok(Frame::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// Opens a session; the server's refusal otherwise.
    async fn greet(&mut self, hello: Hello) -> Result<Message, Reason> {
        self.say(&Message::Hello(hello)).await;
        match self.hear().await {
            Some(Message::Close(close)) => Err(close.reason),
            Some(ack @ Message::HelloAck { .. }) => Ok(ack),
            other => panic!("an answer to Hello: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_gets_the_codes_that_a_subscriber_gets_and_no_slot() {
    let daemon = Daemon::start(HTTP).await;
    let http = daemon.http.unwrap();
    let mut publisher = daemon.publisher("radio").await;
    let mut packed = Page::open(http).await;
    packed.greet(hello(Role::Subscribe, "radio", Some(4))).await.unwrap();
    let mut coded = Page::open(http).await;
    let wish =
        Hello { coding: Some(TokenTag::of(&tokens())), wire: Wire::ALL, ..hello(Role::Subscribe, "radio", None) };
    let ack = coded.greet(wish).await.unwrap();
    assert!(matches!(ack, Message::HelloAck { coding: Some(_), wire: Wire::ALL, .. }), "{ack:?}");
    let subscriber = daemon.subscriber("radio", None).await;

    let slots = within(status(http)).await;
    assert!(slots.contains("\"slots_used\":0"), "{slots}");
    for number in 0..10 {
        publisher.publish(PackedBundle::pack(&bundle(number))).await.unwrap();
    }
    publisher.finish().await.unwrap();
    let sent = common::drain(subscriber).await;
    assert_eq!(sent.len(), 10);

    let (mut reader, mut decoder) = (ThinReader::new(true, Wire::ALL), SessionDecoder::new(tokens()).on(Wire::ALL));
    let (mut got, mut few) = (Vec::new(), Vec::new());
    while let Some(message) = coded.hear().await {
        match reader.whole(message).unwrap() {
            Message::Coded { bundle, checked, .. } => got.push(decoder.decode(&bundle, checked).unwrap()),
            Message::Close(close) => assert_eq!(close.reason, Reason::StreamEnded),
            _ => {}
        }
    }
    while let Some(message) = packed.hear().await {
        if let Message::Bundle { bundle, .. } = message {
            few.push(bundle);
        }
    }
    let codes = |bundles: &[PackedBundle]| bundles.iter().map(|b| b.unpack().unwrap()).collect::<Vec<_>>();
    assert_eq!(codes(&got), codes(&sent));
    let limited: Vec<_> = sent.iter().map(|b| b.limited(undertone::StageCount::new(4).unwrap()).unwrap()).collect();
    assert_eq!(few, limited);
    daemon.stop().await;
}

/// What a page is told of the engine.
async fn status(http: SocketAddr) -> String {
    let mut page = Page::from(http, "/ws", &format!("http://{http}")).await.unwrap();
    loop {
        if let Frame::Text(text) = page.socket.next().await.unwrap().unwrap() {
            return text.to_string();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_publishes_codes() {
    let daemon = Daemon::start(HTTP).await;
    let mut page = Page::open(daemon.http.unwrap()).await;
    let wish = Hello { coding: Some(TokenTag::of(&tokens())), wire: Wire::ALL, ..hello(Role::Publish, "mic", Some(6)) };
    page.greet(wish.clone()).await.unwrap();
    let mut second = Page::open(daemon.http.unwrap()).await;
    assert_eq!(second.greet(wish).await.unwrap_err(), Reason::Busy);
    let subscriber = daemon.subscriber("mic", None).await;
    let (mut coder, mut thin) = (SessionEncoder::new(tokens()).on(Wire::ALL), ThinWriter::default());
    for sequence in 0..10 {
        let (bundle, checked) = coder.encode(&PackedBundle::pack(&bundle(sequence))).unwrap();
        page.say(&thin.thin(Message::Coded { sequence, bundle, checked })).await;
    }
    page.say(&Message::Close(undertone::session::Close::new(Reason::Done, ""))).await;
    let got: Vec<_> = common::drain(subscriber).await.iter().map(|b| b.unpack().unwrap()).collect();
    assert_eq!(got, (0..10).map(bundle).collect::<Vec<_>>());
    loop {
        match page.hear().await {
            Some(Message::Close(close)) => break assert_eq!(close.reason, Reason::Done),
            Some(_) => {}
            None => panic!("no last words"),
        }
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_are_those_of_the_codes_port() {
    let daemon = Daemon::start(&format!(
        "{HTTP}[[token]]\nname = \"ear\"\nsecret = \"0123456789abcdef\"\nlisten = [\"ma*\"]\n\
         [[token]]\nname = \"mouth\"\nsecret = \"fedcba9876543210\"\npublish = [\"mic\"]\n"
    ))
    .await;
    let http = daemon.http.unwrap();
    let with = |token: &str, role, stream: &str| Hello { token: token.to_owned(), ..hello(role, stream, Some(4)) };
    for (wish, allowed) in [
        (with("", Role::Subscribe, "main"), false),
        (with("0123456789abcdee", Role::Subscribe, "main"), false),
        (with("0123456789abcdef", Role::Subscribe, "main"), true),
        (with("0123456789abcdef", Role::Subscribe, "other"), false),
        (with("0123456789abcdef", Role::Publish, "main2"), false),
        (with("fedcba9876543210", Role::Publish, "mic"), true),
        (with("fedcba9876543210", Role::Publish, "mac"), false),
    ] {
        let mut page = Page::open(http).await;
        let answer = page.greet(wish.clone()).await;
        assert_eq!(
            answer.map(|_| ()).map_err(|r| r == Reason::Denied),
            if allowed { Ok(()) } else { Err(true) },
            "{wish:?}"
        );
    }
    let refused = |answer: Result<Page, String>| answer.err().expect("a refusal");
    assert!(refused(Page::from(http, "/ws?codes=1", "http://evil.example").await).contains("403"));
    assert!(refused(Page::from(http, "/ws?codes=2", &format!("http://{http}")).await).contains("404"));
    // Who says nothing that could be a message is told so by the end of the connection.
    let mut page = Page::open(http).await;
    page.socket.send(Frame::text("{\"do\":\"stop\"}")).await.unwrap();
    assert_eq!(page.hear().await, None);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tokens_a_page_publishes_only_where_anybody_may() {
    let text = format!("pcm_input = []\npcm_output = []\n{HTTP}[codes]\nlisten = \"\"\n");
    let config = Arc::new(Config::parse(&text).unwrap());
    let options = EngineOptions { threads: 1, slots: 2, max_batch: 1, gather: Duration::ZERO, pin: false };
    let engine = Engine::start(&options, || Ok::<_, String>(fake::processor(16, 7))).unwrap();
    let bound = Bound::open(&config).await.unwrap();
    let http = bound.addresses[0];
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (_sender, receiver) = tokio::sync::watch::channel(config);
    let running = tokio::spawn(service::run(bound, engine.handle(), Some(tokens()), receiver, async {
        let _ = stopped.await;
    }));
    let mut page = Page::open(http).await;
    assert_eq!(page.greet(hello(Role::Publish, "mic", Some(4))).await.unwrap_err(), Reason::Denied);
    let mut page = Page::open(http).await;
    page.greet(hello(Role::Subscribe, "mic", Some(4))).await.unwrap();
    let _ = stop.send(());
    within(running).await.unwrap();
}
