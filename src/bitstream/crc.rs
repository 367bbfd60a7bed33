//! CRC-16/IBM-3740 (polynomial 0x1021, start 0xFFFF, not reflected): check value 0x29B1.

const TABLE: [u16; 256] = table();

const fn table() -> [u16; 256] {
    let mut t = [0u16; 256];
    let mut i = 0;
    while i < 256 {
        let mut v = (i as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            v = if v & 0x8000 != 0 { (v << 1) ^ 0x1021 } else { v << 1 };
            bit += 1;
        }
        t[i] = v;
        i += 1;
    }
    t
}

/// The check sum of bytes.
pub fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xFFFF, |crc, &b| (crc << 8) ^ TABLE[usize::from((crc >> 8) as u8 ^ b)])
}

/// Appends the check sum of what was written since `start`.
pub(super) fn seal(start: usize, out: &mut Vec<u8>) {
    let crc = crc16(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

#[cfg(test)]
mod tests {
    #[test]
    fn catalogue_check_value() {
        assert_eq!(super::crc16(b"123456789"), 0x29B1);
    }
}
