//! Health, metrics and state for operators, and the page for people, over HTTP.

use std::convert::Infallible;
use std::future::{poll_fn, ready};
use std::sync::OnceLock;
use std::time::Duration;

use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue,
    IF_NONE_MATCH, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
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

/// Bytes a second that a file of the codec must leave with at least, so that a place is not held for ever.
const SLOWEST: u64 = 16 << 10;

const TEXT: &str = "text/plain; charset=utf-8";

/// What is sent.
type Answer = Response<Body>;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

fn body(text: String) -> Body {
    Full::from(text).map_err(|never| match never {}).boxed_unsync()
}

/// What a connection has become once it was answered.
enum Become {
    /// A WebSocket of a page.
    Page,
    /// One that carries codes.
    Codes,
    /// The way of a file of so many bytes.
    File(u64),
}

fn answer(status: StatusCode, kind: &'static str, text: String) -> Answer {
    let mut answer = Response::new(body(text));
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
    let became = OnceLock::new();
    let service = service_fn(|request: Request<Incoming>| {
        let answer = respond(&shared, &request, guest);
        let size = || answer.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let codes = request.uri().query() == Some(web::CODES);
            let _ = became.set(if codes { Become::Codes } else { Become::Page });
        } else if let Some(size) = size() {
            let _ = became.set(Become::File(size));
        }
        ready(Ok::<_, Infallible>(answer))
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience).max_buf_size(MAX_HEAD);
    http.title_case_headers(true);
    let mut connection = http.serve_connection(TokioIo::new(socket), service);
    let mut served = timeout(patience + ANSWER, poll_fn(|cx| connection.poll_without_shutdown(cx))).await;
    if let (Err(_), Some(Become::File(size))) = (&served, became.get()) {
        let longer = Duration::from_secs(size / SLOWEST);
        served = timeout(longer, poll_fn(|cx| connection.poll_without_shutdown(cx))).await;
    }
    let parts = connection.into_parts();
    match served {
        Ok(Ok(())) if matches!(became.get(), Some(Become::Codes)) => {
            web::serve_codes(shared.clone(), parts.io.into_inner(), parts.read_buf.into(), guest).await;
        }
        Ok(Ok(())) if matches!(became.get(), Some(Become::Page)) => {
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
            Ok(switching) => switching.map(|()| body(String::new())),
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
    if let Some(answer) = codec(shared, path, headers) {
        return answer;
    }
    if !["/metrics", "/status", "/status.json"].contains(&path) {
        return text(StatusCode::NOT_FOUND, "there are / /healthz /readyz /metrics /status /status.json\n");
    }
    let Some(view) = view(shared, headers, guest) else { return unauthorized(shared) };
    match path {
        "/metrics" => answer(StatusCode::OK, metrics::PROMETHEUS, metrics::prometheus(shared, view)),
        "/status" => answer(StatusCode::OK, TEXT, State::of(shared, &view).table()),
        _ => answer(StatusCode::OK, "application/json", State::of(shared, &view).json()),
    }
}

fn unauthorized(shared: &Shared) -> Answer {
    Counters::add(&shared.counters.refused);
    let mut answer = text(StatusCode::UNAUTHORIZED, "this needs a token: Authorization: Bearer ...\n");
    answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    answer
}

/// What a page needs to decode by itself; None if that is not what was asked for. As for the WebSocket, any token that is known will do.
fn codec(shared: &Shared, path: &str, headers: &HeaderMap) -> Option<Answer> {
    if path != "/codec.json" && !path.starts_with("/codec/") {
        return None;
    }
    let is_open = shared.config.borrow().tokens.is_empty();
    if View::of(&shared.config.borrow().tokens, bearer(headers)).is_none() {
        return Some(unauthorized(shared));
    }
    let Some(codec) = &shared.page_codec else {
        return Some(text(StatusCode::NOT_FOUND, "this daemon has no codec for browsers: `make web` builds it\n"));
    };
    if path == "/codec.json" {
        return Some(answer(StatusCode::OK, "application/json", codec.index().to_owned()));
    }
    let Some(file) = codec.file(path).filter(|file| file.is_unchanged()) else {
        return Some(text(StatusCode::NOT_FOUND, "no such file: /codec.json names them\n"));
    };
    let known = names::header(headers, IF_NONE_MATCH.as_str()).is_some_and(|tags| tags.contains(&file.etag));
    let mut answer = if known { text(StatusCode::NOT_MODIFIED, "") } else { contents(file) };
    let lasting = if is_open { "public, max-age=31536000, immutable" } else { "private, max-age=31536000, immutable" };
    let own = HeaderValue::from_str(&file.etag).expect("hexadecimal digits and quotes");
    answer.headers_mut().insert(ETAG, own);
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(lasting));
    Some(answer)
}

/// A file, piece by piece as the peer takes it.
fn contents(file: &web::CodecFile) -> Answer {
    let (path, left) = (file.file.clone(), file.bytes);
    let pieces = stream::try_unfold((None, path, left), |(open, path, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut open = match open {
            Some(open) => open,
            None => tokio::fs::File::open(&path).await?,
        };
        let mut piece = vec![0; web::PIECE.min(usize::try_from(left).unwrap_or(web::PIECE))];
        open.read_exact(&mut piece).await?;
        let left = left - piece.len() as u64;
        Ok::<_, std::io::Error>(Some((Frame::data(Bytes::from(piece)), (Some(open), path, left))))
    });
    let mut answer = answer(StatusCode::OK, file.kind, String::new());
    answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(file.bytes));
    *answer.body_mut() = StreamBody::new(pieces).boxed_unsync();
    answer
}

/// The token that the asker shows; empty if none.
fn bearer(headers: &HeaderMap) -> &str {
    let bearer = names::header(headers, AUTHORIZATION.as_str()).and_then(|v| v.split_once(' '));
    bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer")).map_or("", |(_, s)| s.trim())
}

/// What the asker may see; None without a token that is known, where one is needed.
fn view(shared: &Shared, headers: &HeaderMap, guest: &Guest) -> Option<View> {
    let config = shared.config.borrow();
    // From this machine: nobody stands behind the peer, as with a proxy.
    let direct = guest.peer.ip().to_canonical().is_loopback() && !names::came_through_a_proxy(headers);
    if config.http.status_without_token && direct {
        return Some(View::All);
    }
    View::of(&config.tokens, bearer(headers))
}
