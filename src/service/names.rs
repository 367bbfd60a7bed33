//! By which names the HTTP port is reached, and from which pages.

use hyper::header::{HOST, HeaderMap, ORIGIN};

use crate::config::Http;

/// The value of a header that is given once.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Whether a proxy says that it asks for somebody else.
pub(super) fn came_through_a_proxy(headers: &HeaderMap) -> bool {
    let marks = ["Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP"];
    marks.iter().any(|m| headers.contains_key(*m))
}

/// Whether the request names a host that a browser may call ours. Programs of before HTTP/1.1 name none, and no browser
/// is among them.
///
/// # Errors
/// What to answer.
pub(super) fn known_host(headers: &HeaderMap, http: &Http) -> Result<(), &'static str> {
    let is_ours = || header(headers, HOST.as_str()).is_some_and(|host| known(host, http));
    if headers.contains_key(HOST) && !is_ours() {
        return Err("this name is not in http.names\n");
    }
    Ok(())
}

/// Whether a page may open a WebSocket: only ours. It was loaded from where it now connects to, or from the public URL,
/// in front of which a proxy stands.
///
/// # Errors
/// What to answer.
pub(super) fn our_page(headers: &HeaderMap, http: &Http, tls: bool) -> Result<(), &'static str> {
    let scheme = if tls { "https://" } else { "http://" };
    let host = header(headers, HOST.as_str()).unwrap_or_default();
    let origin = header(headers, ORIGIN.as_str()).unwrap_or_default();
    let direct = !host.is_empty() && origin.strip_prefix(scheme) == Some(host);
    let public = http.public_origin.as_deref().is_some_and(|p| p.eq_ignore_ascii_case(origin));
    if !direct && !public {
        return Err("only this daemon's own page may connect; behind a proxy, set http.public_url\n");
    }
    known_host(headers, http)
}

/// Whether a browser may call this host ours. Any page can point a name of its own at our address; it cannot do so
/// with an address, nor with localhost.
fn known(host: &str, http: &Http) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let ip = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    ip.parse::<std::net::IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || http.names.iter().any(|n| n.eq_ignore_ascii_case(name))
        || http.public_name().is_some_and(|n| n.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        let all = all.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let mut headers = HeaderMap::new();
        all.for_each(|(name, value): (hyper::header::HeaderName, _)| {
            headers.append(name, value);
        });
        headers
    }

    fn http(more: &str) -> Http {
        Config::parse(&format!("[http]\nnames = [\"audio.example.org\"]\n{more}")).unwrap().http
    }

    #[test]
    fn hosts_that_anybody_may_point_at_us_are_not_ours() {
        let http = http("");
        for host in ["127.0.0.1:7703", "[::1]:7703", "localhost", "LOCALHOST:1", "192.0.2.1", "audio.example.org:443"] {
            assert!(known(host, &http), "{host}");
        }
        for host in ["", "evil.example", "127.0.0.1.evil.example:7703", "localhost.evil.example", "[::1", "example.org"]
        {
            assert!(!known(host, &http), "{host}");
        }
        assert!(known_host(&headers(&[]), &http).is_ok());
        assert!(known_host(&headers(&[("Host", "localhost")]), &http).is_ok());
        assert!(known_host(&headers(&[("Host", "localhost"), ("host", "evil.example")]), &http).is_err());
    }

    #[test]
    fn a_page_behind_a_proxy_is_ours_only_at_the_public_url() {
        let plain = http("");
        let public = http("public_url = \"https://radio.example\"");
        for (host, origin, without, with) in [
            ("127.0.0.1:7703", "http://127.0.0.1:7703", true, true),
            // The proxy keeps the name, or gives ours.
            ("radio.example", "https://radio.example", false, true),
            ("127.0.0.1:7703", "https://radio.example", false, true),
            ("127.0.0.1:7703", "http://radio.example", false, false),
            ("127.0.0.1:7703", "https://radio.example:8443", false, false),
            ("127.0.0.1:7703", "https://evil.example", false, false),
            ("evil.example", "https://radio.example", false, false),
            ("127.0.0.1:7703", "null", false, false),
        ] {
            let head = headers(&[("Host", host), ("Origin", origin)]);
            assert_eq!(our_page(&head, &plain, false).is_ok(), without, "{host} {origin}");
            assert_eq!(our_page(&head, &public, false).is_ok(), with, "{host} {origin}");
        }
    }

    #[test]
    fn a_header_given_twice_counts_as_none() {
        let head = headers(&[("Host", "a"), ("origin", "b"), ("HOST", "c")]);
        assert_eq!((header(&head, "Origin"), header(&head, "Host")), (Some("b"), None));
    }
}
