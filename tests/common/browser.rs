//! A real browser: Chromium without a window, driven over its own DevTools protocol.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one tab.
pub(crate) struct Browser {
    child: Child,
    tab: WebSocketStream<TcpStream>,
    number: u64,
    _profile: tempfile::TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Browser {
    pub(crate) async fn open(page: &str, scheme: &str) -> Self {
        Self::open_with(page, scheme, &[]).await
    }

    /// With further arguments of Chromium.
    pub(crate) async fn open_with(page: &str, scheme: &str, arguments: &[String]) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let child = Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-dev-shm-usage", "--remote-debugging-port=0", "--window-size=1100,1000"])
            .args(arguments)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium is there: `make test-system` installs it");
        let port_file = profile.path().join("DevToolsActivePort");
        let start = Instant::now();
        let port: u16 = loop {
            let text = std::fs::read_to_string(&port_file).unwrap_or_default();
            if let Some(port) = text.lines().next().filter(|_| text.contains('\n')).and_then(|l| l.parse().ok()) {
                break port;
            }
            assert!(start.elapsed() < PATIENCE, "chromium does not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let list: Value = loop {
            let body = get(address, "/json/list").await.1;
            let list: Value = serde_json::from_str(&body).unwrap();
            if list[0]["type"] == "page" {
                break list;
            }
            assert!(start.elapsed() < PATIENCE, "chromium opens no page");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let url = list[0]["webSocketDebuggerUrl"].as_str().unwrap();
        let socket = TcpStream::connect(address).await.unwrap();
        let tab = client_async(url, socket).await.unwrap().0;
        let mut browser = Self { child, tab, number: 0, _profile: profile };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        browser.call("Emulation.setEmulatedMedia", json!({"features": features})).await;
        browser.call("Page.navigate", json!({"url": page})).await;
        browser
    }

    pub(crate) async fn call(&mut self, method: &str, params: Value) -> Value {
        self.number += 1;
        let text = json!({"id": self.number, "method": method, "params": params}).to_string();
        self.tab.send(Message::text(text)).await.unwrap();
        loop {
            let next = tokio::time::timeout(PATIENCE, self.tab.next()).await.expect("chromium answers");
            let Message::Text(text) = next.unwrap().unwrap() else { continue };
            let answer: Value = serde_json::from_str(&text).unwrap();
            if answer["id"] == self.number {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    pub(crate) async fn eval(&mut self, script: &str) -> Value {
        let answer = self.call("Runtime.evaluate", json!({"expression": script, "returnByValue": true})).await;
        answer["result"]["value"].clone()
    }

    /// Waits until a script gives true.
    pub(crate) async fn until(&mut self, script: &str) {
        let start = Instant::now();
        while self.eval(script).await != json!(true) {
            if start.elapsed() >= PATIENCE {
                let page = self.eval("document.body.innerText").await;
                panic!("never true: {script}\n{page}\n{}", self.eval("JSON.stringify(window.undertone)").await);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Presses a key as a person does.
    pub(crate) async fn press(&mut self, key: &str, code: u32, text: &str) {
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", event).await;
        }
    }

    pub(crate) async fn focused(&mut self) -> String {
        let script = "(e => e.getAttribute('aria-label') || e.id || e.className || e.tagName)(document.activeElement)";
        self.eval(script).await.as_str().unwrap_or_default().to_owned()
    }

    /// Goes to an element by the Tab key alone.
    pub(crate) async fn tab_to(&mut self, wanted: &str) {
        let mut seen = Vec::new();
        while seen.len() < 20 {
            self.press("Tab", 9, "").await;
            seen.push(self.focused().await);
            if seen.last().is_some_and(|s| s == wanted) {
                return;
            }
        }
        panic!("Tab never comes to {wanted}: {seen:?}");
    }

    /// A picture for people to look at, if UNDERTONE_SHOTS names a folder.
    pub(crate) async fn shot(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("UNDERTONE_SHOTS") else { return };
        let picture = self.call("Page.captureScreenshot", json!({"captureBeyondViewport": true})).await;
        std::fs::write(Path::new(&folder).join(name), picture["data"].as_str().unwrap()).unwrap();
    }
}

pub(crate) async fn ask(address: SocketAddr, request: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    // Chromium keeps the connection whatever it is told: the length says where the answer ends.
    loop {
        let n = tokio::time::timeout(PATIENCE, socket.read(&mut chunk)).await.expect("an answer in time").unwrap_or(0);
        answer.extend_from_slice(&chunk[..n]);
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            if n == 0 {
                return text.into_owned();
            }
            continue;
        };
        let lines = head.lines().filter_map(|l| l.split_once(':'));
        let length =
            lines.filter(|(n, _)| n.eq_ignore_ascii_case("content-length")).find_map(|(_, v)| v.trim().parse().ok());
        if n == 0 || length.is_some_and(|l: usize| body.len() >= l) || head.starts_with("HTTP/1.1 101") {
            return text.into_owned();
        }
    }
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> (String, String) {
    let answer = ask(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n")).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer of HTTP");
    (head.to_owned(), body.to_owned())
}
