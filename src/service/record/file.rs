//! Recordings on the disk: one rotating file a stream, and what all of them may take together. Everything here blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::{info, warn};

use super::counters::Recorded;
use crate::bitstream::{BitstreamError, ContainerWriter, StreamHeader};
use crate::codec::Profile;
use crate::config::{Fsync, Record};
use crate::session::{PackedBundle, StreamName};

/// Ways in which a recording fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("{0}: {1}")]
    Io(PathBuf, std::io::Error),
    #[error(transparent)]
    Bitstream(#[from] BitstreamError),
    #[error("record.disk_mb is taken by recordings that are still running")]
    Full,
}

/// What all recordings share.
pub(super) struct Disk {
    pub(super) record: Record,
    pub(super) counts: Arc<Recorded>,
    files: Mutex<Files>,
}

#[derive(Default)]
struct Files {
    /// Bytes of all recordings in the folder.
    used: u64,
    /// Start, path and bytes of those that are finished: the first is the oldest.
    finished: BTreeSet<(String, PathBuf, u64)>,
    /// Those that run, and the bytes they have or are about to have.
    open: BTreeMap<PathBuf, u64>,
}

impl Disk {
    pub(super) fn new(record: Record, counts: Arc<Recorded>) -> Self {
        Self { record, counts, files: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the folder again: files may have been taken away, or be left from an earlier run.
    fn scan(&self, files: &mut Files) -> std::io::Result<()> {
        (files.used, files.finished) = (0, BTreeSet::new());
        for entry in std::fs::read_dir(&self.record.folder)? {
            let path = entry?.path();
            let Some(started) = path.file_name().and_then(|n| started(n.to_str()?)) else { continue };
            // Gone since the folder was read.
            let Ok(meta) = path.metadata() else { continue };
            if !files.open.contains_key(&path) {
                files.used += meta.len();
                if meta.is_file() {
                    files.finished.insert((started.to_owned(), path, meta.len()));
                }
            }
        }
        files.used += files.open.values().sum::<u64>();
        Ok(())
    }

    /// Opens a new file; its name says when.
    fn open(&self, stream: &StreamName) -> Result<(File, PathBuf), RecordError> {
        let folder = &self.record.folder;
        std::fs::create_dir_all(folder).map_err(|e| RecordError::Io(folder.clone(), e))?;
        let mut files = self.lock();
        self.scan(&mut files).map_err(|e| RecordError::Io(folder.clone(), e))?;
        let mut time = SystemTime::now();
        loop {
            let path = folder.join(format!("{stream}-{}.utn", utc(time)));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    files.open.insert(path.clone(), 0);
                    drop(files);
                    if self.record.fsync != Fsync::Never {
                        // The name of the file, too, must survive a power cut.
                        let sync = File::open(folder).and_then(|f| f.sync_all());
                        sync.map_err(|e| RecordError::Io(folder.clone(), e))?;
                    }
                    return Ok((file, path));
                }
                // Two files of a stream within a millisecond.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => time += Duration::from_millis(1),
                Err(e) => return Err(RecordError::Io(path, e)),
            }
        }
    }

