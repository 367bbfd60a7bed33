//! Health, metrics and state for operators, and the page for people, over HTTP.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::access::View;
use super::door::Guest;
use super::tls::Socket;
use super::web::{self, Upgrade};
use super::{Counters, Shared, metrics, names};

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

fn text(status: &'static str, body: &str) -> Answer {
    Answer { status, kind: TEXT, body: body.to_owned() }
}

/// Serves one request.
pub(super) async fn serve(shared: Shared, mut socket: Socket, guest: &Guest) {
    let patience = shared.config.borrow().limits.timeouts.handshake;
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
                ["GET", "/ws", "HTTP/1.1"] => match web::upgrade(&shared, &head, guest) {
                    Upgrade::Accepted(answer) => {
                        let answered = timeout(ANSWER, async {
                            socket.write_all(answer.as_bytes()).await?;
                            socket.flush().await
                        });
                        if matches!(answered.await, Ok(Ok(()))) {
                            web::serve(shared, socket, rest, guest).await;
                        }
                        return;
                    }
                    Upgrade::Refused(status, why) => (text(status, why), true),
                },
                ["GET", path, version] if version.starts_with("HTTP/1.") => (route(&shared, path, &head, guest), true),
                ["HEAD", path, version] if version.starts_with("HTTP/1.") => {
                    (route(&shared, path, &head, guest), false)
                }
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
    send(socket, answer, body_wanted).await;
}

/// Sends an answer and closes the connection.
async fn send(mut socket: Socket, Answer { status, kind, body }: Answer, body_wanted: bool) {
    let mut out = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\n{}{}Connection: close\r\n\r\n",
        body.len(),
        web::HEADERS,
        if status == UNAUTHORIZED { "WWW-Authenticate: Bearer\r\n" } else { "" },
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

const UNAUTHORIZED: &str = "401 Unauthorized";

fn route(shared: &Shared, path: &str, head: &str, guest: &Guest) -> Answer {
    let ok = |kind, body| Answer { status: "200 OK", kind, body };
    let path = path.split('?').next().unwrap_or_default();
    match path {
        // Whether the daemon lives is no secret, and who watches it uses any name.
        "/healthz" => return ok(TEXT, "ok\n".to_owned()),
        "/readyz" => {
            return match metrics::unready(shared) {
                None => ok(TEXT, "ready\n".to_owned()),
                Some(why) => Answer { status: "503 Service Unavailable", kind: TEXT, body: format!("{why}\n") },
            };
        }
        _ => {}
    }
    // A page of anybody's could read what we say under a name that it points at us.
    if let Err(why) = names::known_host(head, &shared.config.borrow().http) {
        return text("403 Forbidden", why);
    }
    if let Some((kind, text)) = web::file(path) {
        return ok(kind, text.to_owned());
    }
    if !["/metrics", "/status", "/status.json"].contains(&path) {
        return text("404 Not Found", "there are / /healthz /readyz /metrics /status /status.json\n");
    }
    let Some(view) = view(shared, head, guest) else {
        Counters::add(&shared.counters.refused);
        return text(UNAUTHORIZED, "this needs a token: Authorization: Bearer ...\n");
    };
    match path {
        "/metrics" => ok("text/plain; version=0.0.4; charset=utf-8", metrics::prometheus(shared, &view)),
        "/status" => ok(TEXT, metrics::table(shared, &view)),
        _ => ok("application/json", metrics::json(shared, &view)),
    }
}

/// What the asker may see; None without a token that is known, where one is needed.
fn view(shared: &Shared, head: &str, guest: &Guest) -> Option<View> {
    let config = shared.config.borrow();
    // From this machine: nobody stands behind the peer, as with a proxy.
    let direct = guest.peer.ip().to_canonical().is_loopback() && !names::came_through_a_proxy(head);
    if config.http.status_without_token && direct {
        return Some(View::All);
    }
    let bearer = names::header(head, "Authorization").and_then(|v| v.split_once(' '));
    let secret = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer")).map_or("", |(_, s)| s.trim());
    View::of(&config.tokens, secret)
}
