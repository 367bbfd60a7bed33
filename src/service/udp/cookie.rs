//! Proof that a client receives at its address: without it the server would send streams to whom an attacker names.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::wire::{COOKIE_LEN, Cookie};

/// How long a cookie is good for.
const VALID: Duration = Duration::from_secs(10);

/// Bytes of the time in a cookie; the rest is the seal.
const TIME_LEN: usize = 8;

/// Makes and checks cookies; nothing is kept for a client that has none.
pub(super) struct Cookies {
    key: [u8; 32],
    start: Instant,
}

impl Cookies {
    pub(super) fn new(key: [u8; 32], now: Instant) -> Self {
        Self { key, start: now }
    }

    /// The cookie of an address.
    pub(super) fn make(&self, address: SocketAddr, now: Instant) -> Cookie {
        let time = now.saturating_duration_since(self.start).as_millis() as u64;
        self.seal(address, time)
    }

    fn seal(&self, address: SocketAddr, time: u64) -> Cookie {
        let ip = match address.ip().to_canonical() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        // All parts have fixed lengths.
        for part in [&time.to_be_bytes()[..], &ip.octets(), &address.port().to_be_bytes()] {
            mac.update(part);
        }
        let seal = mac.finalize().into_bytes();
        let mut cookie = [0; COOKIE_LEN];
        cookie[..TIME_LEN].copy_from_slice(&time.to_be_bytes());
        cookie[TIME_LEN..].copy_from_slice(&seal[..COOKIE_LEN - TIME_LEN]);
        cookie
    }

    /// Whether the address was given this cookie lately.
    pub(super) fn check(&self, cookie: &Cookie, address: SocketAddr, now: Instant) -> bool {
        let mut time = [0; TIME_LEN];
        time.copy_from_slice(&cookie[..TIME_LEN]);
        let time = u64::from_be_bytes(time);
        let age = (now.saturating_duration_since(self.start).as_millis() as u64).checked_sub(time);
        let same: bool = self.seal(address, time).ct_eq(cookie).into();
        same && age.is_some_and(|a| a <= VALID.as_millis() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_good_for_its_address_and_for_seconds() {
        let now = Instant::now();
        let cookies = Cookies::new([7; 32], now);
        let (one, other) = ("192.0.2.1:5".parse().unwrap(), "192.0.2.1:6".parse().unwrap());
        let later = now + Duration::from_secs(3);
        let cookie = cookies.make(one, later);
        assert!(cookies.check(&cookie, one, later) && cookies.check(&cookie, one, later + VALID));
        assert!(!cookies.check(&cookie, other, later));
        assert!(!cookies.check(&cookie, one, later + VALID + Duration::from_millis(1)));
        assert!(!cookies.check(&cookie, one, now), "from the future");
        assert!(!cookies.check(&[0; COOKIE_LEN], one, now));
        for i in 0..COOKIE_LEN {
            let mut wrong = cookie;
            wrong[i] ^= 1;
            assert!(!cookies.check(&wrong, one, later));
        }
        assert!(!Cookies::new([8; 32], now).check(&cookie, one, later));
    }
}
