//! Messages of a connection, in pieces: no panic, no more held than a message, and what is understood survives a round trip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undertone::session::{ThinReader, Wire};
use undertone::wire::{Framer, MAX_MESSAGE, encode};

fuzz_target!(|data: &[u8]| {
    let mut framer = Framer::default();
    let mut thin = [ThinReader::new(false, Wire::ALL), ThinReader::new(true, Wire::ALL)];
    for piece in data.chunks(1 + data.first().map_or(0, |&b| usize::from(b))) {
        framer.push(piece);
        loop {
            match framer.next() {
                Ok(Some(message)) => {
                    let mut bytes = Vec::new();
                    encode(&message, &mut bytes);
                    let mut again = Framer::default();
                    again.push(&bytes);
                    assert_eq!(again.next().ok().flatten().as_ref(), Some(&message));
                    thin.iter_mut().for_each(|t| drop(t.whole(message.clone())));
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(framer.buffered() <= MAX_MESSAGE + 5 + piece.len());
    }
});
