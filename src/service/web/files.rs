//! What a page needs to decode and encode by itself: the codec in WebAssembly and the files of the model.
//!
//! Their addresses change with their content, so a browser may keep them for ever. They are read from the disk piece by piece as they are
//! asked for, and not kept here.

use std::io::{Error, Read, Result};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::model::{Digests, Manifest, TOKENS};

/// Bytes read at a time.
pub(in crate::service) const PIECE: usize = 64 << 10;

/// A file of the codec.
#[derive(Debug)]
pub(in crate::service) struct CodecFile {
    /// Where pages find it.
    pub(in crate::service) address: String,
    /// Its hash, in quotes.
    pub(in crate::service) etag: String,
    pub(in crate::service) kind: &'static str,
    pub(in crate::service) file: PathBuf,
    pub(in crate::service) bytes: u64,
    changed: SystemTime,
}

impl CodecFile {
    fn read(file: PathBuf, kind: &'static str) -> Result<Self> {
        let named = |e: Error| Error::new(e.kind(), format!("{}: {e}", file.display()));
        let mut open = std::fs::File::open(&file).map_err(named)?;
        let changed = open.metadata().and_then(|m| m.modified()).map_err(named)?;
        let (mut hash, mut bytes, mut piece) = (Sha256::new(), 0, vec![0; PIECE]);
        loop {
            let n = open.read(&mut piece).map_err(named)?;
            if n == 0 {
                break;
            }
            hash.update(&piece[..n]);
            bytes += n as u64;
        }
        let digest = data_encoding::HEXLOWER.encode(&hash.finalize()[..16]);
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        Ok(Self {
            address: format!("/codec/{digest}/{name}"),
            etag: format!("\"{digest}\""),
            kind,
            bytes,
            changed,
            file,
        })
    }

    /// Whether the file on the disk is still the one whose hash is in its address.
    pub(in crate::service) fn is_unchanged(&self) -> bool {
        let now = std::fs::metadata(&self.file).and_then(|m| Ok((m.len(), m.modified()?)));
        now.is_ok_and(|now| now == (self.bytes, self.changed))
    }
}

/// All that a page needs, and what tells it so.
#[derive(Debug)]
pub struct PageCodec {
    files: Vec<CodecFile>,
    index: String,
}

impl PageCodec {
    /// Reads and hashes the module `undertone.wasm` and the files of a model folder that it needs.
    ///
    /// # Errors
    /// The file that cannot be read, or a manifest that is none.
    pub fn read(module: &Path, model: &Path) -> Result<Self> {
        let manifest = Manifest::parse(&std::fs::read(model.join("manifest.toml"))?).map_err(Error::other)?;
        let mut files = vec![CodecFile::read(module.to_owned(), "application/wasm")?];
        let mut shared = Map::new();
        let mut add = |name: &str, to: &mut Map<String, Value>| {
            let kind = if name.ends_with(".toml") { "text/plain; charset=utf-8" } else { "application/octet-stream" };
            let file = CodecFile::read(model.join(name), kind)?;
            to.insert(name.to_owned(), json!({"at": file.address, "bytes": file.bytes}));
            files.push(file);
            Ok::<_, Error>(())
        };
        add("manifest.toml", &mut shared)?;
        add(&manifest.codebooks.path, &mut shared)?;
        // Without them codes are not coded, and losses are concealed more simply.
        for name in [Digests::NAME, TOKENS] {
            if model.join(name).exists() {
                add(name, &mut shared)?;
            }
        }
        let (mut listen, mut publish) = (shared.clone(), shared);
        add(&manifest.decoder.path, &mut listen)?;
        add(&manifest.encoder.path, &mut publish)?;
        let module = json!({"at": files[0].address, "bytes": files[0].bytes});
        let index = json!({"module": module, "listen": listen, "publish": publish}).to_string();
        Ok(Self { files, index })
    }

    /// Which files there are, as the page reads it.
    pub(in crate::service) fn index(&self) -> &str {
        &self.index
    }

    /// The file at an address.
    pub(in crate::service) fn file(&self, address: &str) -> Option<&CodecFile> {
        self.files.iter().find(|file| file.address == address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_contents_and_changes_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("undertone.wasm");
        std::fs::write(&path, b"one").unwrap();
        let one = CodecFile::read(path.clone(), "application/wasm").unwrap();
        assert!(one.is_unchanged() && one.bytes == 3 && one.address.ends_with("/undertone.wasm"), "{one:?}");
        std::fs::write(&path, b"other").unwrap();
        assert!(!one.is_unchanged());
        assert_ne!(CodecFile::read(path, "application/wasm").unwrap().address, one.address);
        let error = PageCodec::read(Path::new("nowhere.wasm"), folder.path()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    }
}
