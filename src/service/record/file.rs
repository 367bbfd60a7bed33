//! Recordings on the disk: one rotating file a stream. Everything here blocks.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tracing::{info, warn};

use super::error::RecordError;
use super::folder::Disk;
use crate::bitstream::{ContainerWriter, StreamHeader};
use crate::codec::Profile;
use crate::config::Fsync;
use crate::session::{PackedBundle, StreamName};

/// A file on the disk.
struct Out {
    file: File,
    path: PathBuf,
    bytes: u64,
    /// When the oldest bytes that were not forced to the disk were written.
    dirty: Option<Instant>,
    /// Whether its name was forced to the disk.
    named: bool,
}

impl Out {
    /// Gives bytes to the system, all or none of them.
    fn write(&mut self, bytes: &[u8], disk: &Disk) -> Result<(), RecordError> {
        let length = bytes.len() as u64;
        disk.reserve(&self.path, length)?;
        if let Err(e) = self.file.write_all(bytes) {
            self.cut();
            return Err(RecordError::Io(self.path.clone(), e));
        }
        self.bytes += length;
        self.dirty.get_or_insert_with(Instant::now);
        disk.counts.bytes.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// Forces what was written to the disk, and the first time its name.
    fn sync(&mut self, disk: &Disk) -> Result<(), RecordError> {
        self.file.sync_data().map_err(|e| RecordError::Io(self.path.clone(), e))?;
        if !self.named {
            disk.sync_names()?;
        }
        (self.named, self.dirty) = (true, None);
        Ok(())
    }

    /// Takes back what a failed write left: the file ends with a whole bundle again, and a full disk gets its room back.
    fn cut(&self) {
        if let Err(e) = self.file.set_len(self.bytes) {
            warn!(file = %self.path.display(), error = %e, "a partly done write cannot be cut off");
        }
    }
}

/// The file that is being written.
struct Open {
    out: Out,
    writer: ContainerWriter,
    /// Frame of the stream that is the file's first.
    base: u64,
    /// The frame after the last one.
    next: u64,
    began: Instant,
}

/// The recording of one stream.
pub(super) struct Recording {
    disk: Arc<Disk>,
    stream: StreamName,
    profile: Arc<Profile>,
    open: Option<Open>,
    /// Not given to the system yet.
    bytes: Vec<u8>,
}

impl Recording {
    pub(super) fn new(disk: Arc<Disk>, stream: StreamName, profile: Arc<Profile>) -> Self {
        Self { disk, stream, profile, open: None, bytes: Vec::new() }
    }

    /// Whether the next write begins a file.
    pub(super) fn is_closed(&self) -> bool {
        self.open.is_none()
    }

    /// When the oldest bytes that were not forced to the disk were written; None if all were, or there are none.
    pub(super) fn dirty(&self) -> Option<Instant> {
        self.open.as_ref().and_then(|o| o.out.dirty)
    }

    /// Writes bundles, which leave the queue once the system has them; forces what is due to the disk. After an error the
    /// file is closed, and what is left in the queue can be tried again.
    pub(super) fn write(&mut self, bundles: &mut VecDeque<Arc<PackedBundle>>) -> Result<(), RecordError> {
        let result = self.put_all(bundles);
        if result.is_err() {
            // What cannot be written cannot be ended properly either: the file is as after a crash, and valid.
            self.bytes.clear();
            self.abandon();
        }
        result
    }

    fn put_all(&mut self, bundles: &mut VecDeque<Arc<PackedBundle>>) -> Result<(), RecordError> {
        let mut put = 0;
        while let Some(bundle) = bundles.get(put).cloned() {
            if self.is_over(&bundle) {
                self.flush()?;
                bundles.drain(..std::mem::take(&mut put));
                self.finish()?;
            }
            let result = self.put(&bundle);
            if matches!(result, Err(RecordError::Bitstream(_))) {
                // It will be no better the next time.
                bundles.remove(put);
            }
            result?;
            put += 1;
        }
        self.flush()?;
        bundles.drain(..put);
        self.sync_if_due()
    }

    /// Whether a bundle belongs into a new file.
    fn is_over(&self, packed: &PackedBundle) -> bool {
        let (record, waiting) = (&self.disk.record, self.bytes.len() + packed.payload.len());
        self.open.as_ref().is_some_and(|o| {
            // A publisher that went back in time gets a new file, too.
            o.out.bytes + waiting as u64 >= record.rotate_bytes
                || o.began.elapsed() >= record.rotate_after
                || packed.first_frame < o.next
        })
    }

