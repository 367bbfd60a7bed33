//! What a reload takes away: sessions whose token was withdrawn, wherever they came in.
#![cfg(feature = "full")]

mod common;
#[path = "common/service.rs"]
mod service;

use std::net::SocketAddr;

use common::{bundle, drain, hello, within};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use service::Reloadable;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};
use undertone::service::{Client, ClientError, ClientOptions, QuicClient};
use undertone::session::{Hello, PackedBundle, Reason, Role};

const PORTS: &str = "[http]\nlisten = \"127.0.0.1:0\"\n[quic]\nlisten = \"127.0.0.1:0\"\n";
const STUDIO: &str =
    "[[token]]\nname = \"studio\"\nsecret = \"the-studio-secret\"\npublish = [\"*\"]\nlisten = [\"*\"]\n";
const FAN: &str = "[[token]]\nname = \"fan\"\nsecret = \"the-secret-of-a-fan\"\nlisten = [\"*\"]\n";
/// The fan may hear another stream only.
const LESS: &str = "[[token]]\nname = \"fan\"\nsecret = \"the-secret-of-a-fan\"\nlisten = [\"other\"]\n";

fn with(token: &str, role: Role, stream: &str) -> Hello {
    Hello { token: token.to_owned(), ..hello(role, stream, Some(6)) }
}

fn packed(number: u64) -> PackedBundle {
    PackedBundle::pack(&bundle(number))
}

/// The session ends because of the reload, and says so.
fn assert_withdrawn(e: &ClientError) {
    let ClientError::Closed(close) = e else { panic!("{e}") };
    assert!(close.reason == Reason::Denied && close.text.contains("read again"), "{close}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_token_ends_its_sessions_over_tcp_and_no_others() {
    for after in [STUDIO.to_owned(), format!("{STUDIO}{LESS}")] {
        let daemon = Reloadable::start(&format!("{PORTS}{STUDIO}{FAN}")).await;
        let codes = daemon.codes.to_string();
        let connect = async |token, role| within(Client::connect(&codes, with(token, role, "news"))).await.unwrap();
        let mut fan = connect("the-secret-of-a-fan", Role::Subscribe).await;
        let kept = connect("the-studio-secret", Role::Subscribe).await;
        let mut publisher = connect("the-studio-secret", Role::Publish).await;
        publisher.publish(packed(0)).await.unwrap();
        assert_eq!(within(fan.next()).await.unwrap().unwrap(), packed(0));
        daemon.reload(&format!("{PORTS}{after}"));
        assert_withdrawn(&within(fan.next()).await.unwrap_err());
        publisher.publish(packed(1)).await.unwrap();
        within(publisher.finish()).await.unwrap();
        assert_eq!(drain(kept).await, [packed(0), packed(1)]);
        assert_eq!(daemon.stop().await.refused, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_does_not_stop_talking_is_ended_too_and_its_stream_is_free() {
    let daemon = Reloadable::start(&format!("{PORTS}{STUDIO}{FAN}")).await;
    let codes = daemon.codes.to_string();
    let mut publisher =
        within(Client::connect(&codes, with("the-studio-secret", Role::Publish, "news"))).await.unwrap();
    let listener = within(Client::connect(&codes, with("the-secret-of-a-fan", Role::Subscribe, "news"))).await.unwrap();
    publisher.publish(packed(0)).await.unwrap();
    daemon.reload(&format!("{PORTS}{FAN}"));
    let ended = async {
        for n in 1.. {
            if let Err(e) = publisher.publish(packed(n)).await {
                return e;
            }
        }
        unreachable!("a publisher without its token goes on")
    };
    assert_withdrawn(&within(ended).await);
    // Who listens hears the end of the stream.
    assert!(drain(listener).await.len() < 10);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_without_a_token_end_when_tokens_appear() {
    let daemon = Reloadable::start(PORTS).await;
    let codes = daemon.codes.to_string();
    let mut listener = within(Client::connect(&codes, with("", Role::Subscribe, "news"))).await.unwrap();
    daemon.reload(&format!("{PORTS}{STUDIO}"));
    assert_withdrawn(&within(listener.next()).await.unwrap_err());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_token_ends_its_sessions_over_datagrams() {
    let daemon = Reloadable::start(&format!("{PORTS}{STUDIO}{FAN}")).await;
    let quic = daemon.addresses[2].to_string();
    let options = ClientOptions::default();
    let connect =
        async |token, role| within(QuicClient::connect(&quic, with(token, role, "news"), &options)).await.unwrap();
    let mut fan = connect("the-secret-of-a-fan", Role::Subscribe).await;
    let mut publisher = connect("the-studio-secret", Role::Publish).await;
    publisher.publish(&packed(0)).await.unwrap();
    daemon.reload(&format!("{PORTS}{LESS}"));
    assert_withdrawn(
        &within(async {
            loop {
                match fan.next().await {
                    Err(e) => return e,
                    Ok(event) => assert!(event.is_some(), "the stream ended, they say"),
                }
            }
        })
        .await,
    );
    assert_withdrawn(
        &within(async {
            for n in 1.. {
                if let Err(e) = publisher.publish(&packed(n)).await {
                    return e;
                }
            }
            unreachable!("a publisher without its token goes on")
        })
        .await,
    );
    daemon.stop().await;
}

async fn page(address: SocketAddr) -> WebSocketStream<TcpStream> {
    let mut request = format!("ws://{address}/ws").into_client_request().unwrap();
    request.headers_mut().insert("Origin", format!("http://{address}").parse().unwrap());
    within(client_async(request, TcpStream::connect(address).await.unwrap())).await.unwrap().0
}

/// The next message of this type.
async fn told(page: &mut WebSocketStream<TcpStream>, kind: &str) -> Value {
    loop {
        let message = within(page.next()).await.expect("the page is not closed").unwrap();
        if let Message::Text(text) = message {
            let value: Value = serde_json::from_str(&text).unwrap();
            if value["type"] == kind {
                return value;
            }
        }
    }
}

async fn say(page: &mut WebSocketStream<TcpStream>, value: Value) {
    page.send(Message::text(value.to_string())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_page_is_asked_when_tokens_appear_and_again_when_its_own_goes() {
    let daemon = Reloadable::start(PORTS).await;
    let mut page = page(daemon.addresses[1]).await;
    told(&mut page, "status").await;
    say(&mut page, json!({"do": "listen", "stream": "news", "stages": 4})).await;
    told(&mut page, "playing").await;
    daemon.reload(&format!("{PORTS}{FAN}"));
    told(&mut page, "stopped").await;
    told(&mut page, "login").await;
    // What it sent before it could know is no offence, and gets nothing.
    say(&mut page, json!({"do": "ping", "at": 1.0})).await;
    say(&mut page, json!({"do": "login", "token": "the-secret-of-a-fan"})).await;
    told(&mut page, "status").await;
    daemon.reload(&format!("{PORTS}{STUDIO}"));
    let asked = told(&mut page, "login").await;
    assert!(asked["reason"].as_str().unwrap().contains("not known any more"), "{asked}");
    // And when no token is needed any more, it goes on by itself.
    daemon.reload(PORTS);
    told(&mut page, "status").await;
    daemon.stop().await;
}
