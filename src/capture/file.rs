//! Where a command's output goes, without losing what was there before.
//!
//! Output is never an input. A file that does not exist yet is written in place, so that a kill leaves what was written. A file that is
//! there already is replaced only by a whole one: that is written beside it, synced, and given its name.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::CaptureError;
use super::bytes::is_standard;

/// Longest name of a file.
const MAX_NAME: usize = 255;

/// Links that are followed to a file that does not exist yet.
const MAX_LINKS: usize = 40;

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// A file of codes.
    Codes,
    /// A recording, with a header or bare.
    Recording,
}

/// First bytes of files of codes, and of recordings: offset and bytes.
const CODES: &[u8] = b"UTN";
const RECORDINGS: &[(usize, &[u8])] = &[
    (0, b"RIFF"),
    (0, b"RIFX"),
    (0, b"RF64"),
    (0, b"BW64"),
    (0, b"riff"),
    (0, b"fLaC"),
    (0, b"OggS"),
    (0, b"ID3"),
    (0, b"FORM"),
    (0, b"caff"),
    (0, b".snd"),
    (0, b"wvpk"),
    (0, b"MAC "),
    (4, b"ftyp"),
    (0, &[0xff, 0xfb]),
    (0, &[0xff, 0xfa]),
    (0, &[0xff, 0xf3]),
    (0, &[0xff, 0xf2]),
    (0, &[0xff, 0xf1]),
    (0, &[0xff, 0xf9]),
];

/// Ends of the names of recordings, bare samples included.
const RECORDING_NAMES: &[&str] = &[
    "wav", "wave", "rf64", "bwf", "w64", "flac", "ogg", "oga", "opus", "mp3", "mp2", "aac", "m4a", "mp4", "aif",
    "aiff", "aifc", "caf", "au", "snd", "wv", "ape", "wma", "amr", "raw", "pcm", "s16", "s16le", "f32", "f32le", "sw",
];

/// A file, pipe or standard output that is being written.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
    target: Target,
}

enum Target {
    /// The standard output, a pipe, a device.
    Stream(Box<dyn Write + Send>),
    /// A regular file that is to be `place`. None: nothing was written yet.
    File { place: PathBuf, open: Option<Open>, replaces: Option<fs::Permissions> },
}

/// A file that is open under its own name, or under another one beside it.
#[derive(Debug)]
struct Open {
    file: File,
    part: Option<PathBuf>,
    kept: bool,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stream(_) => f.write_str("Stream"),
            Self::File { place, .. } => f.debug_tuple("File").field(place).finish(),
        }
    }
}

impl OutputFile {
    /// Prepares `path` for this content; `-` is the standard output. Nothing is created or changed before the first byte is written.
    ///
    /// # Errors
    /// [`CaptureError`] if it is one of the `inputs`, if a file that is there holds something else (unless `force` is set), or
    /// cannot be written.
    pub fn create(path: &Path, content: Content, inputs: &[&Path], force: bool) -> Result<Self, CaptureError> {
        let refuse = |reason: String| CaptureError::Output { path: path.to_owned(), reason };
        let fail = |source| CaptureError::Io { path: path.to_owned(), source };
        let there = if is_stdout(path) { standard(io::stdout().as_fd()) } else { fs::metadata(path).ok() };
        if let Some(there) = &there
            && inputs.iter().filter_map(|p| identity(p)).any(|input| same(&input, there))
        {
            return Err(refuse("the output is also the input; nothing was changed".to_owned()));
        }
        if is_stdout(path) {
            return Ok(Self { path: path.to_owned(), target: Target::Stream(Box::new(io::stdout())) });
        }
        let Some(there) = there else {
            let place = follow(path);
            let folder = folder(&place);
            if !folder.is_dir() {
                return Err(refuse(format!("there is no folder {}", folder.display())));
            }
            return Ok(Self { path: path.to_owned(), target: Target::File { place, open: None, replaces: None } });
        };
        if there.is_dir() {
            return Err(fail(io::Error::new(io::ErrorKind::IsADirectory, "is a directory")));
        }
        if !there.is_file() || is_descriptor(path) {
            let append = there.is_file();
            let file = File::options().write(true).append(append).open(path).map_err(fail)?;
            return Ok(Self { path: path.to_owned(), target: Target::Stream(Box::new(file)) });
        }
        // Who may not write to it may not replace it either.
        drop(File::options().write(true).open(path).map_err(fail)?);
        if !force && let Some(other) = other_content(path, &there, content).map_err(fail)? {
            let advice = "give another name, or --force to replace it";
            return Err(refuse(format!("{other}, which this command does not write: {advice}; nothing was changed")));
        }
        let place = fs::canonicalize(path).map_err(fail)?;
        let target = Target::File { place, open: None, replaces: Some(there.permissions()) };
        Ok(Self { path: path.to_owned(), target })
    }

