//! By which names the HTTP port is reached, and from which pages.

use crate::config::Http;

/// The value of a header that is given once.
pub(super) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut values = values(head, name);
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

fn values<'a>(head: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let fields = head.lines().skip(1).filter_map(|l| l.split_once(':'));
    fields.filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// Whether a proxy says that it asks for somebody else.
pub(super) fn came_through_a_proxy(head: &str) -> bool {
    let marks = ["Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP"];
    marks.iter().any(|m| values(head, m).next().is_some())
}

/// Whether the request names a host that a browser may call ours. Programs of before HTTP/1.1 name none, and no browser
/// is among them.
///
/// Errors: what to answer.
pub(super) fn known_host(head: &str, http: &Http) -> Result<(), &'static str> {
    let mut hosts = values(head, "Host");
    match (hosts.next(), hosts.next()) {
        (None, _) => Ok(()),
        (Some(host), None) if known(host, http) => Ok(()),
        _ => Err("this name is not in http.names\n"),
    }
}

/// Whether a page may open a WebSocket: only ours. It was loaded from where it now connects to, or from the public URL,
/// in front of which a proxy stands.
///
/// Errors: what to answer.
pub(super) fn our_page(head: &str, http: &Http, tls: bool) -> Result<(), &'static str> {
    let scheme = if tls { "https://" } else { "http://" };
    let host = header(head, "Host").unwrap_or_default();
    let origin = header(head, "Origin").unwrap_or_default();
    let direct = !host.is_empty() && origin.strip_prefix(scheme) == Some(host);
    let public = http.public_origin.as_deref().is_some_and(|p| p.eq_ignore_ascii_case(origin));
    if !direct && !public {
        return Err("only this daemon's own page may connect; behind a proxy, set http.public_url\n");
    }
    known_host(head, http)
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
        let head = |hosts: &str| format!("GET / HTTP/1.1\r\n{hosts}\r\n");
        assert!(known_host(&head(""), &http).is_ok());
        assert!(known_host(&head("Host: localhost\r\n"), &http).is_ok());
        assert!(known_host(&head("Host: localhost\r\nhost: evil.example\r\n"), &http).is_err());
    }

    #[test]
    fn a_page_behind_a_proxy_is_ours_only_at_the_public_url() {
        let plain = http("");
        let public = http("public_url = \"https://radio.example\"");
        let head = |host: &str, origin: &str| format!("GET /ws HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\n\r\n");
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
            let head = head(host, origin);
            assert_eq!(our_page(&head, &plain, false).is_ok(), without, "{host} {origin}");
            assert_eq!(our_page(&head, &public, false).is_ok(), with, "{host} {origin}");
        }
    }

    #[test]
    fn a_header_given_twice_counts_as_none() {
        let head = "GET / HTTP/1.1\r\nHost: a\r\norigin:  b \r\nHOST: c\r\n\r\n";
        assert_eq!((header(head, "Origin"), header(head, "Host")), (Some("b"), None));
    }
}