    /// Makes room for bytes that are about to be written to a file.
    fn reserve(&self, of: &Path, bytes: u64) -> Result<(), RecordError> {
        let mut files = self.lock();
        while files.used + bytes > self.record.disk_bytes {
            let Some((_, path, size)) = files.finished.pop_first() else { return Err(RecordError::Full) };
            match std::fs::remove_file(&path) {
                Ok(()) => {
                    self.counts.deleted.fetch_add(1, Ordering::Relaxed);
                    info!(file = %path.display(), "an old recording was deleted to stay below record.disk_mb");
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => {
                    // It still takes its room: look for another one.
                    warn!(file = %path.display(), error = %e, "an old recording cannot be deleted");
                    continue;
                }
            }
            files.used = files.used.saturating_sub(size);
        }
        files.used += bytes;
        if let Some(size) = files.open.get_mut(of) {
            *size += bytes;
        }
        Ok(())
    }

    /// A file ends with this many bytes.
    fn close(&self, path: &Path, bytes: u64) {
        let mut files = self.lock();
        let reserved = files.open.remove(path).unwrap_or(bytes);
        files.used = (files.used + bytes).saturating_sub(reserved);
        if let Some(started) = path.file_name().and_then(|n| started(n.to_str()?)) {
            files.finished.insert((started.to_owned(), path.to_owned(), bytes));
        }
    }
}

/// The file that is being written.
struct Open {
    file: File,
    path: PathBuf,
    writer: ContainerWriter,
    /// Frame of the stream that is the file's first.
    base: u64,
    /// The frame after the last one.
    next: u64,
    bytes: u64,
    began: Instant,
    /// When the oldest bytes that were not forced to the disk were written.
    dirty: Option<Instant>,
}

/// The recording of one stream.
pub(super) struct Recording {
    disk: Arc<Disk>,
    stream: StreamName,
    profile: Arc<Profile>,
    open: Option<Open>,
    bytes: Vec<u8>,
}

impl Recording {
    pub(super) fn new(disk: Arc<Disk>, stream: StreamName, profile: Arc<Profile>) -> Self {
        Self { disk, stream, profile, open: None, bytes: Vec::new() }
    }

    /// Writes bundles; forces what is due to the disk. After an error the file is closed.
    pub(super) fn write(&mut self, bundles: &[Arc<PackedBundle>]) -> Result<(), RecordError> {
        let result = bundles.iter().try_for_each(|b| self.put(b)).and_then(|()| self.flush());
        if result.is_err() {
            // What cannot be written cannot be ended properly either: the file is as after a crash, and valid.
            self.bytes.clear();
            if let Some(open) = self.open.take() {
                cut(&open.file, &open.path, open.bytes);
                self.disk.close(&open.path, open.bytes);
            }
        }
        result
    }

    /// When the oldest bytes that were not forced to the disk were written; None if all were, or there are none.
    pub(super) fn dirty(&self) -> Option<Instant> {
        self.open.as_ref().and_then(|o| o.dirty)
    }

    fn put(&mut self, packed: &PackedBundle) -> Result<(), RecordError> {
        let record = &self.disk.record;
        let next = |o: &Open| {
            let size = o.bytes + (self.bytes.len() + packed.payload.len()) as u64;
            // A publisher that went back in time gets a new file, too.
            size >= record.rotate_bytes || o.began.elapsed() >= record.rotate_after || packed.first_frame < o.next
        };
        if self.open.as_ref().is_some_and(next) {
            self.finish()?;
        }
        let mut bundle = packed.unpack()?;
        let open = match &mut self.open {
            Some(open) => open,
            none => {
                let (file, path) = self.disk.open(&self.stream)?;
                self.disk.counts.files.fetch_add(1, Ordering::Relaxed);
                let mut header = StreamHeader::packed(&self.profile, bundle.stages, bundle.frames);
                // The bundle ends about now; it began earlier by its length.
                let length = self.profile.media_time(bundle.frames);
                let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(length);
                header.start_time_us = u64::try_from(began.as_micros()).ok();
                let writer = ContainerWriter::new(header, &mut self.bytes);
                let base = bundle.first_frame;
                none.insert(Open { file, path, writer, base, next: base, bytes: 0, began: Instant::now(), dirty: None })
            }
        };
        open.next = bundle.first_frame.saturating_add(u64::from(bundle.frames));
        bundle.first_frame -= open.base;
        Ok(open.writer.write(&bundle, &mut self.bytes)?)
    }

