//! Bytes of a file or pipe with a look ahead, and pipes whose reading can be ended.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// Most bytes taken from a file or pipe at a time.
const CHUNK: usize = 16 << 10;

/// Pieces that a pipe's thread reads ahead.
const PIECES: usize = 2;

/// How often a wait for a pipe looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// What a pipe still holds when it is to end is taken, until it pauses for [`LOOK`] or for so long.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Whether this path is the standard input or output.
pub fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// Whether reading this path waits for somebody to write: the standard input, a pipe, a device.
pub fn is_stream(path: &Path) -> bool {
    is_standard(path) || std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir())
}

/// Opens a file or pipe for reading. With `stop`, bytes of a pipe end soon after it turns true, as if the writer had closed it.
///
/// # Errors
/// Those of the system.
pub fn open(path: &Path, stop: Option<&Arc<AtomicBool>>) -> io::Result<Box<dyn Read + Send + Sync>> {
    if let Some(stop) = stop
        && is_stream(path)
    {
        return Ok(Box::new(Pipe::read(path.to_owned(), Arc::clone(stop))?));
    }
    if is_standard(path) {
        return Ok(Box::new(io::stdin()));
    }
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "is a directory"));
    }
    Ok(Box::new(file))
}

/// A pipe that a thread reads, so that waiting for it can be ended.
struct Pipe {
    pieces: std::sync::Mutex<Receiver<io::Result<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    stopped: Option<Instant>,
    piece: Vec<u8>,
    at: usize,
}

impl Pipe {
    fn read(path: PathBuf, stop: Arc<AtomicBool>) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(PIECES);
        // Opening a named pipe waits for its writer, so that this is the thread's work too.
        std::thread::Builder::new().name("pipe".to_owned()).spawn(move || {
            let opened: io::Result<Box<dyn Read>> = match is_standard(&path) {
                true => Ok(Box::new(io::stdin())),
                false => File::open(&path).map(|f| Box::new(f) as Box<dyn Read>),
            };
            let mut from = match opened {
                Ok(from) => from,
                Err(e) => return drop(sender.send(Err(e))),
            };
            let mut chunk = vec![0; CHUNK];
            loop {
                let piece = match from.read(&mut chunk) {
                    Ok(0) => return,
                    Ok(n) => Ok(chunk[..n].to_vec()),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) => Err(e),
                };
                let failed = piece.is_err();
                if sender.send(piece).is_err() || failed {
                    return;
                }
            }
        })?;
        Ok(Self { pieces: receiver.into(), stop, stopped: None, piece: Vec::new(), at: 0 })
    }

    /// The next piece; None at the end.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let pieces = self.pieces.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        loop {
            if self.stop.load(Ordering::Relaxed) && self.stopped.get_or_insert_with(Instant::now).elapsed() > LAST_WORDS
            {
                return Ok(None);
            }
            match pieces.recv_timeout(LOOK) {
                Ok(piece) => return piece.map(Some),
                Err(RecvTimeoutError::Timeout) if self.stopped.is_none() => {}
                Err(_) => return Ok(None),
            }
        }
    }
}

impl Read for Pipe {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            self.at = 0;
            self.piece = self.next()?.unwrap_or_default();
        }
        let n = (&self.piece[self.at..]).read(out)?;
        self.at += n;
        Ok(n)
    }
}

/// Bytes with a look ahead.
pub(super) struct Bytes {
    from: Box<dyn Read + Send + Sync>,
    buffer: Vec<u8>,
    at: usize,
    ended: bool,
    /// Of the next byte.
    position: u64,
    /// Of a regular file.
    length: Option<u64>,
}

impl Bytes {
    pub(super) fn new(from: Box<dyn Read + Send + Sync>, length: Option<u64>) -> Self {
        Self { from, buffer: Vec::new(), at: 0, ended: false, position: 0, length }
    }

    /// Ends the bytes where a file is `behind` bytes longer than its sound.
    pub(super) fn leave_out(self, behind: u64) -> Self {
        let Some(length) = self.length else { return self };
        let position = self.position;
        let length = length.saturating_sub(behind);
        let left = length.saturating_sub(position);
        let bytes: Box<dyn Read + Send + Sync> = Box::new(self);
        Self { position, ..Self::new(Box::new(bytes.take(left)), Some(length)) }
    }

