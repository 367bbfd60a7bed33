//! Packets of voice messages, and messages between daemons: no panic, and what is understood survives a round trip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undertone::bitstream::MessagePacket;
use undertone::bus::layers::LayerMessage;

fuzz_target!(|data: &[u8]| {
    if let Ok(packet) = MessagePacket::parse(data) {
        assert_eq!(MessagePacket::parse(&packet.encode()).ok(), Some(packet));
    }
    // Behind a check sum that fits.
    let mut sealed = data.to_vec();
    sealed.extend(undertone::bitstream::crc16(data).to_le_bytes());
    if let Ok(packet) = MessagePacket::parse(&sealed) {
        assert_eq!(MessagePacket::parse(&packet.encode()).ok().as_ref(), Some(&packet));
    }
    if let Ok(message) = LayerMessage::parse(data) {
        assert_eq!(LayerMessage::parse(&message.encode()).ok(), Some(message));
    }
});