    /// As the user called it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether bytes leave at once to somebody who may wait for them.
    pub fn is_stream(&self) -> bool {
        matches!(self.target, Target::Stream(_))
    }

    /// Whether something was written.
    pub fn is_begun(&self) -> bool {
        matches!(self.target, Target::File { open: Some(_), .. })
    }

    /// Whether a file that was there before is to be replaced.
    pub fn replaces(&self) -> bool {
        matches!(self.target, Target::File { replaces: Some(_), .. })
    }

    /// Writes; when this returns, the system has the bytes, and a kill of this program does not lose them.
    ///
    /// # Errors
    /// [`CaptureError::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CaptureError> {
        let written = match &mut self.target {
            Target::Stream(to) => to.write_all(bytes).and_then(|()| to.flush()),
            Target::File { .. } => self.open().and_then(|open| open.file.write_all(bytes)),
        };
        written.map_err(|e| self.error(e))
    }

    /// Writes over what was written before, from byte `at` on; nothing happens on a stream.
    ///
    /// # Errors
    /// [`CaptureError::Io`].
    pub fn write_again(&mut self, at: u64, bytes: &[u8]) -> Result<(), CaptureError> {
        if self.is_stream() {
            return Ok(());
        }
        self.open().and_then(|open| open.file.write_all_at(bytes, at)).map_err(|e| self.error(e))
    }

    /// Ends the output: the file is synced and has its name.
    ///
    /// # Errors
    /// [`CaptureError::Io`]; then what was there before is still there.
    pub fn finish(mut self) -> Result<(), CaptureError> {
        let finished = match &mut self.target {
            Target::Stream(to) => to.flush(),
            Target::File { .. } => self.settle(),
        };
        finished.map_err(|e| self.error(e))
    }

    fn settle(&mut self) -> io::Result<()> {
        let file = self.open()?.file.try_clone()?;
        file.sync_all()?;
        let Target::File { place, open: Some(open), replaces } = &mut self.target else { return Ok(()) };
        if let Some(part) = &open.part {
            if let Some(permissions) = replaces {
                file.set_permissions(permissions.clone())?;
            }
            fs::rename(part, &*place)?;
        }
        open.kept = true;
        // A name is on disk when its folder is. Not every file system can be asked for that.
        let _ = File::open(folder(place)).and_then(|f| f.sync_all());
        Ok(())
    }

    /// Ends an output that did not become what was asked for, but is worth keeping. Gives the name it lies under, where that is not its
    /// own because a file is there already.
    ///
    /// # Errors
    /// [`CaptureError::Io`].
    pub fn set_aside(mut self) -> Result<Option<PathBuf>, CaptureError> {
        let Target::File { open: Some(open), .. } = &mut self.target else { return Ok(None) };
        open.kept = true;
        let (synced, part) = (open.file.sync_all(), open.part.clone());
        synced.map_err(|e| self.error(e))?;
        Ok(part)
    }

    /// Goes on at this byte, as if all up to it had been written.
    #[cfg(test)]
    pub(super) fn skip_to(&mut self, at: u64) {
        io::Seek::seek(&mut self.open().unwrap().file, io::SeekFrom::Start(at)).unwrap();
    }

    fn error(&self, source: io::Error) -> CaptureError {
        CaptureError::Io { path: self.path.clone(), source }
    }

    /// The file, made if it is not there.
    fn open(&mut self) -> io::Result<&mut Open> {
        let Target::File { place, open, replaces } = &mut self.target else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        if open.is_none() {
            let part = replaces.is_some().then(|| beside(place));
            let file = File::options().write(true).create_new(true).open(part.as_ref().unwrap_or(place))?;
            *open = Some(Open { file, part, kept: false });
        }
        open.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Drop for Open {
    /// A part that never became whole goes; a file under its own name stays as far as it came.
    fn drop(&mut self) {
        if let Some(part) = &self.part
            && !self.kept
        {
            let _ = fs::remove_file(part);
        }
    }
}

/// A name beside a file, for what is to replace it.
fn beside(place: &Path) -> PathBuf {
    use std::hash::{BuildHasher, Hasher};
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish() as u32;
    let end = format!(".{random:08x}.part");
    let mut name = place.file_name().map(|n| n.as_bytes().to_vec()).unwrap_or_default();
    name.truncate(MAX_NAME - end.len());
    name.extend_from_slice(end.as_bytes());
    place.with_file_name(std::ffi::OsString::from_vec(name))
}

/// The folder of a file.
fn folder(place: &Path) -> &Path {
    place.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Where a link leads whose end does not exist yet.
fn follow(path: &Path) -> PathBuf {
    let mut place = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(target) = fs::read_link(&place) else { break };
        place = folder(&place).join(target);
    }
    place
}

fn is_stdout(path: &Path) -> bool {
    is_standard(path) || ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|p| path == Path::new(p))
}

