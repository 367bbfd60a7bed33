//! Names of recordings: the stream, and when the file begins.

use std::time::{SystemTime, UNIX_EPOCH};

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
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, ms) = (since.as_secs(), since.subsec_millis());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days: years begin in March, so that the leap day is the last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}{ms:03}Z", second / 3600, second / 60 % 60, second % 60)
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
