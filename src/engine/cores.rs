//! Which processor core each of the engine's threads runs on.
//!
//! An engine thread computes for milliseconds without a pause. Kept to a core of its own it is not moved about, what it reads stays in
//! that core's cache, and two of them never wait for each other (docs/performance.md).

use std::io;

/// The cores that the engine's threads are kept to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cores(Vec<usize>);

impl Cores {
    /// Those that this process may use, if there is a thread for each. None where there is but one, or the system does not tell.
    ///
    /// With fewer threads than cores the scheduler finds them better places: another daemon would keep its threads to the same cores.
    pub(super) fn of_process(threads: usize) -> Option<Self> {
        system::allowed().ok().filter(|cores| (2..=threads).contains(&cores.len())).map(Self)
    }

    /// Of that engine thread. The last cores come first: interrupts tend to be on the first.
    fn of(&self, thread: usize) -> usize {
        self.0[self.0.len() - 1 - thread % self.0.len()]
    }

    /// Keeps the calling thread, which is that engine thread, to its core.
    pub(super) fn pin(&self, thread: usize) -> io::Result<()> {
        system::keep_to(self.of(thread))
    }
}

/// Lets other threads go first from here on, if the system can: the calling thread does what can wait.
pub(super) fn step_back() {
    system::step_back();
}

#[cfg(target_os = "linux")]
mod system {
    use std::io;

    use rustix::process::setpriority_process;
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    /// Of threads that step back: a tenth of the weight of others.
    const NICE: i32 = 10;

    pub(super) fn allowed() -> io::Result<Vec<usize>> {
        let set = sched_getaffinity(None)?;
        Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
    }

    pub(super) fn keep_to(core: usize) -> io::Result<()> {
        let mut set = CpuSet::new();
        set.set(core);
        Ok(sched_setaffinity(None, &set)?)
    }

    pub(super) fn step_back() {
        // On Linux this is the thread's own; one may always be less important than one is.
        let _ = setpriority_process(None, NICE);
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::io;

    pub(super) fn allowed() -> io::Result<Vec<usize>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn keep_to(_: usize) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn step_back() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_has_a_core_and_more_threads_share_them() {
        let cores = Cores(vec![2, 3, 6]);
        assert_eq!([0, 1, 2, 3, 4].map(|thread| cores.of(thread)), [6, 3, 2, 6, 3]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn one_thread_is_kept_to_no_core() {
        assert_eq!(Cores::of_process(1), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    #[ignore = "needs a second core: make test-system"]
    fn a_thread_stays_where_it_is_put() {
        let cores = Cores::of_process(usize::MAX).expect("this test needs a second core, and may use only one");
        std::thread::spawn(move || {
            let all = system::allowed().unwrap();
            for thread in 0..all.len() {
                cores.pin(thread).unwrap();
                assert_eq!(system::allowed().unwrap(), [cores.of(thread)]);
            }
        })
        .join()
        .unwrap();
    }
}
