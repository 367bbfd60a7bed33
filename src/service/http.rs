//! Health, metrics and state for operators, and the page for people, over HTTP.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::tls::Socket;
use super::web::{self, Upgrade};
use super::{Counters, Shared, metrics};

/// Longest request that is read.
const MAX_HEAD: usize = 8 << 10;

/// How long an answer may take to leave.
const ANSWER: Duration = Duration::from_secs(10);

const TEXT: &str = "text/plain; charset=utf-8";

struct Answer {
    status: &'static str,
    kind: &'static str,
    body: String,
}

/// Serves one request.
pub(super) async fn serve(shared: Shared, mut socket: Socket) {
    let patience = shared.config.borrow().limits.timeouts.handshake;
    let text = |status, body: &str| Answer { status, kind: TEXT, body: body.to_owned() };
    let (answer, body_wanted) = match timeout(patience, head(&mut socket)).await {
        // Gone, or silent: nobody to tell.
        Ok(Err(_)) | Err(_) => {
            Counters::add(&shared.counters.hostile);
            return;
        }
        Ok(Ok(None)) => (text("431 Request Header Fields Too Large", "at most 8192 bytes\n"), true),
        Ok(Ok(Some((head, rest)))) => {
            let line = head.lines().next().unwrap_or_default();
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["GET", "/ws", "HTTP/1.1"] => match web::upgrade(&shared, &head) {
                    Upgrade::Accepted(answer) => {
                        let answered = timeout(ANSWER, async {
                            socket.write_all(answer.as_bytes()).await?;
                            socket.flush().await
                        });
                        if matches!(answered.await, Ok(Ok(()))) {
                            web::serve(shared, socket, rest).await;
                        }
                        return;
                    }
                    Upgrade::Refused(status, why) => (text(status, why), true),
                },
                ["GET", path, version] if version.starts_with("HTTP/1.") => (route(&shared, path), true),
                ["HEAD", path, version] if version.starts_with("HTTP/1.") => (route(&shared, path), false),
                [_, _, version] if version.starts_with("HTTP/1.") => {
                    (text("405 Method Not Allowed", "only GET and HEAD\n"), true)
                }
                _ => {
                    Counters::add(&shared.counters.hostile);
                    (text("400 Bad Request", "not a request of HTTP/1\n"), true)
                }
            }
        }
    };
    let Answer { status, kind, body } = answer;
    let mut out = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\n{}Connection: close\r\n\r\n",
        body.len(),
        web::HEADERS
    );
    if body_wanted {
        out.push_str(&body);
    }
    let _ = timeout(ANSWER, async {
        socket.write_all(out.as_bytes()).await?;
        socket.shutdown().await?;
        // Unread bytes would turn the answer into a reset; how many there are is not our business.
        let mut rest = [0; 1024];
        for _ in 0..64 {
            if socket.read(&mut rest).await? == 0 {
                break;
            }
        }
        Ok::<(), std::io::Error>(())
    })
    .await;
}

/// The request up to its empty line, and what was read behind that; None if it is too long.
async fn head(socket: &mut Socket) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let (mut all, mut chunk) = (Vec::new(), [0; 1024]);
    while all.len() < MAX_HEAD {
        match socket.read(&mut chunk).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => all.extend_from_slice(&chunk[..n]),
        }
        let end = |mark: &[u8]| all.windows(mark.len()).position(|w| w == mark).map(|at| at + mark.len());
        if let Some(end) = end(b"\r\n\r\n").or_else(|| end(b"\n\n")) {
            let rest = all.split_off(end);
            return Ok(Some((String::from_utf8_lossy(&all).into_owned(), rest)));
        }
    }
    Ok(None)
}

fn route(shared: &Shared, path: &str) -> Answer {
    let ok = |kind, body| Answer { status: "200 OK", kind, body };
    match path.split('?').next().unwrap_or_default() {
        "/healthz" => ok(TEXT, "ok\n".to_owned()),
        "/readyz" => match metrics::unready(shared) {
            None => ok(TEXT, "ready\n".to_owned()),
            Some(why) => Answer { status: "503 Service Unavailable", kind: TEXT, body: format!("{why}\n") },
        },
        "/metrics" => ok("text/plain; version=0.0.4; charset=utf-8", metrics::prometheus(shared)),
        "/status" => ok(TEXT, metrics::table(shared)),
        "/status.json" => ok("application/json", metrics::json(shared)),
        path => {
            if let Some((kind, text)) = web::file(path) {
                return ok(kind, text.to_owned());
            }
            let body = "there are / /healthz /readyz /metrics /status /status.json\n".to_owned();
            Answer { status: "404 Not Found", kind: TEXT, body }
        }
    }
}
