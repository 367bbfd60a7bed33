//! Names of recordings: the stream, and when the file begins.

use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

use crate::session::StreamName;

/// The start time in the name of a recording; None for any other file.
pub(super) fn started(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(".utn")?;
    let at = stem.len().checked_sub(19)?;
    let (stream, time) = (stem.get(..at)?.strip_suffix('-')?, stem.get(at..)?);
    let digits = |range: std::ops::Range<usize>| time.as_bytes()[range].iter().all(u8::is_ascii_digit);
    let well = digits(0..8) && digits(9..18) && time.as_bytes()[8] == b'T' && time.ends_with('Z');
    (well && StreamName::new(stream).is_ok()).then_some(time)
}

/// `20261124T093000123Z`: sorts like time.
pub(super) fn utc(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().try_into().unwrap_or_default();
    let t = OffsetDateTime::UNIX_EPOCH.checked_add(since).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (year, month, day) = t.to_calendar_date();
    let (hour, minute, second, ms) = t.to_hms_milli();
    format!("{year:04}{:02}{day:02}T{hour:02}{minute:02}{second:02}{ms:03}Z", u8::from(month))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn names_carry_the_time_in_utc_and_other_files_are_not_ours() {
        for (seconds, text) in [
            (0, "19700101T000000000Z"),
            (951_782_399, "20000228T235959000Z"),
            (951_782_400, "20000229T000000000Z"),
            (1_795_512_645, "20261124T093045000Z"),
            (4_107_542_400, "21000301T000000000Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
            assert_eq!(started(&format!("radio.1-b-{text}.utn")), Some(text));
        }
        for other in ["a.utn", "20261124T093045000Z.utn", "a-20261124T0930x5000Z.utn", "a-20261124T093045000Z.wav", "é"]
        {
            assert_eq!(started(other), None, "{other}");
        }
    }
}
