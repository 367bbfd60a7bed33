//! The folder of the recordings: what is in it, what may still be written, and whether it can be used at all. The folder
//! is read once when the daemon starts and now and then, never while a stream waits for its file. Everything here blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tracing::{info, warn};

use super::counters::Recorded;
use super::error::RecordError;
use super::name::{started, utc};
use crate::config::{Fsync, Record};
use crate::session::StreamName;

/// The system counts what files take in units of so many bytes, whatever the disk's blocks are.
const SECTOR: u64 = 512;

/// What a file takes at least, if the disk does not say.
const USUAL_BLOCK: u64 = 4_096;

/// How often the folder is read again: files may have been taken away or put there.
const READ_AGAIN: Duration = Duration::from_secs(600);

/// A recording without a byte that is older than this was left behind by a crash.
const LEFT_BEHIND: Duration = Duration::from_secs(60);

/// What all recordings share.
pub(super) struct Disk {
    pub(super) record: Record,
    pub(super) counts: Arc<Recorded>,
    files: Mutex<Files>,
}

#[derive(Default)]
struct Files {
    /// Bytes that finished recordings take on the disk.
    finished_bytes: u64,
    /// Start, path and bytes of those that are finished: the first is the oldest.
    finished: BTreeSet<(String, PathBuf, u64)>,
    /// Those that run, and the bytes they have or are about to have.
    open: BTreeMap<PathBuf, u64>,
    /// Bytes that all of these take.
    open_bytes: u64,
    /// Size of the disk's blocks.
    block: u64,
    /// Finished while the folder was being read, which may have missed them.
    fresh: Vec<(String, PathBuf, u64)>,
    read_at: Option<Instant>,
}

impl Files {
    /// What so many bytes take on the disk.
    fn taken(&self, bytes: u64) -> u64 {
        bytes.next_multiple_of(self.block.max(1))
    }

    fn used(&self) -> u64 {
        self.finished_bytes + self.open_bytes
    }

    fn finish(&mut self, path: &Path, taken: u64) {
        if let Some(started) = path.file_name().and_then(|n| started(n.to_str()?)) {
            let entry = (started.to_owned(), path.to_owned(), taken);
            self.fresh.push(entry.clone());
            if self.finished.insert(entry) {
                self.finished_bytes += taken;
            }
        }
    }
}

impl Disk {
    pub(super) fn new(record: Record, counts: Arc<Recorded>) -> Self {
        let files = Files { block: USUAL_BLOCK, ..Files::default() };
        Self { record, counts, files: Mutex::new(files) }
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the folder has not been read for long.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.lock().read_at.is_none_or(|at| now.saturating_duration_since(at) >= READ_AGAIN)
    }

