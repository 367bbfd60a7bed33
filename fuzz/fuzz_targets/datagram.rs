//! What arrives in datagrams of QUIC: no panic, and what is understood survives a round trip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undertone::bitstream::read_redundancy;
use undertone::session::{Message, Wire};
use undertone::wire::{Datagram, MAX_DATAGRAM};

fuzz_target!(|data: &[u8]| {
    let Ok(datagram) = Datagram::decode(data) else { return };
    assert!(data.len() <= MAX_DATAGRAM);
    let Datagram::Bundle { sequence, first_frame, thin, copies } = datagram.clone() else {
        assert_eq!(Datagram::decode(&datagram.encode()).expect("a report"), datagram);
        return;
    };
    for coded in [false, true] {
        let Ok(message) = thin.clone().whole(sequence, first_frame, coded, Wire::ALL) else { continue };
        let first = match &message {
            Message::Bundle { bundle, .. } => {
                let _ = bundle.unpack();
                bundle.first_frame
            }
            Message::Coded { bundle, .. } => bundle.first_frame,
            _ => panic!("only bundles are thin"),
        };
        let again = Datagram::bundle(message.clone(), copies.clone()).expect("a bundle").encode();
        if let Ok(Datagram::Bundle { sequence, first_frame, thin, .. }) = Datagram::decode(&again) {
            assert_eq!(thin.whole(sequence, first_frame, coded, Wire::ALL), Ok(message));
        }
        if let Ok(Some(copies)) = read_redundancy(first, &copies) {
            assert!(copies.first_frame + u64::from(copies.frames) <= first);
        }
    }
});
