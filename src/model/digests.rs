//! `files.toml` of a model folder: SHA-256 of the files that the manifest does not name, because they do not change what codes mean.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::sha256_hex;

/// Digests of the files beside those of the manifest: token models, the gradient, graphs in integers and for single frames.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Digests {
    /// Version of this file's format: 1.
    format: u32,
    /// SHA-256 by file name, lower-case hexadecimal.
    sha256: BTreeMap<String, String>,
}

/// Why a file of a model is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// Not TOML, or a key is missing or unknown.
    #[error("files.toml: {0}")]
    Syntax(String),
    /// A file that is not what it was when the model was made.
    #[error("{name}: SHA-256 is {got}, files.toml says {expected}; fetch the model folder again")]
    Differs {
        /// File name.
        name: String,
        /// Hash of the file as found.
        got: String,
        /// Hash in files.toml.
        expected: String,
    },
    /// A file that came from elsewhere.
    #[error(
        "{name}: files.toml does not name it; `python -m undertone_recipe digests FOLDER` writes it anew if the file belongs there"
    )]
    Unknown {
        /// File name.
        name: String,
    },
}

impl Digests {
    /// Name of the file.
    pub const NAME: &str = "files.toml";

    /// Parses the bytes of `files.toml`.
    ///
    /// # Errors
    /// [`DigestError::Syntax`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DigestError> {
        let text = std::str::from_utf8(bytes).map_err(|e| DigestError::Syntax(e.to_string()))?;
        let digests: Self = toml::from_str(text).map_err(|e| DigestError::Syntax(e.to_string()))?;
        match digests.format {
            1 => Ok(digests),
            other => Err(DigestError::Syntax(format!("format = {other}, allowed: 1"))),
        }
    }

    /// Names of the files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sha256.keys().map(String::as_str)
    }

    /// Every file with its hash.
    pub fn files(&self) -> &BTreeMap<String, String> {
        &self.sha256
    }

    /// Checks the content of one file.
    ///
    /// # Errors
    /// [`DigestError::Differs`] and [`DigestError::Unknown`].
    pub fn check(&self, name: &str, content: &[u8]) -> Result<(), DigestError> {
        let name = name.to_owned();
        let Some(expected) = self.sha256.get(&name) else { return Err(DigestError::Unknown { name }) };
        let got = sha256_hex(content);
        if got == *expected { Ok(()) } else { Err(DigestError::Differs { name, got, expected: expected.clone() }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_digest() {
        let text =
            "format = 1\n[sha256]\n\"a.onnx\" = \"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824\"\n";
        let digests = Digests::parse(text.as_bytes()).unwrap();
        assert_eq!(digests.names().collect::<Vec<_>>(), ["a.onnx"]);
        digests.check("a.onnx", b"hello").unwrap();
        let e = digests.check("a.onnx", b"hellp").unwrap_err().to_string();
        assert!(e.contains("a.onnx") && e.contains("2cf24dba") && e.contains("files.toml"), "{e}");
        assert!(digests.check("b.onnx", b"hello").unwrap_err().to_string().contains("recipe digests"));
        for bad in [text.replace("= 1", "= 2"), text.replace("sha256", "sha"), "\u{1}".to_owned()] {
            assert!(Digests::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
