//! The page in a real browser: Chromium without a window, driven over its own DevTools protocol.
#![cfg(feature = "full")]

#[path = "common/browser.rs"]
mod browser;
mod common;

use std::net::SocketAddr;
use std::time::Duration;

use browser::{Browser, get};
use common::{Daemon, bundle, tone, within};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};
use undertone::session::PackedBundle;

const HTTP: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";
const TOKENS: &str = "[http]\nlisten = \"127.0.0.1:0\"\n[[token]]\nname = \"a\"\nsecret = \"0123456789abcdef\"\n\
                      publish = [\"*\"]\nlisten = [\"ma*\"]\n";

/// Raw samples into the daemon's stream "main", in real time, until the test ends.
async fn sound(daemon: &Daemon) -> TcpStream {
    let mut socket = TcpStream::connect(daemon.pcm).await.unwrap();
    socket.write_all(&tone(0.5)).await.unwrap();
    socket
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium: make test-system"]
async fn a_person_listens_by_keyboard_and_changes_the_rate() {
    let daemon = Daemon::start(HTTP).await;
    let (mut reading, mut writing) = tokio::io::split(sound(&daemon).await);
    let feeding = tokio::spawn(async move { while writing.write_all(&tone(0.5)).await.is_ok() {} });
    let other = {
        let mut client = daemon.publisher("radio.two").await;
        tokio::spawn(async move {
            let mut number = 0;
            // A bundle of every twenty is left out, so that something is lost.
            while client.publish(PackedBundle::pack(&bundle(number))).await.is_ok() {
                number += if number % 20 == 10 { 2 } else { 1 };
            }
        })
    };
    let scheme = std::env::var("UNDERTONE_SCHEME").unwrap_or_else(|_| "light".to_owned());
    let mut browser = Browser::open(&format!("http://{}/", daemon.http.unwrap()), &scheme).await;
    browser.until("document.querySelectorAll('#streams tr').length === 2").await;
    // The encoder's stream has a level; of one that only passes through, none is claimed.
    browser.until("document.querySelector('[aria-label=\"Level of main\"]').getAttribute('aria-valuetext').includes('dB below')").await;
    let unknown = "document.querySelector('[aria-label=\"Level of radio.two\"]').getAttribute('aria-valuetext')";
    assert_eq!(browser.eval(unknown).await, "not decoded here");

    browser.tab_to("Listen to main").await;
    browser.press("Enter", 13, "\r").await;
    browser.until("undertone.playing === 'main' && undertone.seconds > 1 && undertone.clock > 0.5").await;
    browser.until("undertone.level > -80").await;
    assert_eq!(browser.eval("document.querySelector('[aria-label=\"Listen to main\"]').ariaPressed").await, "true");
    // The daemon encodes with 6 stages (3 kbit/s): the slider, by keyboard, takes some away and gives them back.
    browser.until("undertone.stages === 6").await;
    browser.tab_to("rate").await;
    browser.press("Home", 36, "").await;
    browser.until("undertone.stages === 1").await;
    for _ in 0..2 {
        browser.press("ArrowRight", 39, "").await;
    }
    browser.until("undertone.stages === 3").await;
    let said = browser.eval("document.getElementById('rate').getAttribute('aria-valuetext')").await;
    assert_eq!(said, "3 layers, 1.5 kbit/s");
    browser.press("End", 35, "").await;
    browser.until("undertone.stages === 6").await;
    let bars = "[...document.querySelectorAll('#layers i')].filter(i => parseFloat(i.style.height) > 10).length";
    browser.until(&format!("{bars} === 6")).await;
    let coloured = "(d => d.filter((v, n) => n % 4 === 1 && v > 60).length > 20)\
                    ([...document.getElementById('spectrogram').getContext('2d').getImageData(900, 0, 60, 256).data])";
    browser.until(coloured).await;
    if std::env::var_os("UNDERTONE_SHOTS").is_some() {
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    browser.shot(&format!("face-{scheme}.png.b64")).await;

    // Everything a screen reader names has a name.
    let nameless = "[...document.querySelectorAll('button,input,canvas,[role=meter]')].filter(e => e.offsetParent && \
                    !(e.ariaLabel || e.textContent.trim() || (e.labels && e.labels.length))).length";
    assert_eq!(browser.eval(nameless).await, 0);

    other.abort();
    browser.until("document.querySelectorAll('#streams tr').length === 1").await;
    feeding.abort();
    let _ = feeding.await;
    daemon.stop().await;
    browser.until("document.getElementById('connection').textContent.includes('trying again')").await;
    let mut rest = Vec::new();
    let _ = within(reading.read_to_end(&mut rest)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium: make test-system"]
async fn the_page_shows_how_old_silent_and_thrifty_streams_are_and_what_is_searched() {
    let daemon = Daemon::start_with(HTTP, "kbps = 3\neffort = 2").await;
    let (_reading, mut writing) = tokio::io::split(TcpStream::connect(daemon.pcm).await.unwrap());
    let feeding = tokio::spawn(async move {
        // Half a second of sound and two of silence, again and again.
        let piece = [tone(0.5), vec![0; 2 * 48_000]].concat();
        while writing.write_all(&piece).await.is_ok() {}
    });
    let mut other = daemon.publisher("two").await;
    let relaying = tokio::spawn(async move {
        let mut number = 0;
        while other.publish(PackedBundle::pack(&bundle(number))).await.is_ok() {
            number += 1;
        }
    });
    let mut browser = Browser::open(&format!("http://{}/", daemon.http.unwrap()), "light").await;
    browser.until("!document.getElementById('effort').hidden").await;
    let effort = "document.getElementById('effort').textContent";
    browser.until(&format!("{effort}.includes('2 steps')")).await;
    let cell = |stream: &str, what: &str| {
        let row = format!(
            "[...document.querySelectorAll('#streams tr')].find(r => r.querySelector('th').textContent === '{stream}')"
        );
        format!("{row}?.querySelector('.{what}').textContent")
    };
    let figure = |stream: &str, what: &str| format!("parseFloat({})", cell(stream, what));
    browser.until(&format!("{} >= 1 && {0} < 600", figure("main", "quiet"))).await;
    browser.until(&format!("{} > 0 && {0} < 5000", figure("main", "age"))).await;
    // Silence leaves some of the rate; it is no loss.
    browser.until(&format!("{} > 0.2", figure("main", "saved"))).await;
    assert_eq!(browser.eval(&cell("main", "lost")).await, "0");
    browser.until("!!document.querySelector('#streams tr.silent')").await;
    // Who only passes through says all the time something, and saves nothing here.
    browser.until(&format!("{} === '0.0' && {} === '–'", cell("two", "quiet"), cell("two", "saved"))).await;
    relaying.abort();
    feeding.abort();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium: make test-system"]
async fn a_token_opens_what_it_may_and_is_in_no_address() {
    let daemon = Daemon::start(TOKENS).await;
    let _sound = sound(&daemon).await;
    let mut browser = Browser::open(&format!("http://{}/", daemon.http.unwrap()), "light").await;
    browser
        .until(
            "!!window.undertone && !document.getElementById('login').hidden && document.activeElement.id === 'token'",
        )
        .await;
    assert_eq!(browser.eval("document.querySelectorAll('#streams tr').length").await, 0);
    for (secret, then) in [
        ("wrong-wrong-wrong", "document.getElementById('login-error').textContent.includes('not known')"),
        (
            "0123456789abcdef",
            "document.getElementById('login').hidden && !!document.querySelector('[aria-label=\"Listen to main\"]')",
        ),
    ] {
        browser.call("Input.insertText", json!({"text": secret})).await;
        browser.press("Enter", 13, "\r").await;
        browser.until(then).await;
    }
    let href = browser.eval("location.href").await;
    assert!(!href.as_str().unwrap().contains("0123456789"), "{href}");
    daemon.stop().await;
}

/// A WebSocket of a program that says it comes from a page of `origin`.
async fn page(address: SocketAddr, host: &str, origin: &str) -> Result<WebSocketStream<TcpStream>, String> {
    let mut request = format!("ws://{address}/ws").into_client_request().unwrap();
    request.headers_mut().insert("Host", host.parse().unwrap());
    request.headers_mut().insert("Origin", origin.parse().unwrap());
    let socket = TcpStream::connect(address).await.unwrap();
    within(client_async(request, socket)).await.map(|(s, _)| s).map_err(|e| e.to_string())
}

/// Messages until one has this type, or the end.
async fn wait_for(socket: &mut WebSocketStream<TcpStream>, kind: &str) -> Option<Value> {
    loop {
        match within(socket.next()).await {
            Some(Ok(Message::Text(text))) => {
                let value: Value = serde_json::from_str(&text).unwrap();
                if value["type"] == kind {
                    return Some(value);
                }
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            Some(Ok(_)) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_garbage_are_refused_and_slots_are_bounded() {
    let daemon = Daemon::start(&format!(
        "{HTTP}names = [\"audio.example\"]\n[limits]\nmax_connections = 32\nmax_connections_per_address = 32\n"
    ))
    .await;
    let http = daemon.http.unwrap();
    let (host, origin) = (http.to_string(), format!("http://{http}"));
    for (host, origin) in [
        (host.as_str(), "http://evil.example"),
        (&host, "null"),
        (&host, &format!("https://{http}")),
        ("evil.example", "http://evil.example"),
    ] {
        let error = page(http, host, origin).await.unwrap_err();
        assert!(error.contains("403"), "{host} {origin}: {error}");
    }
    assert!(page(http, "audio.example", "http://audio.example").await.is_ok());
    assert!(get(http, "/ws").await.0.starts_with("HTTP/1.1 426"));
    let head = get(http, "/").await.0;
    assert!(head.contains("default-src 'none'; script-src 'self'"), "{head}");

    for garbage in
        ["{}", "[", "{\"do\":\"listen\",\"stream\":\"a b\",\"stages\":3}", "{\"do\":\"ping\",\"at\":1,\"more\":2}"]
    {
        let mut socket = page(http, &host, &origin).await.unwrap();
        socket.send(Message::text(garbage)).await.unwrap();
        assert!(wait_for(&mut socket, "pong").await.is_none(), "{garbage}");
    }
    let mut socket = page(http, &host, &origin).await.unwrap();
    let _ = socket.send(Message::text("a".repeat(100_000))).await;
    assert!(wait_for(&mut socket, "pong").await.is_none());

    // Eight slots: the ninth page is told so.
    let listen = json!({"do": "listen", "stream": "main", "stages": 4}).to_string();
    let mut pages = Vec::new();
    for n in 0..9 {
        let mut socket = page(http, &host, &origin).await.unwrap();
        socket.send(Message::text(listen.as_str())).await.unwrap();
        if n < 8 {
            assert!(wait_for(&mut socket, "playing").await.is_some());
        } else {
            let refused = wait_for(&mut socket, "stopped").await.unwrap();
            assert!(refused["reason"].as_str().unwrap().contains("Not possible now"), "{refused}");
        }
        pages.push(socket);
    }
    // A page is a connection: there are no more than allowed.
    let mut open = 0;
    while let Ok(socket) = page(http, &host, &origin).await {
        pages.push(socket);
        open += 1;
        assert!(open < 32, "limits.max_connections does not count pages");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_token_a_page_hears_nothing() {
    let daemon = Daemon::start(TOKENS).await;
    let http = daemon.http.unwrap();
    let (host, origin) = (http.to_string(), format!("http://{http}"));
    let listen = |stream: &str| Message::text(json!({"do": "listen", "stream": stream, "stages": 4}).to_string());
    let mut socket = page(http, &host, &origin).await.unwrap();
    socket.send(listen("main")).await.unwrap();
    assert!(wait_for(&mut socket, "playing").await.is_none());

    let _other = daemon_publisher(&daemon).await;
    let mut socket = page(http, &host, &origin).await.unwrap();
    socket.send(Message::text(json!({"do": "login", "token": "0123456789abcdef"}).to_string())).await.unwrap();
    let status = wait_for(&mut socket, "status").await.unwrap();
    assert_eq!(status["streams"], json!([]), "a stream that the token may not listen to is not shown");
    socket.send(listen("other")).await.unwrap();
    let refused = wait_for(&mut socket, "stopped").await.unwrap();
    assert!(refused["reason"].as_str().unwrap().contains("may not"), "{refused}");
    socket.send(listen("main")).await.unwrap();
    assert!(wait_for(&mut socket, "playing").await.is_some());
    daemon.stop().await;
}

async fn daemon_publisher(daemon: &Daemon) -> undertone::service::Client {
    let mut hello = common::hello(undertone::session::Role::Publish, "other", Some(6));
    hello.token = "0123456789abcdef".to_owned();
    undertone::service::Client::connect(&daemon.codes.to_string(), hello).await.unwrap()
}