    fn put(&mut self, packed: &PackedBundle) -> Result<(), RecordError> {
        let mut bundle = packed.unpack()?;
        let open = match &mut self.open {
            Some(open) => open,
            none => {
                let (file, path) = self.disk.open(&self.stream)?;
                self.disk.counts.files.fetch_add(1, Ordering::Relaxed);
                let mut header = StreamHeader::packed(&self.profile, bundle.stages, bundle.frames);
                header.live = true;
                // The bundle ends about now; it began earlier by its length.
                let length = self.profile.media_time(bundle.frames);
                let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(length);
                header.start_time_us = u64::try_from(began.as_micros()).ok();
                let writer = ContainerWriter::new(header, &mut self.bytes);
                let base = bundle.first_frame;
                let out = Out { file, path, bytes: 0, dirty: None, named: false };
                none.insert(Open { out, writer, base, next: base, began: Instant::now() })
            }
        };
        open.next = packed.first_frame.saturating_add(u64::from(packed.frames));
        bundle.first_frame -= open.base;
        if packed.is_background() {
            let first_frame = bundle.first_frame;
            return Ok(open
                .writer
                .write_background(&PackedBundle { first_frame, ..packed.clone() }, &mut self.bytes)?);
        }
        Ok(open.writer.write(&bundle, &mut self.bytes)?)
    }

    /// Gives what is collected to the system, in one write.
    fn flush(&mut self) -> Result<(), RecordError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if !self.bytes.is_empty() {
            open.out.write(&self.bytes, &self.disk)?;
            self.bytes.clear();
        }
        Ok(())
    }

