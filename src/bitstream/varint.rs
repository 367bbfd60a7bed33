//! Little-endian base-128 integers, at most 10 bytes.

pub(super) fn put(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// What the front of a buffer holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Value(u64, usize),
    Incomplete,
    TooLong,
}

pub(super) fn get(bytes: &[u8]) -> Found {
    let mut value = 0u64;
    for (i, &b) in bytes.iter().enumerate().take(10) {
        let part = u64::from(b & 0x7F);
        if i == 9 && part > 1 {
            return Found::TooLong;
        }
        value |= part << (7 * i);
        if b < 0x80 {
            return Found::Value(value, i + 1);
        }
    }
    if bytes.len() >= 10 { Found::TooLong } else { Found::Incomplete }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_back_and_long_ones_are_refused() {
        for v in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut b = Vec::new();
            put(v, &mut b);
            assert_eq!(get(&b), Found::Value(v, b.len()));
            assert_eq!(get(&b[..b.len() - 1]), Found::Incomplete);
        }
        assert_eq!(get(&[0xFF; 10]), Found::TooLong);
    }
}