/// Whether a path names something that this process has open already, as a process substitution does.
fn is_descriptor(path: &Path) -> bool {
    ["/dev/fd/", "/proc/self/fd/", "/dev/stderr"]
        .iter()
        .any(|p| path.as_os_str().as_encoded_bytes().starts_with(p.as_bytes()))
}

fn standard(fd: std::os::fd::BorrowedFd<'_>) -> Option<Metadata> {
    File::from(fd.try_clone_to_owned().ok()?).metadata().ok()
}

/// What an input is, by whatever name.
fn identity(path: &Path) -> Option<Metadata> {
    if is_standard(path) { standard(io::stdin().as_fd()) } else { fs::metadata(path).ok() }
}

/// Whether both are one: a file, a disk or a pipe. Two ends of a terminal or of /dev/null do not harm each other.
pub fn same(a: &Metadata, b: &Metadata) -> bool {
    let disk = a.file_type().is_block_device();
    (a.is_file() || disk || a.file_type().is_fifo()) && (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// What a file holds, by its first bytes or else by its name; None for what is neither.
fn held(path: &Path) -> io::Result<Option<Content>> {
    let mut head = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(File::open(path)?, 16), &mut head)?;
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
    let recording = RECORDINGS.iter().any(|&(at, magic)| head.get(at..).is_some_and(|b| b.starts_with(magic)));
    Ok(if head.starts_with(CODES) {
        Some(Content::Codes)
    } else if recording {
        Some(Content::Recording)
    } else if extension == "utn" {
        Some(Content::Codes)
    } else {
        RECORDING_NAMES.contains(&extension.as_str()).then_some(Content::Recording)
    })
}

/// What a file holds if it is not what is to be written, in words.
///
/// # Errors
/// Those of the system.
pub fn other_content(path: &Path, there: &Metadata, content: Content) -> io::Result<Option<&'static str>> {
    Ok(match held(path)? {
        _ if there.len() == 0 => None,
        Some(held) if held == content => None,
        Some(Content::Codes) => Some("it holds codes"),
        Some(Content::Recording) => Some("it is a recording"),
        None => Some("it is no file of undertone's and no recording"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAV: &[u8] = b"RIFF....WAVEfmt old";
    const UTN: &[u8] = b"UTN\x01 old codes";

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    #[test]
    fn the_input_is_never_the_output_by_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a.wav"), WAV).unwrap();
        fs::hard_link(path("a.wav"), path("hard.wav")).unwrap();
        std::os::unix::fs::symlink("a.wav", path("soft.wav")).unwrap();
        let dotted = dir.path().join("../").join(dir.path().file_name().unwrap()).join("a.wav");
        for output in [path("a.wav"), path("hard.wav"), path("soft.wav"), dotted] {
            for force in [false, true] {
                let e = OutputFile::create(&output, Content::Recording, &[&path("a.wav")], force).unwrap_err();
                assert!(e.to_string().contains("also the input"), "{e}");
            }
        }
        let e = OutputFile::create(&path("a.wav"), Content::Recording, &[&path("soft.wav")], true).unwrap_err();
        assert!(e.to_string().contains("also the input"), "{e}");
        assert_eq!(fs::read(path("a.wav")).unwrap(), WAV);
    }

    #[test]
    fn a_file_that_is_there_is_replaced_only_by_a_whole_one_of_its_kind() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (name, held, content, allowed) in [
            ("a.wav", WAV, Content::Recording, true),
            ("a.wav", WAV, Content::Codes, false),
            ("a.utn", UTN, Content::Codes, true),
            ("a.utn", UTN, Content::Recording, false),
            // What it holds counts more than what it is called.
            ("b.utn", WAV, Content::Codes, false),
            ("b.wav", UTN, Content::Recording, false),
            ("c.wav", b"damaged", Content::Recording, true),
            ("c.raw", b"\0\0\0\0", Content::Codes, false),
            ("c.utn", b"damaged", Content::Codes, true),
            ("notes.txt", b"dear diary", Content::Codes, false),
            ("empty", b"", Content::Codes, true),
        ] {
            fs::write(path(name), held).unwrap();
            let made = OutputFile::create(&path(name), content, &[], false);
            assert_eq!(made.is_ok(), allowed, "{name} {content:?}");
            if let Err(e) = made {
                assert!(e.to_string().contains("--force"), "{e}");
            }
            let mut out = OutputFile::create(&path(name), content, &[], true).unwrap();
            out.write(b"half").unwrap();
            assert_eq!(fs::read(path(name)).unwrap(), held, "not before it is whole");
            drop(out);
            assert_eq!((fs::read(path(name)).unwrap(), names(dir.path()).len()), (held.to_vec(), 1));
            let mut out = OutputFile::create(&path(name), content, &[], true).unwrap();
            out.write(b"who").unwrap();
            out.write(b"le!").unwrap();
            out.write_again(2, b"O").unwrap();
            out.finish().unwrap();
            assert_eq!((fs::read(path(name)).unwrap(), names(dir.path()).len()), (b"whOle!".to_vec(), 1));
            fs::remove_file(path(name)).unwrap();
        }
    }

    #[test]
    fn a_new_file_is_written_in_place_and_a_failure_before_the_first_byte_leaves_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new.utn");
        let mut out = OutputFile::create(&path, Content::Codes, &[], false).unwrap();
        assert!(!path.exists());
        out.write(b"first").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first", "a kill here loses nothing");
        drop(out);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        drop(OutputFile::create(&dir.path().join("none"), Content::Codes, &[], false).unwrap());
        assert_eq!(names(dir.path()), ["new.utn"]);
        let e = OutputFile::create(&dir.path().join("no/where"), Content::Codes, &[], false).unwrap_err();
        assert!(e.to_string().contains("no folder"), "{e}");
    }

    #[test]
    fn links_are_followed_and_permissions_stay() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("real.utn"), UTN).unwrap();
        fs::set_permissions(path("real.utn"), fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("real.utn", path("link.utn")).unwrap();
        std::os::unix::fs::symlink("later.utn", path("dangling.utn")).unwrap();
        for name in ["link.utn", "dangling.utn"] {
            let mut out = OutputFile::create(&path(name), Content::Codes, &[], false).unwrap();
            out.write(b"UTN new").unwrap();
            out.finish().unwrap();
            assert!(fs::symlink_metadata(path(name)).unwrap().is_symlink(), "{name}");
            assert_eq!(fs::read(path(name)).unwrap(), b"UTN new");
        }
        assert_eq!(fs::metadata(path("real.utn")).unwrap().permissions().mode() & 0o777, 0o640);
        // A name of full length has room for the part's.
        let long = path(&("n".repeat(251) + ".utn"));
        fs::write(&long, UTN).unwrap();
        let mut out = OutputFile::create(&long, Content::Codes, &[], false).unwrap();
        out.write(b"UTN new").unwrap();
        let part = out.set_aside().unwrap().unwrap();
        assert_eq!((fs::read(&long).unwrap(), fs::read(part).unwrap()), (UTN.to_vec(), b"UTN new".to_vec()));
    }
}