    /// Gives what is collected to the system, in one write, and forces it to the disk if that is due.
    fn flush(&mut self) -> Result<(), RecordError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let length = self.bytes.len() as u64;
        if length > 0 {
            self.disk.reserve(&open.path, length)?;
            open.file.write_all(&self.bytes).map_err(|e| RecordError::Io(open.path.clone(), e))?;
            open.bytes += length;
            open.dirty.get_or_insert_with(Instant::now);
            self.disk.counts.bytes.fetch_add(length, Ordering::Relaxed);
            self.bytes.clear();
        }
        let due = open.dirty.is_some_and(|dirty| match self.disk.record.fsync {
            Fsync::Never => false,
            Fsync::Bundle => true,
            Fsync::Every(time) => dirty.elapsed() >= time,
        });
        if due {
            open.file.sync_data().map_err(|e| RecordError::Io(open.path.clone(), e))?;
            open.dirty = None;
        }
        Ok(())
    }

    /// Ends the file; the next bundle begins another.
    pub(super) fn finish(&mut self) -> Result<(), RecordError> {
        self.flush()?;
        let Some(open) = self.open.take() else { return Ok(()) };
        let Open { mut file, path, writer, bytes: before, .. } = open;
        let mut end = Vec::new();
        writer.finish(None, &mut end);
        let bytes = before + end.len() as u64;
        let result = self.disk.reserve(&path, end.len() as u64).and_then(|()| {
            let sync = self.disk.record.fsync != Fsync::Never;
            let ended = file.write_all(&end).and_then(|()| if sync { file.sync_data() } else { Ok(()) });
            ended.map_err(|e| RecordError::Io(path.clone(), e))
        });
        let bytes = if result.is_ok() { bytes } else { before };
        if result.is_err() {
            cut(&file, &path, before);
        }
        self.disk.close(&path, bytes);
        info!(file = %path.display(), bytes, "recording finished");
        result
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            self.disk.close(&open.path, open.bytes);
        }
    }
}

/// Takes back what a failed write left: the file ends with a whole bundle again, and a full disk gets its room back.
fn cut(file: &File, path: &Path, bytes: u64) {
    if let Err(e) = file.set_len(bytes) {
        warn!(file = %path.display(), error = %e, "a partly done write cannot be cut off");
    }
}

/// The start time in the name of a recording; None for any other file.
fn started(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(".utn")?;
    let at = stem.len().checked_sub(19)?;
    let (stream, time) = (stem.get(..at)?.strip_suffix('-')?, stem.get(at..)?);
    let digits = |range: std::ops::Range<usize>| time.as_bytes()[range].iter().all(u8::is_ascii_digit);
    let well = digits(0..8) && digits(9..18) && time.as_bytes()[8] == b'T' && time.ends_with('Z');
    (well && StreamName::new(stream).is_ok()).then_some(time)
}

