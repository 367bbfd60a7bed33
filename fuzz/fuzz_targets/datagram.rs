//! What arrives over UDP: no panic, and what is understood survives a round trip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undertone::bitstream::read_redundancy;
use undertone::session::Message;
use undertone::wire::{Datagram, MAX_DATAGRAM};

fuzz_target!(|data: &[u8]| {
    let Ok(datagram) = Datagram::decode(data) else { return };
    assert!(data.len() <= MAX_DATAGRAM);
    let bytes = datagram.encode();
    if bytes.len() <= MAX_DATAGRAM {
        assert_eq!(Datagram::decode(&bytes).expect("what was understood is written well"), datagram);
    }
    if let Some(Message::Bundle { bundle, .. }) = &datagram.content {
        let _ = bundle.unpack();
        if let Ok(Some(copies)) = read_redundancy(bundle.first_frame, &datagram.copies) {
            assert!(copies.first_frame + u64::from(copies.frames) <= bundle.first_frame);
        }
    }
});
