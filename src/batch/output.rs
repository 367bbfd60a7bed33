//! Where a job's files are, and how an output comes to be whole or not at all.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use crate::bus::jobs::Job;
use crate::capture::{Content, other_content, same};

/// Age at which a half-written output is cleared away where files cannot be locked.
const STALE: Duration = Duration::from_secs(3_600);

/// Age below which it may not be locked yet.
const FRESH: Duration = Duration::from_secs(10);

/// Characters of a path that are said.
const SAID: usize = 200;

/// Why a job was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// A file could not be read or written; it may work another time.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It would fail every time.
    #[error("{0}")]
    Hopeless(String),
    /// The program has a fault that this recording brings to light.
    #[error("the encoder panicked: {0}")]
    Panicked(String),
    /// It stood still.
    #[error("it did not come further for {} s", .0.as_secs())]
    Hung(Duration),
    /// The worker was told to stop.
    #[error("cancelled")]
    Cancelled,
}

impl BatchError {
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        match source.kind() {
            // It is as long the next time.
            std::io::ErrorKind::InvalidFilename => Self::Hopeless(format!("{}: {source}", shortened(path))),
            _ => Self::Io { path: path.to_owned(), source },
        }
    }
}

/// The start of a path that is too long to be said whole.
fn shortened(path: &Path) -> String {
    let text = path.display().to_string();
    let start: String = text.chars().take(SAID).collect();
    if start.len() < text.len() { format!("{start}... ({} bytes)", text.len()) } else { text }
}

/// SHA-256 and length of a file.
pub(super) fn digest(path: &Path) -> Result<(String, u64), BatchError> {
    let error = |e| BatchError::io(path, e);
    let mut file = File::open(path).map_err(error)?;
    let (mut sha, mut chunk, mut length) = (Sha256::new(), vec![0; 64 << 10], 0);
    loop {
        match file.read(&mut chunk).map_err(error)? {
            0 => return Ok((HEXLOWER.encode(&sha.finalize()), length)),
            n => {
                sha.update(&chunk[..n]);
                length += n as u64;
            }
        }
    }
}

/// A job's files, known to lie below the shared folder.
pub(super) struct Place {
    pub(super) input: PathBuf,
    folder: PathBuf,
    name: String,
}

/// A path that only goes down.
fn below(path: &str) -> Result<&Path, BatchError> {
    let path = Path::new(path);
    let down = path.components().all(|c| matches!(c, Component::Normal(_)));
    if down && path.file_name().is_some() {
        Ok(path)
    } else {
        Err(BatchError::Hopeless(format!("{}: not a path below the shared folder", path.display())))
    }
}

impl Place {
    /// Finds the input and makes the folder of the output.
    ///
    /// # Errors
    /// [`BatchError`] for a path that leaves `root`, which must be canonical, by itself or through links.
    pub(super) fn find(root: &Path, job: &Job) -> Result<Self, BatchError> {
        let (input, output) = (root.join(below(&job.input)?), root.join(below(&job.output)?));
        let inside = |path: &Path| {
            let real = fs::canonicalize(path).map_err(|e| BatchError::io(path, e))?;
            if real.starts_with(root) {
                Ok(real)
            } else {
                Err(BatchError::Hopeless(format!("{}: leads out of the shared folder", path.display())))
            }
        };
        let input = inside(&input)?;
        let held = fs::metadata(&input).map_err(|e| BatchError::io(&input, e))?;
        if !held.is_file() {
            return Err(BatchError::Hopeless(format!(
                "{}: not a file but a pipe, a device or a folder",
                input.display()
            )));
        }
        let name = output.file_name().and_then(|n| n.to_str()).map(ToOwned::to_owned);
        let (Some(folder), Some(name)) = (output.parent(), name) else {
            return Err(BatchError::Hopeless(format!("{}: not a file name", output.display())));
        };
        // What exists of the way there is looked at before anything is created.
        let there = folder.ancestors().find(|a| a.exists()).unwrap_or(root);
        inside(there)?;
        fs::create_dir_all(folder).map_err(|e| BatchError::io(folder, e))?;
        let place = Self { input, folder: inside(folder)?, name };
        place.may_replace(&held)?;
        Ok(place)
    }

