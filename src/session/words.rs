//! Words of a peer that people are shown.

/// The text as a terminal may have it: characters that would move its cursor, change its colours or turn the direction
/// of writing are written as escapes. Line ends and tabs stay.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if turns || (c.is_control() && !matches!(c, '\n' | '\t')) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        assert_eq!(printable("a\tb\nc é 音"), "a\tb\nc é 音");
        for hostile in ["\x1b[2J", "\x1b]0;title\x07", "\u{9b}31m", "a\rb", "\x08\x7f", "\u{202e}gnp"] {
            let shown = printable(hostile);
            assert!(shown.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{shown:?}");
        }
        assert_eq!(printable("\x1b[31m"), "\\u{1b}[31m");
    }
}