    fn sync_if_due(&mut self) -> Result<(), RecordError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let due = open.out.dirty.is_some_and(|dirty| match self.disk.record.fsync {
            Fsync::Never => false,
            Fsync::Bundle => true,
            Fsync::Every(time) => dirty.elapsed() >= time,
        });
        if due { open.out.sync(&self.disk) } else { Ok(()) }
    }

    /// Ends the file; the next bundle begins another.
    pub(super) fn finish(&mut self) -> Result<(), RecordError> {
        self.flush()?;
        let Some(Open { mut out, writer, .. }) = self.open.take() else { return Ok(()) };
        let mut end = Vec::new();
        writer.finish(None, &mut end);
        let mut result = out.write(&end, &self.disk);
        if result.is_ok() && self.disk.record.fsync != Fsync::Never {
            result = out.sync(&self.disk);
        }
        self.disk.close(&out.path, out.bytes);
        info!(file = %out.path.display(), bytes = out.bytes, "recording finished");
        result
    }

    /// Leaves the file as it is.
    fn abandon(&mut self) {
        if let Some(Open { out, .. }) = self.open.take() {
            self.disk.close(&out.path, out.bytes);
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.abandon();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
    use std::time::Duration;

    use super::super::name::started;
    use super::*;
    use crate::bitstream::{Bundle, ContainerReader, Item, ReaderOptions};
    use crate::config::Config;
    use crate::units::StageCount;

    fn bundle(number: u64) -> Arc<PackedBundle> {
        let bundle = Bundle::new(1_000 + number * 5, 5, StageCount::new(16).unwrap(), vec![7; 80]).unwrap();
        Arc::new(PackedBundle::pack(&bundle))
    }

    /// A disk in a folder of its own, with these keys of `[record]`.
    fn disk(keys: &str) -> (tempfile::TempDir, Arc<Disk>) {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("[record]\nfolder = \"{}\"\n{keys}", dir.path().display());
        let disk = Arc::new(Disk::new(Config::parse(&text).unwrap().record.unwrap(), Arc::default()));
        disk.read().unwrap();
        (dir, disk)
    }

    fn recording(disk: &Arc<Disk>, name: &str) -> Recording {
        let profile = Arc::new(crate::fake::processor(16, 7).profile().as_ref().clone());
        Recording::new(Arc::clone(disk), StreamName::new(name).unwrap(), profile)
    }

    fn write(recording: &mut Recording, number: u64) -> Result<(), RecordError> {
        recording.write(&mut VecDeque::from([bundle(number)]))
    }

    /// What all recordings take on the disk.
    fn taken(dir: &Path) -> u64 {
        let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
        files
            .filter(|p| started(p.file_name().unwrap().to_str().unwrap()).is_some())
            .map(|p| p.metadata().unwrap().blocks() * 512)
            .sum()
    }

    #[test]
    fn files_rotate_and_the_oldest_finished_ones_make_room() {
        let (dir, _) = disk("");
        let mine = dir.path().join("mine.utn");
        std::fs::write(&mine, vec![0; 100_000]).unwrap();
        let left = dir.path().join("old-20200101T000000000Z.utn");
        std::fs::write(&left, vec![1; 30_000]).unwrap();
        let text = format!("[record]\nfolder = \"{}\"\nrotate_mb = 0.01\ndisk_mb = 0.06", dir.path().display());
        let disk = Arc::new(Disk::new(Config::parse(&text).unwrap().record.unwrap(), Arc::default()));
        disk.read().unwrap();
        let mut recording = recording(&disk, "a");
        for n in 0..1_000 {
            write(&mut recording, n).unwrap();
            assert!(disk.used() <= 60_000);
        }
        recording.finish().unwrap();
        assert!(mine.exists() && !left.exists());
        assert!(taken(dir.path()) <= 60_000 && taken(dir.path()) > 30_000, "{}", taken(dir.path()));
        let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        names.retain(|p| *p != mine);
        names.sort();
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
    fn a_new_file_does_not_look_at_the_folder_and_small_files_count_as_what_they_take() {
        let (dir, disk) = disk("disk_mb = 1\nrotate_mb = 1\nfsync = \"never\"");
        // Were the folder looked at, these would be seen.
        for n in 0..50 {
            std::fs::write(dir.path().join(format!("x-20200101T0000000{n:02}Z.utn")), vec![1; 100]).unwrap();
        }
        for n in 0..400 {
            let mut short = recording(&disk, &format!("short.{n}"));
            write(&mut short, 0).unwrap();
            short.finish().unwrap();
            assert!(disk.used() <= 1_000_000);
        }
        let held = disk.used();
        // Some hundred bytes each: only blocks fill a megabyte.
        assert!(held > 900_000, "{held}");
        disk.read().unwrap();
        let now = taken(dir.path());
        assert_eq!(disk.used(), now);
        assert!(now > held && disk.counts.deleted.load(Ordering::Relaxed) > 100);
    }

    #[test]
    fn an_empty_file_that_a_crash_left_is_deleted_and_other_files_are_not() {
        let (dir, disk) = disk("");
        let touch = |name: &str, age_s: u64| {
            let path = dir.path().join(name);
            let file = File::create(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age_s)).unwrap();
            path
        };
        let left = touch("a-20200101T000000000Z.utn", 3_600);
        let others = [touch("a-20200101T000000001Z.utn", 1), touch("mine.utn", 3_600)];
        disk.read().unwrap();
        assert!(!left.exists() && others.iter().all(|p| p.exists()));
    }

    #[test]
    fn what_is_reserved_but_not_written_counts_after_the_folder_was_read() {
        let (_dir, disk) = disk("rotate_mb = 0.1\ndisk_mb = 0.1");
        let (_file, first) = disk.open(&StreamName::new("a").unwrap()).unwrap();
        disk.reserve(&first, 90_000).unwrap();
        disk.read().unwrap();
        let (_file, second) = disk.open(&StreamName::new("b").unwrap()).unwrap();
        assert!(matches!(disk.reserve(&second, 20_000), Err(RecordError::Full)));
        // It failed and was cut back: the room is free again, and no empty file is left.
        disk.close(&first, 0);
        assert!(!first.exists());
        disk.reserve(&second, 95_000).unwrap();
    }

    #[test]
    fn a_file_says_when_it_began_and_a_failed_write_is_taken_back_and_can_be_tried_again() {
        let (_dir, disk) = disk("fsync = \"never\"");
        let mut recording = recording(&disk, "a");
        write(&mut recording, 0).unwrap();
        assert!(recording.dirty().is_some());
        let open = recording.open.as_mut().unwrap();
        let (path, whole) = (open.out.path.clone(), open.out.bytes);
        // A write that was done in part, and then the disk was full.
        open.out.file.write_all(&[1, 2, 3]).unwrap();
        open.out.cut();
        assert_eq!(path.metadata().unwrap().len(), whole);
        open.out.file = File::open(&path).unwrap();
        let mut queue = VecDeque::from([bundle(1), bundle(2)]);
        assert!(recording.write(&mut queue).is_err() && recording.dirty().is_none());
        assert_eq!(queue.len(), 2);
        let mut reader = ContainerReader::new(ReaderOptions::default());
        reader.push(&std::fs::read(&path).unwrap());
        let Some(Item::Header(header)) = reader.next().unwrap() else { panic!("a header") };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
        assert!(header.start_time_us.is_some_and(|t| t < now && t > now - 600_000_000));
        recording.write(&mut queue).unwrap();
        assert!(queue.is_empty());
    }

    #[test]
    fn a_disk_without_room_leaves_no_empty_file() {
        let (dir, disk) = disk("rotate_mb = 0.0001\ndisk_mb = 0.0001");
        let mut queue = VecDeque::from([bundle(0)]);
        let mut recording = recording(&disk, "a");
        assert!(matches!(recording.write(&mut queue), Err(RecordError::Full)));
        assert_eq!((queue.len(), std::fs::read_dir(dir.path()).unwrap().count()), (1, 0));
        // As the system says it: the device of which every write finds no room.
        let full = Path::new("/dev/full");
        if full.exists() {
            let file = std::fs::OpenOptions::new().write(true).open(full).unwrap();
            let (dir, disk) = self::disk("");
            let mut recording = self::recording(&disk, "a");
            write(&mut recording, 0).unwrap();
            recording.open.as_mut().unwrap().out.file = file;
            let error = recording.write(&mut VecDeque::from([bundle(1)])).unwrap_err();
            assert!(error.reason().contains("No space left") && !error.reason().contains("/"), "{error}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_limit_that_running_recordings_fill_is_an_error_and_then_ends() {
        let (_dir, disk) = disk("rotate_mb = 0.02\ndisk_mb = 0.02");
        let mut both = ["a", "b"].map(|name| recording(&disk, name));
        let failed = (0..400).find_map(|n| both.iter_mut().position(|r| write(r, n).is_err()));
        let failed = failed.expect("both do not fit");
        // The file that failed is finished and may be deleted.
        write(&mut both[1 - failed], 500).unwrap();
    }
}