    /// Whether what is there under the output's name may be replaced: never the input by whatever name, nor another recording.
    fn may_replace(&self, input: &fs::Metadata) -> Result<(), BatchError> {
        let output = self.output();
        let Ok(there) = fs::metadata(&output) else { return Ok(()) };
        let hopeless = |reason: &str| Err(BatchError::Hopeless(format!("{}: {reason}", output.display())));
        if same(input, &there) {
            return hopeless("the output is also the input");
        }
        if !there.is_file() {
            return hopeless("not a file but a pipe, a device or a folder");
        }
        let other = other_content(&output, &there, Content::Codes).map_err(|e| BatchError::io(&output, e))?;
        other.map_or(Ok(()), hopeless)
    }

    fn output(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    /// The note that says what the output was made from: its key, length and digest.
    fn note(&self) -> PathBuf {
        self.folder.join(format!(".{}.made", self.name))
    }

    /// Length of the output if it is whole and has this key.
    pub(super) fn finished(&self, key: &str) -> Option<u64> {
        let note = fs::read_to_string(self.note()).ok()?;
        let (digest, length) = digest(&self.output()).ok()?;
        (note == text(key, length, &digest)).then_some(length)
    }

    /// Writes the output under another name, syncs it, and gives it its name and its note.
    pub(super) fn write(
        &self,
        key: &str,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), BatchError>,
    ) -> Result<u64, BatchError> {
        let (output, part) = (self.output(), self.part());
        let written = (|| {
            let error = |e| BatchError::io(&part, e);
            let file = File::create_new(&part).map_err(error)?;
            // Whoever finds it unlocked knows that its worker has died. Not every file system can do that.
            let _ = file.try_lock();
            let mut out = BufWriter::new(file);
            fill(&mut out)?;
            let file = out.into_inner().map_err(|e| error(e.into_error()))?;
            file.sync_all().map_err(error)?;
            let (digest, length) = digest(&part)?;
            fs::rename(&part, &output).map_err(error)?;
            self.sync()?;
            self.write_note(&text(key, length, &digest))?;
            Ok(length)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&part);
        }
        written
    }

    fn write_note(&self, text: &str) -> Result<(), BatchError> {
        let (note, part) = (self.note(), self.part());
        let error = |e| BatchError::io(&part, e);
        let mut file = File::create_new(&part).map_err(error)?;
        file.write_all(text.as_bytes()).map_err(error)?;
        file.sync_all().map_err(error)?;
        fs::rename(&part, note).map_err(error)?;
        self.sync()
    }

    /// A name that nobody else writes to: of two workers with the same job neither spoils the other's file.
    fn part(&self) -> PathBuf {
        let random = getrandom::u64().unwrap_or_else(|_| std::process::id().into());
        self.folder.join(format!(".{}.{random:016x}.part", self.name))
    }

    /// A rename is on disk when its folder is.
    fn sync(&self) -> Result<(), BatchError> {
        File::open(&self.folder).and_then(|d| d.sync_all()).map_err(|e| BatchError::io(&self.folder, e))
    }

