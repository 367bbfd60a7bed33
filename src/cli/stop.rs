//! Signals that ask the program to end: whoever writes ends with what there is, complete and readable.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Time to end in: what then still waits for a reader of its pipe has waited long enough.
const PATIENCE: Duration = Duration::from_secs(30);

/// As a shell says it of a program that was interrupted.
const INTERRUPTED: i32 = 130;

/// Ctrl-C, TERM and HUP, without those that whoever started us wants ignored (nohup, jobs in the background).
pub(super) struct Signals(Vec<Signal>);

impl Signals {
    /// Catches them from now on; inside of a tokio runtime.
    pub(super) fn catch() -> Result<Self> {
        let ignored = ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let caught = kinds.into_iter().filter(|kind| ignored >> (kind.as_raw_value() - 1) & 1 == 0).map(signal);
        Ok(Self(caught.collect::<std::io::Result<_>>()?))
    }

    /// Waits for the next of them.
    pub(super) async fn recv(&mut self) {
        std::future::poll_fn(|context| {
            let came = self.0.iter_mut().any(|s| s.poll_recv(context).is_ready());
            if came { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// Signals that are ignored, one bit each, from the text of `/proc/self/status`; none elsewhere.
fn ignored(status: &str) -> u64 {
    let line = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// A flag that is set by the first signal. A second one ends the program at once.
pub(super) fn stop_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = {
        let _guard = runtime.enter();
        Signals::catch()?
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            signals.recv().await;
            set.store(true, Ordering::Relaxed);
            let _ = tokio::time::timeout(PATIENCE, signals.recv()).await;
        });
        std::process::exit(INTERRUPTED);
    })?;
    Ok(flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_stays_ignored() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001003\nSigCgt:\t0\n";
        assert_eq!([1, 2, 15].map(|n| ignored(status) >> (n - 1) & 1), [1, 1, 0]);
        assert_eq!(ignored(""), 0);
    }
}
