//! How other daemons are reached.

use std::path::PathBuf;
use std::time::Duration;

use super::{ConfigError, value_error, within};
use crate::bus::{BusOptions, Kept, Prefix};

/// NATS: where it is, and what is kept there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nats {
    /// The connection.
    pub bus: BusOptions,
    /// How much of the live streams JetStream keeps; None is nothing.
    pub kept: Option<Kept>,
}

section!(RawNats {
    url: String = String::new(),
    credentials: String = String::new(),
    ca: String = String::new(),
    prefix: String = "undertone".to_owned(),
    replay_s: u64 = 0,
    replay_bytes: u64 = 268_435_456,
});

impl RawNats {
    pub(super) fn check(self) -> Result<Option<Nats>, ConfigError> {
        let prefix = Prefix::new(&self.prefix).map_err(|e| value_error("nats.prefix", &e.got, e.allowed))?;
        let age = within("nats.replay_s", self.replay_s, 0, 31_536_000)?;
        let bytes = within("nats.replay_bytes", self.replay_bytes, 1 << 20, 1 << 50)?;
        if self.url.is_empty() {
            return Ok(None);
        }
        check_url(&self.url)?;
        let path = |p: String| (!p.is_empty()).then(|| PathBuf::from(p));
        let bus = BusOptions { url: self.url, credentials: path(self.credentials), ca: path(self.ca), prefix };
        Ok(Some(Nats { bus, kept: (age > 0).then(|| Kept { age: Duration::from_secs(age), bytes }) }))
    }
}

/// The address may hold a password, so an error does not repeat it.
fn check_url(url: &str) -> Result<(), ConfigError> {
    let good = |u: &str| ["nats://", "tls://"].iter().any(|s| u.trim().strip_prefix(s).is_some_and(|r| !r.is_empty()));
    if url.split(',').all(good) {
        Ok(())
    } else {
        Err(value_error("nats.url", "(as given)", "addresses nats://HOST:PORT or tls://HOST:PORT, separated by commas"))
    }
}
