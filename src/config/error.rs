//! Why a configuration cannot be used, in words that repeat no secret.

use std::path::PathBuf;

/// Longest word of the file that an error repeats.
const LONGEST_WORD: usize = 32;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Not TOML, or a key that is not known.
    #[error("configuration: {0}")]
    Syntax(String),
    /// A value outside its range.
    #[error("configuration: {key} = {got}: {allowed}")]
    Value {
        /// Key in the file.
        key: &'static str,
        /// Value as given.
        got: String,
        /// What is allowed.
        allowed: String,
    },
}

impl ConfigError {
    /// Where the text is wrong and why. The parser's own words would show the line, and with it whatever secret stands
    /// there or beside it: values are left out, and of the keys only what could be one.
    pub(super) fn syntax(text: &str, e: &toml::de::Error) -> Self {
        let reason = reason(e.message());
        let Some(before) = e.span().and_then(|span| text.get(..span.start)) else {
            return Self::Syntax(reason);
        };
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let column = before[start..].chars().count() + 1;
        let key = if is_value(e.message()) { key_of(&before[start..]) } else { None };
        let key = key.map(|k| format!(", {k}")).unwrap_or_default();
        Self::Syntax(format!("line {line}, column {column}{key}: {reason}"))
    }
}

pub(super) fn value_error(key: &'static str, got: impl ToString, allowed: impl ToString) -> ConfigError {
    ConfigError::Value { key, got: got.to_string(), allowed: allowed.to_string() }
}

pub(super) fn within<T: PartialOrd + ToString + Copy>(
    key: &'static str,
    got: T,
    low: T,
    high: T,
) -> Result<T, ConfigError> {
    if got >= low && got <= high {
        Ok(got)
    } else {
        Err(value_error(key, got, format!("allowed {} to {}", low.to_string(), high.to_string())))
    }
}

/// Whether the parser complains of a value, which then stands right behind its key.
fn is_value(message: &str) -> bool {
    ["invalid type", "invalid value", "invalid length", "unknown variant"].iter().any(|s| message.starts_with(s))
}

/// The bare key that the line ends with, before its `=`.
fn key_of(line: &str) -> Option<&str> {
    let line = line.trim_end().strip_suffix('=')?.trim_end();
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let key = &line[line.rfind(|c| !bare(c)).map_or(0, |at| at + 1)..];
    is_word(key).then_some(key)
}

/// Whether a text can be a key or a word of ours: no secret is without digits and this short.
fn is_word(text: &str) -> bool {
    (1..=LONGEST_WORD).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_lowercase() || matches!(c, '_' | '-' | '.'))
}

/// The parser's reason without values: "invalid type: string "x", expected u32" becomes "invalid type: string,
/// expected u32", and what is quoted elsewhere is kept only if it is a word or a sign.
fn reason(message: &str) -> String {
    if let Some((head, expected)) = message.rsplit_once(", expected ")
        && (head.starts_with("invalid type") || head.starts_with("invalid value"))
    {
        let kind = head.find(['"', '`']).map_or(head, |at| &head[..at]).trim_end();
        return format!("{kind}, expected {expected}");
    }
    let mut parts = message.split('`');
    let mut out = parts.next().unwrap_or_default().to_owned();
    // What is between two backticks, and what follows them.
    while let Some(quoted) = parts.next() {
        let kept = if quoted.chars().count() <= 2 || is_word(quoted) { quoted } else { "..." };
        out.push_str(&format!("`{kept}`"));
        out.push_str(parts.next().unwrap_or_default());
    }
    match out.find('"') {
        Some(at) => out[..at].trim_end().to_owned(),
        None => out,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    /// A secret as `openssl rand -hex 24` makes it, and one of words.
    const SECRETS: [&str; 2] = ["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822c", "correct horse battery=staple"];

    fn error(text: &str) -> String {
        Config::parse(text).expect_err(text).to_string()
    }

    #[test]
    fn no_mistake_beside_a_secret_shows_it() {
        for secret in SECRETS {
            for text in [
                format!("[[token]]\nname = \"a\"\nsecret = \"{secret}\nlisten = [\"*\"]"),
                format!("[[token]]\nname = \"a\"\nsecret = {secret}\nlisten = [\"*\"]"),
                format!("[[token]]\nname = \"a\"\nsecret \"{secret}\"\nlisten = [\"*\"]"),
                format!("[[token]]\nname = \"a\"\nsecret = \"{secret}\" listen = [\"*\"]"),
                format!("[[token]]\nname = \"a\"\nsecret = [\"{secret}\"]\nlisten = [\"*\"]"),
                format!("[[token]]\nname = \"a\"\nsecret = \"{secret}\\q\"\nlisten = [\"*\"]"),
                format!("[[token]]\nname = \"a\"\nsecret = \"{secret}\"\nsecret = \"{secret}\"\nlisten = [\"*\"]"),
                format!("[[token]]\nname = \"a\"\n\"{secret}\" = \"secret\"\nlisten = [\"*\"]"),
                format!("token = [{{ secret = \"{secret}\", nmae = \"a\", listen = [\"*\"] }}]"),
                format!("token = [{{ name = 5, secret = \"{secret}\", listen = [\"*\"] }}]"),
                format!("token = \"{secret}\""),
                format!("[[token]]\nname = \"a\"\nsecret = \"{secret}\"\nlisten = \"*\""),
                format!("[[token]]\nname = \"a\"\nsecret_file = \"{secret}\"\nlisten = [\"*\"]"),
                format!("[[token]]\nname = \"a\"\nsecret_file = [\"{secret}\"]\nlisten = [\"*\"]"),
                format!("[nats]\nurl = \"nats://me:{secret}@host\" prefix = 5"),
                format!("[nats]\nurl = \"http://me:{secret}@host\""),
                format!("[nats]\nurl = [\"nats://me:{secret}@host\"]"),
                format!("[nats]\nreplay_s = \"nats://me:{secret}@host\""),
                format!("[limits]\nmax_connections = \"{secret}\""),
                format!("[http]\npublic_url = \"https://me:{secret}@host\""),
                secret.to_owned(),
            ] {
                let e = error(&text);
                assert!(secret.split(['=', ' ']).all(|part| !e.contains(part)), "{text}\n{e}");
            }
        }
        let e = error("[[token]]\nname = \"a\"\nsecret = 918273645546372819\nlisten = [\"*\"]");
        assert!(!e.contains("9182") && e.contains("line 3") && e.contains("secret: invalid type: integer"), "{e}");
    }

    #[test]
    fn errors_still_say_where_and_why() {
        for (text, wanted) in [
            ("[codec]\nkbits = 3", vec!["line 2, column 1", "unknown field `kbits`", "frames_per_bundle"]),
            ("[limits]\nidle_s = \"x\"", vec!["line 2, column 10, idle_s: invalid type: string, expected f64"]),
            ("[log]\ntarget = \"file\"", vec!["line 2", "target", "`file`", "journald"]),
            ("[codec]\nkbps = ", vec!["line 2"]),
            ("[[token]]\nsecret = \"0123456789abcdef\"", vec!["missing field `name`"]),
        ] {
            let e = error(text);
            assert!(wanted.iter().all(|w| e.contains(w)), "{e}");
        }
    }
}