/// `20261124T093000123Z`: sorts like time.
fn utc(time: SystemTime) -> String {
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
    use super::*;
    use crate::bitstream::{Bundle, ContainerReader, Item, ReaderOptions};
    use crate::config::Config;
    use crate::units::StageCount;

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

    fn bundle(number: u64) -> Arc<PackedBundle> {
        let bundle = Bundle::new(1_000 + number * 5, 5, StageCount::new(16).unwrap(), vec![7; 80]).unwrap();
        Arc::new(PackedBundle::pack(&bundle))
    }

    #[test]
    fn files_rotate_and_the_oldest_finished_ones_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("[record]\nfolder = \"{}\"\nrotate_mb = 0.01\ndisk_mb = 0.035", dir.path().display());
        let record = Config::parse(&text).unwrap().record.unwrap();
        let mine = dir.path().join("mine.utn");
        std::fs::write(&mine, vec![0; 100_000]).unwrap();
        let left = dir.path().join("old-20200101T000000000Z.utn");
        std::fs::write(&left, vec![0; 30_000]).unwrap();
        let disk = Arc::new(Disk::new(record, Arc::default()));
        let profile = Arc::new(crate::fake::processor(16, 7).profile().as_ref().clone());
        let mut recording = Recording::new(Arc::clone(&disk), StreamName::new("a").unwrap(), profile);
        (0..1_000).for_each(|n| recording.write(&[bundle(n)]).unwrap());
        recording.finish().unwrap();
        assert!(mine.exists() && !left.exists());
        let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        names.retain(|p| *p != mine);
        names.sort();
        let total: u64 = names.iter().map(|p| p.metadata().unwrap().len()).sum();
        assert!(total <= 35_000 && total > 20_000, "{total}");
        for path in &names {
            let mut reader = ContainerReader::new(ReaderOptions::default());
            reader.push(&std::fs::read(path).unwrap());
            let items: Vec<_> = std::iter::from_fn(|| reader.next().unwrap()).collect();
            assert!(matches!(items.last(), Some(Item::End { .. })));
            let mut next = 0;
            for item in &items {
                if let Item::Bundle(b) = item {
                    assert_eq!(b.first_frame, next);
                    next += 5;
                }
            }
            assert!(next > 0);
        }
    }

    #[test]
    fn what_is_reserved_but_not_written_counts_after_another_file_begins() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("[record]\nfolder = \"{}\"\nrotate_mb = 0.01\ndisk_mb = 0.01", dir.path().display());
        let disk = Disk::new(Config::parse(&text).unwrap().record.unwrap(), Arc::default());
        let (_file, first) = disk.open(&StreamName::new("a").unwrap()).unwrap();
        disk.reserve(&first, 9_000).unwrap();
        // Opening another file looks at the folder again, where the first one is still empty.
        let (_file, second) = disk.open(&StreamName::new("b").unwrap()).unwrap();
        assert!(matches!(disk.reserve(&second, 2_000), Err(RecordError::Full)));
        // It failed and was cut back: the room is free again.
        disk.close(&first, 0);
        disk.reserve(&second, 9_500).unwrap();
    }

    #[test]
    fn a_file_says_when_it_began_and_a_failed_write_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("[record]\nfolder = \"{}\"\nfsync = \"never\"", dir.path().display());
        let disk = Arc::new(Disk::new(Config::parse(&text).unwrap().record.unwrap(), Arc::default()));
        let profile = Arc::new(crate::fake::processor(16, 7).profile().as_ref().clone());
        let mut recording = Recording::new(disk, StreamName::new("a").unwrap(), profile);
        recording.write(&[bundle(0)]).unwrap();
        assert!(recording.dirty().is_some());
        let open = recording.open.as_mut().unwrap();
        let (path, whole) = (open.path.clone(), open.bytes);
        // A write that was done in part, and then the disk was full.
        open.file.write_all(&[1, 2, 3]).unwrap();
        open.file = File::open(&path).unwrap();
        cut(&OpenOptions::new().write(true).open(&path).unwrap(), &path, whole);
        assert_eq!(path.metadata().unwrap().len(), whole);
        assert!(recording.write(&[bundle(1)]).is_err() && recording.dirty().is_none());
        let mut reader = ContainerReader::new(ReaderOptions::default());
        reader.push(&std::fs::read(&path).unwrap());
        let Some(Item::Header(header)) = reader.next().unwrap() else { panic!("a header") };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
        assert!(header.start_time_us.is_some_and(|t| t < now && t > now - 600_000_000));
    }

    #[test]
    fn a_limit_that_running_recordings_fill_is_an_error_and_then_ends() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("[record]\nfolder = \"{}\"\nrotate_mb = 0.01\ndisk_mb = 0.01", dir.path().display());
        let disk = Arc::new(Disk::new(Config::parse(&text).unwrap().record.unwrap(), Arc::default()));
        let profile = Arc::new(crate::fake::processor(16, 7).profile().as_ref().clone());
        let mut both = ["a", "b"]
            .map(|name| Recording::new(Arc::clone(&disk), StreamName::new(name).unwrap(), Arc::clone(&profile)));
        let failed = (0..200).find_map(|n| both.iter_mut().position(|r| r.write(&[bundle(n)]).is_err()));
        let failed = failed.expect("both do not fit");
        // The file that failed is finished and may be deleted.
        both[1 - failed].write(&[bundle(500)]).unwrap();
    }
}
