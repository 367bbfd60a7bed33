//! What clients may do.

use std::time::Duration;

use super::{ConfigError, within};
use crate::session::Timeouts;

/// What clients may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, over all ports.
    pub max_connections: usize,
    /// Connections at once of one address; an IPv6 network of 64 bits counts as one.
    pub max_connections_per_address: usize,
    /// Places of `max_connections` that are kept for the HTTP port and for clients that log in.
    pub reserved: usize,
    /// Whether the operator gave `max_connections_per_address`: then it holds for the engine's slots, too.
    pub share_given: bool,
    /// New connections a second of one address; as many may come at once.
    pub new_connections_per_s: u32,
    /// Patience with handshakes and silence.
    pub timeouts: Timeouts,
    /// Bundles that wait for a listener before it skips ahead, and if that does not help is closed as too slow.
    pub listener_queue: usize,
    /// How late live sound may be before it is left out.
    pub max_lag: Duration,
    /// Bytes that the system may hold for a listener of codes.
    pub send_buffer: u32,
    /// Sessions at once whose bundles are range-coded.
    pub coded_sessions: usize,
}

section!(RawLimits {
    max_connections: usize = 256,
    max_connections_per_address: usize = 0,
    reserved_percent: usize = 10,
    new_connections_per_s: u32 = 200,
    handshake_s: f64 = 5.0,
    idle_s: f64 = 30.0,
    listener_queue_bundles: usize = 64,
    max_lag_ms: u64 = 400,
    send_buffer_bytes: u32 = 16_384,
    coded_sessions: usize = 64,
});

impl Limits {
    /// Engine slots of `slots` that connections of one address may hold.
    pub fn slots_per_address(&self, slots: usize) -> usize {
        if self.share_given { self.max_connections_per_address } else { slots.div_ceil(2) }
    }
}

impl RawLimits {
    pub(super) fn check(self) -> Result<Limits, ConfigError> {
        let seconds = |key, got| within(key, got, 0.05, 86_400.0).map(Duration::from_secs_f64);
        let max_connections = within("limits.max_connections", self.max_connections, 1, 100_000)?;
        let share = within("limits.max_connections_per_address", self.max_connections_per_address, 0, 100_000)?;
        let percent = within("limits.reserved_percent", self.reserved_percent, 0, 90)?;
        // Half, so that one address alone can shut nobody out; whoever gives a number means it.
        let max_connections_per_address = if share == 0 { max_connections.div_ceil(2) } else { share };
        Ok(Limits {
            max_connections,
            max_connections_per_address,
            reserved: max_connections * percent / 100,
            share_given: share > 0,
            new_connections_per_s: within("limits.new_connections_per_s", self.new_connections_per_s, 1, 100_000)?,
            timeouts: Timeouts {
                handshake: seconds("limits.handshake_s", self.handshake_s)?,
                idle: seconds("limits.idle_s", self.idle_s)?,
            },
            listener_queue: within(
                "limits.listener_queue_bundles",
                self.listener_queue_bundles,
                // A publisher may be half a second ahead: 25 bundles of one frame.
                32,
                10_000,
            )?,
            max_lag: Duration::from_millis(within("limits.max_lag_ms", self.max_lag_ms, 100, 60_000)?),
            send_buffer: within("limits.send_buffer_bytes", self.send_buffer_bytes, 4_096, 4_194_304)?,
            coded_sessions: within("limits.coded_sessions", self.coded_sessions, 0, 100_000)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    #[test]
    fn by_default_an_address_has_half_and_a_tenth_is_reserved() {
        let limits = Config::default().limits;
        assert_eq!((limits.max_connections, limits.max_connections_per_address, limits.reserved), (256, 128, 25));
        assert_eq!(limits.slots_per_address(128), 64);
        let limits = |text: &str| Config::parse(&format!("[limits]\n{text}")).unwrap().limits;
        assert_eq!(limits("max_connections = 20").max_connections_per_address, 10);
        let given = limits("max_connections_per_address = 256");
        assert_eq!((given.max_connections_per_address, given.slots_per_address(128)), (256, 256));
        let e = Config::parse("[limits]\nreserved_percent = 91").unwrap_err().to_string();
        assert!(e.contains("limits.reserved_percent = 91") && e.contains("0 to 90"), "{e}");
    }
}