    /// Reads the folder. Nobody waits for it: until it is done, what was known before holds. Recordings without a byte,
    /// as a crash may leave them, are deleted.
    pub(super) fn read(&self) -> std::io::Result<()> {
        let block = std::fs::metadata(&self.record.folder)?.blksize().max(1);
        let open: BTreeSet<PathBuf> = {
            let mut files = self.lock();
            (files.block, files.read_at) = (block, Some(Instant::now()));
            files.fresh.clear();
            files.open.keys().cloned().collect()
        };
        let (mut finished, mut bytes) = (BTreeSet::new(), 0);
        for entry in std::fs::read_dir(&self.record.folder)? {
            let path = entry?.path();
            let Some(began) = path.file_name().and_then(|n| started(n.to_str()?)) else { continue };
            // Gone since the folder was read.
            let Ok(meta) = path.symlink_metadata() else { continue };
            if open.contains(&path) || !meta.is_file() {
                continue;
            }
            if meta.len() == 0 && meta.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LEFT_BEHIND)) {
                let _ = std::fs::remove_file(&path);
                continue;
            }
            let entry = (began.to_owned(), path, meta.blocks() * SECTOR);
            bytes += entry.2;
            finished.insert(entry);
        }
        let mut files = self.lock();
        // Those that began meanwhile are open, or finished and known.
        finished.retain(|(_, path, taken)| {
            let known = !files.open.contains_key(path) && !files.fresh.iter().any(|(_, p, _)| p == path);
            bytes -= if known { 0 } else { *taken };
            known
        });
        for entry in std::mem::take(&mut files.fresh) {
            bytes += entry.2;
            finished.insert(entry);
        }
        (files.finished, files.finished_bytes) = (finished, bytes);
        Ok(())
    }

    /// Opens a new file; its name says when.
    pub(super) fn open(&self, stream: &StreamName) -> Result<(File, PathBuf), RecordError> {
        let folder = &self.record.folder;
        let mut time = SystemTime::now();
        loop {
            let path = folder.join(format!("{stream}-{}.utn", utc(time)));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    self.lock().open.insert(path.clone(), 0);
                    return Ok((file, path));
                }
                // Two files of a stream within a millisecond.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => time += Duration::from_millis(1),
                // Somebody took the folder away.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound && !folder.exists() => {
                    std::fs::create_dir_all(folder).map_err(|e| RecordError::Io(folder.clone(), e))?;
                }
                Err(e) => return Err(RecordError::Io(path, e)),
            }
        }
    }

    /// Forces the names of new files to the disk: they, too, must survive a power cut.
    pub(super) fn sync_names(&self) -> Result<(), RecordError> {
        let folder = &self.record.folder;
        if self.record.fsync == Fsync::Never {
            return Ok(());
        }
        File::open(folder).and_then(|f| f.sync_all()).map_err(|e| RecordError::Io(folder.clone(), e))
    }

    /// Makes room for bytes that are about to be written to a file.
    pub(super) fn reserve(&self, of: &Path, bytes: u64) -> Result<(), RecordError> {
        loop {
            let oldest = {
                let mut files = self.lock();
                let before = files.open.get(of).copied().unwrap_or(0);
                let more = files.taken(before + bytes) - files.taken(before);
                if files.used() + more <= self.record.disk_bytes {
                    files.open.insert(of.to_owned(), before + bytes);
                    files.open_bytes += more;
                    return Ok(());
                }
                let oldest = files.finished.pop_first().ok_or(RecordError::Full)?;
                files.finished_bytes = files.finished_bytes.saturating_sub(oldest.2);
                oldest
            };
            // Others go on while the disk deletes.
            self.delete(oldest);
        }
    }

    fn delete(&self, (_, path, _): (String, PathBuf, u64)) {
        match std::fs::remove_file(&path) {
            Ok(()) => {
                self.counts.deleted.fetch_add(1, Ordering::Relaxed);
                info!(file = %path.display(), "an old recording was deleted to stay below record.disk_mb");
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            // It still takes its room, and is found again when the folder is read again.
            Err(e) => warn!(file = %path.display(), error = %e, "an old recording cannot be deleted"),
        }
    }

    /// A file ends with this many bytes; without any it is deleted.
    pub(super) fn close(&self, path: &Path, bytes: u64) {
        if bytes == 0
            && let Err(e) = std::fs::remove_file(path)
        {
            warn!(file = %path.display(), error = %e, "an empty recording cannot be deleted");
        }
        let mut files = self.lock();
        let reserved = files.open.remove(path).unwrap_or(0);
        files.open_bytes = files.open_bytes.saturating_sub(files.taken(reserved));
        if bytes > 0 {
            let taken = files.taken(bytes);
            files.finish(path, taken);
        }
    }

    /// Tries whether a recording could be written in the folder, which is there.
    ///
    /// # Errors
    /// The system's reason.
    pub(super) fn probe(folder: &Path) -> std::io::Result<()> {
        let path = folder.join(format!(".undertone-{}", std::process::id()));
        let written = File::create(&path).and_then(|mut f| {
            f.write_all(&[0; USUAL_BLOCK as usize])?;
            // Some disks say only now that they are full.
            f.sync_data()
        });
        let removed = std::fs::remove_file(&path);
        written.and(removed)
    }
}

#[cfg(test)]
impl Disk {
    /// Bytes that all recordings take, as far as is known.
    pub(super) fn used(&self) -> u64 {
        self.lock().used()
    }
}