    /// Where the output is to be.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Clears away what workers that died left half-written in the output's folder.
    pub(super) fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let age = || entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
            if name.to_str().is_some_and(is_part) && age().is_some_and(|age| abandoned(&entry.path(), age)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Whether this is the name of a half-written output.
fn is_part(name: &str) -> bool {
    let random = name.strip_prefix('.').and_then(|n| n.strip_suffix(".part")).and_then(|n| n.rsplit_once('.'));
    random.is_some_and(|(_, r)| r.len() == 16 && r.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether nobody writes to it any more.
fn abandoned(part: &Path, age: Duration) -> bool {
    let Ok(file) = File::options().write(true).open(part) else { return false };
    match file.try_lock() {
        Ok(()) => age > FRESH,
        Err(fs::TryLockError::WouldBlock) => false,
        Err(fs::TryLockError::Error(_)) => age > STALE,
    }
}

fn text(key: &str, length: u64, digest: &str) -> String {
    format!("key = \"{key}\"\nbytes = {length}\nsha256 = \"{digest}\"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::jobs::Wanted;

    fn job(input: &str, output: &str) -> Job {
        Job::new(input.to_owned(), output.to_owned(), Wanted::Stages(6), false)
    }

    #[test]
    fn an_output_is_whole_or_not_there_and_known_again_by_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::write(root.join("a.wav"), "sound").unwrap();
        let place = Place::find(&root, &job("a.wav", "out/deep/a.utn")).unwrap();
        let failed = place.write("k", |out| {
            out.write_all(b"half").unwrap();
            Err(BatchError::Cancelled)
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(root.join("out/deep")).unwrap().count(), 0);
        let fill = |out: &mut dyn Write| out.write_all(b"codes").map_err(|e| BatchError::io(Path::new("a"), e));
        assert_eq!(place.write("k", fill).unwrap(), 5);
        assert_eq!(place.finished("k"), Some(5));
        assert_eq!(place.finished("other"), None);
        fs::write(root.join("out/deep/a.utn"), "codfs").unwrap();
        assert_eq!(place.finished("k"), None);
    }

    #[test]
    fn neither_the_input_nor_another_recording_is_written_over_and_pipes_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let wav = b"RIFF....WAVEfmt sound";
        fs::write(root.join("a.wav"), wav).unwrap();
        fs::write(root.join("b.wav"), wav).unwrap();
        fs::hard_link(root.join("a.wav"), root.join("hard.utn")).unwrap();
        std::os::unix::fs::symlink("a.wav", root.join("soft.utn")).unwrap();
        for name in ["pipe.wav", "pipe.utn"] {
            assert!(std::process::Command::new("mkfifo").arg(root.join(name)).status().unwrap().success());
        }
        fs::create_dir(root.join("folder.wav")).unwrap();
        for (input, output, why) in [
            ("a.wav", "a.wav", "also the input"),
            ("a.wav", "hard.utn", "also the input"),
            ("a.wav", "soft.utn", "also the input"),
            ("a.wav", "b.wav", "a recording"),
            ("a.wav", "pipe.utn", "a pipe"),
            ("pipe.wav", "new.utn", "a pipe"),
            ("folder.wav", "new.utn", "a folder"),
        ] {
            match Place::find(&root, &job(input, output)) {
                Err(BatchError::Hopeless(reason)) => assert!(reason.contains(why), "{reason}"),
                other => panic!("{input} {output}: {:?}", other.err()),
            }
        }
        assert_eq!(fs::read(root.join("b.wav")).unwrap(), wav);
    }

    #[test]
    fn a_name_that_is_too_long_is_hopeless_and_said_in_short() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let long = "x".repeat(15_000);
        match Place::find(&root, &job(&long, "a.utn")) {
            Err(BatchError::Hopeless(reason)) => {
                assert!(reason.len() < 400 && reason.contains("too long") && reason.contains("xxx..."), "{reason}");
            }
            other => panic!("{:?}", other.err()),
        }
    }

    #[test]
    fn what_a_dead_worker_left_is_cleared_away_and_what_a_living_one_writes_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::write(root.join("a.wav"), "sound").unwrap();
        let place = Place::find(&root, &job("a.wav", "out/a.utn")).unwrap();
        let (dead, living, fresh) = (place.part(), place.part(), place.part());
        let theirs = root.join("out/.notes.part");
        for path in [&dead, &living, &fresh, &theirs] {
            fs::write(path, "half").unwrap();
        }
        let old = std::time::SystemTime::now() - 2 * FRESH;
        let owner = File::options().write(true).open(&living).unwrap();
        owner.try_lock().unwrap();
        for path in [&dead, &living, &theirs] {
            File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
        }
        place.sweep();
        assert_eq!([&dead, &living, &fresh, &theirs].map(|p| p.exists()), [false, true, true, true]);
    }

    #[test]
    fn nothing_outside_the_shared_folder_is_touched() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::write(root.join("a.wav"), "sound").unwrap();
        fs::write(outside.path().join("b.wav"), "secret").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.join("link")).unwrap();
        let absolute = outside.path().join("b.wav").display().to_string();
        for (input, output) in [
            ("../b.wav", "a.utn"),
            (absolute.as_str(), "a.utn"),
            ("link/b.wav", "a.utn"),
            ("a.wav", "../a.utn"),
            ("a.wav", "link/a.utn"),
            ("a.wav", "link/new/a.utn"),
            ("a.wav", ""),
        ] {
            let found = Place::find(&root, &job(input, output));
            assert!(matches!(found, Err(BatchError::Hopeless(_))), "{input} {output}");
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        assert!(matches!(Place::find(&root, &job("none.wav", "a.utn")), Err(BatchError::Io { .. })));
    }
}
