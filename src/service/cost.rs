//! What work costs the processor.

use std::time::Duration;

/// Processor time that the calling thread has had, in steps of some milliseconds; 0 where the system does not say.
pub(super) fn thread_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn what_a_thread_computes_is_counted_and_what_it_waits_for_is_not() {
        let before = thread_time();
        std::thread::sleep(Duration::from_millis(200));
        let waited = thread_time() - before;
        let (mut x, mut computed) = (1u64, Duration::ZERO);
        while computed < Duration::from_millis(100) {
            x = (0..100_000).fold(x, |x, n| x.wrapping_mul(6_364_136_223_846_793_005) ^ n);
            computed = thread_time() - before - waited;
        }
        assert!(waited < Duration::from_millis(100) && x != 0, "{waited:?}");
    }
}
