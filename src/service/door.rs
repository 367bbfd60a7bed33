//! What a connection must pass before anything is done for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::sync::Semaphore;
use tracing::debug;

use super::access::{Gate, Purpose, Refusal, Visit};
use crate::config::Limits;

/// What a connection must pass.
pub(super) struct Door {
    pub(super) room: Arc<Room>,
    pub(super) gate: Arc<Gate>,
    pub(super) refusals: Arc<Semaphore>,
}

impl Door {
    /// Lets a connection in; or not, with what its peer is told, or nothing: who opens connections like a flood gets no
    /// words, which would cost more than the flood does.
    pub(super) fn enter(
        &self,
        peer: SocketAddr,
        purpose: Purpose,
        limits: &Limits,
        may_use_reserve: bool,
    ) -> Result<Guest, Option<String>> {
        let visit = self.gate.enter(peer.ip(), purpose, limits, Instant::now()).map_err(|refusal| match refusal {
            Refusal::Flood => {
                debug!(%peer, "connections come too fast (limits.new_connections_per_s)");
                None
            }
            Refusal::Share(share) => Some(format!(
                "all {share} connections that one address may have (limits.max_connections_per_address) are in use"
            )),
        })?;
        let full = || {
            let max = limits.max_connections;
            format!("all {max} connections (limits.max_connections, less limits.reserved_percent) are in use")
        };
        let permit = self.room.enter(limits, may_use_reserve).ok_or_else(|| Some(full()))?;
        Ok(Guest { peer, visit: Arc::new(visit), permit })
    }
}

/// Who is connected: where from, and in which place.
pub(super) struct Guest {
    pub(super) peer: SocketAddr,
    pub(super) visit: Arc<Visit>,
    pub(super) permit: Permit,
}

/// Connections in use.
#[derive(Default)]
pub(super) struct Room {
    used: AtomicUsize,
}

/// A place for one connection; dropping it frees the place.
pub(super) struct Permit {
    room: Arc<Room>,
    /// It is one of those that are kept for operators and for who logs in.
    pub(super) is_reserved: bool,
}

impl Room {
    /// None if all places are taken, or all but the reserved ones for who may not use these.
    fn enter(self: &Arc<Self>, limits: &Limits, may_use_reserve: bool) -> Option<Permit> {
        let open = limits.max_connections.saturating_sub(limits.reserved);
        let most = if may_use_reserve { limits.max_connections } else { open };
        let more = |used| (used < most).then_some(used + 1);
        let used = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Permit { room: Arc::clone(self), is_reserved: used >= open })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.room.used.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn strangers_leave_the_last_places_to_who_logs_in() {
        let limits = Config::parse("[limits]\nmax_connections = 10\nreserved_percent = 20").unwrap().limits;
        let room = Arc::new(Room::default());
        let strangers: Vec<_> = std::iter::from_fn(|| room.enter(&limits, false)).collect();
        assert!(strangers.len() == 8 && strangers.iter().all(|p| !p.is_reserved));
        let known: Vec<_> = std::iter::from_fn(|| room.enter(&limits, true)).collect();
        assert!(known.len() == 2 && known.iter().all(|p| p.is_reserved));
        drop(known);
        assert!(room.enter(&limits, false).is_none() && room.enter(&limits, true).is_some());
    }
}
