//! Health, metrics and state for operators, and the page for people, over HTTP.

use std::convert::Infallible;
use std::future::{poll_fn, ready};
use std::sync::OnceLock;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::access::View;
use super::door::Guest;
use super::state::{State, unready};
use super::tls::Socket;
use super::web;
use super::{Counters, Shared, metrics, names};

/// Longest request that is read, bytes.
const MAX_HEAD: usize = 8 << 10;

/// How long an answer may take to leave.
const ANSWER: Duration = Duration::from_secs(10);

const TEXT: &str = "text/plain; charset=utf-8";

/// What is sent.
type Answer = Response<Full<Bytes>>;

fn answer(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    // One answer a connection: places are few.
    let ours = [(CONNECTION, "close"), (CACHE_CONTROL, "no-store"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    for (name, value) in [(CONTENT_TYPE, kind)].into_iter().chain(ours).chain(web::HEADERS) {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

fn text(status: StatusCode, body: &str) -> Answer {
    answer(status, TEXT, body.to_owned())
}

/// Serves one request.
pub(super) async fn serve(shared: Shared, socket: Socket, guest: &Guest) {
    let patience = shared.config.borrow().limits.timeouts.handshake;
    // Once the connection has become a WebSocket: whether codes go over it.
    let talk: OnceLock<bool> = OnceLock::new();
    let service = service_fn(|request: Request<Incoming>| {
        let answer = respond(&shared, &request, guest);
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            talk.get_or_init(|| request.uri().query() == Some(web::CODES));
        }
        ready(Ok::<_, Infallible>(answer))
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience).max_buf_size(MAX_HEAD);
    http.title_case_headers(true);
    let mut connection = http.serve_connection(TokioIo::new(socket), service);
    let served = timeout(patience + ANSWER, poll_fn(|cx| connection.poll_without_shutdown(cx))).await;
    let parts = connection.into_parts();
    match served {
        Ok(Ok(())) if talk.get() == Some(&true) => {
            web::serve_codes(shared.clone(), parts.io.into_inner(), parts.read_buf.into(), guest).await;
        }
        Ok(Ok(())) if talk.get() == Some(&false) => {
            web::serve(shared.clone(), parts.io.into_inner(), parts.read_buf.into(), guest).await;
        }
        Ok(served) => {
            // Not a request of HTTP/1, or too long, which it was told; or silent, or gone.
            if served.is_err() {
                Counters::add(&shared.counters.hostile);
            }
            close(parts.io.into_inner()).await;
        }
        Err(_) => Counters::add(&shared.counters.slow),
    }
}

/// Closes a connection so that its last answer arrives: unread bytes would turn it into a reset; how many there are is not
/// our business.
async fn close(mut socket: Socket) {
    let _ = timeout(ANSWER, async {
        socket.shutdown().await?;
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

fn respond(shared: &Shared, request: &Request<Incoming>, guest: &Guest) -> Answer {
    match (request.method(), request.uri().path()) {
        // A word that is not known must not open what was not asked for.
        (&Method::GET, "/ws") if request.uri().query().is_some_and(|query| query != web::CODES) => {
            text(StatusCode::NOT_FOUND, "there are /ws and /ws?codes=1\n")
        }
        (&Method::GET, "/ws") => match web::upgrade(shared, request.headers(), guest) {
            Ok(switching) => switching.map(|()| Full::default()),
            Err((status, why)) => text(status, why),
        },
        (&Method::GET | &Method::HEAD, path) => route(shared, path, request.headers(), guest),
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n"),
    }
}

fn route(shared: &Shared, path: &str, headers: &HeaderMap, guest: &Guest) -> Answer {
    match path {
        // Whether the daemon lives is no secret, and who watches it uses any name.
        "/healthz" => return text(StatusCode::OK, "ok\n"),
        "/readyz" => {
            return match unready(shared) {
                None => text(StatusCode::OK, "ready\n"),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{why}\n")),
            };
        }
        _ => {}
    }
    // A page of anybody's could read what we say under a name that it points at us.
    if let Err(why) = names::known_host(headers, &shared.config.borrow().http) {
        return text(StatusCode::FORBIDDEN, why);
    }
    if let Some((kind, text)) = web::file(path) {
        return answer(StatusCode::OK, kind, text.to_owned());
    }
    if !["/metrics", "/status", "/status.json"].contains(&path) {
        return text(StatusCode::NOT_FOUND, "there are / /healthz /readyz /metrics /status /status.json\n");
    }
    let Some(view) = view(shared, headers, guest) else {
        Counters::add(&shared.counters.refused);
        let mut answer = text(StatusCode::UNAUTHORIZED, "this needs a token: Authorization: Bearer ...\n");
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return answer;
    };
    match path {
        "/metrics" => answer(StatusCode::OK, metrics::PROMETHEUS, metrics::prometheus(shared, view)),
        "/status" => answer(StatusCode::OK, TEXT, State::of(shared, &view).table()),
        _ => answer(StatusCode::OK, "application/json", State::of(shared, &view).json()),
    }
}

/// What the asker may see; None without a token that is known, where one is needed.
fn view(shared: &Shared, headers: &HeaderMap, guest: &Guest) -> Option<View> {
    let config = shared.config.borrow();
    // From this machine: nobody stands behind the peer, as with a proxy.
    let direct = guest.peer.ip().to_canonical().is_loopback() && !names::came_through_a_proxy(headers);
    if config.http.status_without_token && direct {
        return Some(View::All);
    }
    let bearer = names::header(headers, AUTHORIZATION.as_str()).and_then(|v| v.split_once(' '));
    let secret = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer")).map_or("", |(_, s)| s.trim());
    View::of(&config.tokens, secret)
}