    /// Bytes from here to the end of a regular file.
    pub(super) fn left(&self) -> Option<u64> {
        self.length.map(|length| length.saturating_sub(self.position))
    }

    /// The next `n` bytes, fewer only at the end.
    pub(super) fn peek(&mut self, n: usize) -> io::Result<&[u8]> {
        if self.buffer.len() - self.at < n && !self.ended {
            self.buffer.drain(..self.at);
            self.at = 0;
            while self.buffer.len() < n && !self.ended {
                self.fill()?;
            }
        }
        let end = self.buffer.len().min(self.at + n);
        Ok(&self.buffer[self.at..end])
    }

    fn fill(&mut self) -> io::Result<()> {
        let start = self.buffer.len();
        self.buffer.resize(start + CHUNK, 0);
        let read = loop {
            match self.from.read(&mut self.buffer[start..]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(start + *read.as_ref().unwrap_or(&0));
        self.ended |= read? == 0;
        Ok(())
    }

    /// Passes over bytes; says how many there were.
    pub(super) fn skip(&mut self, n: u64) -> io::Result<u64> {
        let mut left = n;
        while left > 0 {
            let there = self.peek(1)?.len();
            if there == 0 {
                break;
            }
            let step = (self.buffer.len() - self.at).min(usize::try_from(left).unwrap_or(usize::MAX));
            self.consume(step);
            left -= step as u64;
        }
        Ok(n - left)
    }

    /// Passes over bytes that were looked at.
    pub(super) fn consume(&mut self, n: usize) {
        let n = n.min(self.buffer.len() - self.at);
        self.at += n;
        self.position += n as u64;
    }

    /// The next `n` bytes; None if the end comes first.
    pub(super) fn exact(&mut self, n: usize) -> io::Result<Option<Vec<u8>>> {
        let bytes = self.peek(n)?;
        let bytes = (bytes.len() == n).then(|| bytes.to_vec());
        if bytes.is_some() {
            self.consume(n);
        }
        Ok(bytes)
    }
}

impl Read for Bytes {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.peek(1)?;
        let n = (&self.buffer[self.at..]).read(out)?;
        self.consume(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(content: &'static [u8]) -> Bytes {
        Bytes::new(Box::new(content), Some(content.len() as u64))
    }

    #[test]
    fn looking_ahead_takes_nothing() {
        let mut b = bytes(b"abcdefgh");
        assert_eq!((b.peek(3).unwrap().to_vec(), b.left()), (b"abc".to_vec(), Some(8)));
        assert_eq!(b.exact(2).unwrap().unwrap(), b"ab");
        assert_eq!(b.skip(3).unwrap(), 3);
        assert_eq!((b.peek(99).unwrap().to_vec(), b.left()), (b"fgh".to_vec(), Some(3)));
        assert!(b.exact(4).unwrap().is_none());
        let mut rest = String::new();
        b.read_to_string(&mut rest).unwrap();
        assert_eq!((rest.as_str(), b.skip(1).unwrap()), ("fgh", 0));
    }

    #[test]
    fn what_lies_behind_the_sound_can_be_left_out() {
        let mut b = bytes(b"head sound tag");
        b.skip(5).unwrap();
        let mut b = b.leave_out(4);
        let mut rest = String::new();
        assert_eq!(b.left(), Some(5));
        b.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "sound");
    }

    #[test]
    fn a_pipe_that_is_to_end_gives_what_it_holds_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let stop = Arc::new(AtomicBool::new(false));
        let mut pipe = open(&path, Some(&stop)).unwrap();
        // The writer stays: without the flag this would wait for ever.
        let mut writer = File::options().write(true).open(&path).unwrap();
        io::Write::write_all(&mut writer, b"held").unwrap();
        stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        pipe.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"held");
        // And so does one that nobody ever opens for writing.
        let path = dir.path().join("silent");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert_eq!(open(&path, Some(&stop)).unwrap().read(&mut [0; 8]).unwrap(), 0);
    }
}
