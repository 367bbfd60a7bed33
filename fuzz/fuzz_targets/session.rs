//! What a peer may send to a session that reads foreign messages: no panic, and after the end nothing but refusals.
#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use undertone::codec::Profile;
use undertone::fake;
use undertone::session::{Event, ServerSession, ThinReader, Timeouts, Wire};
use undertone::wire::Framer;

static PROFILE: LazyLock<Profile> = LazyLock::new(|| fake::profile(6));

fuzz_target!(|data: &[u8]| {
    let start = Instant::now();
    let timeouts = Timeouts { handshake: Duration::from_secs(1), idle: Duration::from_secs(1) };
    let mut session = ServerSession::new(timeouts, None, Wire::ALL, start);
    let mut framer = Framer::default();
    framer.push(data);
    let mut ended = false;
    let mut opened = 0;
    let mut thin = ThinReader::new(false, Wire::ALL);
    while let Ok(Some(message)) = framer.next() {
        let Ok(message) = thin.whole(message) else { break };
        match session.handle(message, &PROFILE, start) {
            Ok(event) => {
                assert!(!ended, "{event:?} after the end");
                match event {
                    Event::Done => ended = true,
                    Event::Opened(..) => opened += 1,
                    Event::Bundle(bundle) => assert!(opened == 1 && bundle.unpack().is_ok()),
                    Event::Stages(_) | Event::Alive => {}
                }
            }
            Err(_) => ended = true,
        }
    }
    assert!(opened <= 1);
});
