//! Samples of any chunking -> frames -> jobs -> bundles.

use std::sync::Arc;

use super::{Activity, Bucket, BundleGrading, CodecError, EncodeJob, Grading, Sent, Silencer, Work, level_db};
use crate::bitstream::{Bundle, PackedBundle};
use crate::dsp::usable;
use crate::profile::Profile;
use crate::units::StageCount;

/// What decides which bundles are silence.
#[derive(Debug, Default)]
struct Silence {
    activity: Activity,
    silencer: Silencer,
    /// Whether a frame of the bundle that is being made is more than background, and the level of each.
    active: bool,
    levels: Vec<f32>,
}

impl Silence {
    fn hear(&mut self, pcm: &[f32], frame_samples: usize, begins: bool) {
        if begins {
            self.active = false;
            self.levels.clear();
        }
        for frame in pcm.chunks_exact(frame_samples) {
            self.active |= self.activity.push(frame);
            self.levels.push(level_db(frame));
        }
    }
}

/// One stream's encoder.
#[derive(Debug)]
pub struct Encoder {
    profile: Arc<Profile>,
    stages: StageCount,
    frames_per_bundle: u8,
    /// From the next bundle on.
    next_frames_per_bundle: u8,
    job_frames: usize,
    pending: Vec<f32>,
    read: usize,
    samples_in: u64,
    next_frame: u64,
    /// The one job of this stream, while nobody else has it.
    idle: Option<EncodeJob>,
    open: Bundle,
    full: bool,
    finished: bool,
    /// None: every frame has the same number of stages.
    grading: Option<Grading>,
    last_depth: Option<u8>,
    bundle_grading: Option<BundleGrading>,
    /// Whether `bundle_grading` gives frames stages of their own.
    by_frame: bool,
    /// Finds silence; None: everything is sent.
    silence: Option<Box<Silence>>,
    /// Latents of frames to come, and how many values of them were read. None: jobs make them.
    latents: Option<(Vec<f32>, usize)>,
}

impl Encoder {
    /// A stream that starts at frame 0.
    ///
    /// # Errors
    /// [`CodecError::FramesPerBundle`] unless 1 to 50, [`CodecError::Stages`] if the model has fewer.
    pub fn new(profile: Arc<Profile>, stages: StageCount, frames_per_bundle: u8) -> Result<Self, CodecError> {
        if !(1..=Profile::MAX_FRAMES_PER_BUNDLE).contains(&frames_per_bundle) {
            return Err(CodecError::FramesPerBundle(frames_per_bundle));
        }
        if stages > profile.stages {
            return Err(CodecError::Stages {
                got: stages.value(),
                max: profile.stages.value(),
                model: profile.model_id,
            });
        }
        let idle = EncodeJob {
            frames: 0,
            stages,
            depths: Vec::new(),
            first_frame: 0,
            pcm: Vec::new(),
            state: vec![0.0; profile.encoder_state],
            work: Work::All,
            latents: Vec::new(),
            codes: Vec::new(),
        };
        Ok(Self {
            profile,
            stages,
            frames_per_bundle,
            next_frames_per_bundle: frames_per_bundle,
            job_frames: 1,
            pending: Vec::new(),
            read: 0,
            samples_in: 0,
            next_frame: 0,
            idle: Some(idle),
            open: Bundle { first_frame: 0, frames: 0, stages, codes: Vec::new() },
            full: false,
            finished: false,
            grading: None,
            last_depth: None,
            bundle_grading: None,
            by_frame: false,
            silence: None,
            latents: None,
        })
    }

    /// Takes latents `[T * latent_dim]` of the next frames, which somebody else has made of the samples (with or without a search):
    /// from the first call on, jobs wait for them and run no network. They must be those of the frames from the first on.
    pub fn push_latents(&mut self, latents: &[f32]) {
        let waiting = self.latents.get_or_insert_default();
        if waiting.1 > waiting.0.len() / 2 {
            waiting.0.drain(..waiting.1);
            waiting.1 = 0;
        }
        waiting.0.extend_from_slice(latents);
    }

    /// Leaves out what is only background, from the next bundle on: [`Encoder::pack`] then says what is to be sent. Jobs must hold whole
    /// bundles.
    pub fn leave_out_silence(&mut self) {
        self.silence = Some(Box::default());
    }

    /// What is to be sent of the bundle that was made last; None in silence, but for a description of the background now and then.
    pub fn pack(&mut self, bundle: &Bundle) -> Option<PackedBundle> {
        let is_last = self.finished && self.open.frames == 0 && self.backlog() < self.profile.frame_samples;
        let sent = match &mut self.silence {
            Some(s) => s.silencer.next(bundle, !s.active, &s.levels, is_last),
            None => Sent::Whole,
        };
        match sent {
            Sent::Whole => Some(PackedBundle::pack(bundle)),
            Sent::Description(codes) => PackedBundle::background(bundle.first_frame, bundle.frames, &codes).ok(),
            Sent::Nothing => None,
        }
    }

    /// Whether the job that was taken last has more than background, as far as that is looked for: what nobody will hear need not be
    /// searched for.
    pub fn is_active(&self) -> bool {
        self.silence.as_ref().is_none_or(|s| s.active)
    }

    /// Frames a job waits for, 1 by default (lowest delay). More cost less a frame; a job never spans two bundles.
    pub fn set_job_frames(&mut self, frames: usize) {
        self.job_frames = frames.clamp(1, usize::from(self.frames_per_bundle));
    }

    /// Makes bundles of so many frames, 1 to 50, from the next one on, each in one job.
    pub fn set_bundle_frames(&mut self, frames: u8) {
        self.next_frames_per_bundle = frames.clamp(1, Profile::MAX_FRAMES_PER_BUNDLE);
        self.begin_bundle();
    }

    /// Between two bundles, and while no job is out.
    fn begin_bundle(&mut self) {
        if self.open.frames == 0 && self.idle.is_some() && self.frames_per_bundle != self.next_frames_per_bundle {
            self.frames_per_bundle = self.next_frames_per_bundle;
            self.job_frames = usize::from(self.frames_per_bundle);
        }
    }

    /// Changes the number of stages from the next bundle on, at most what the model has.
    pub fn set_stages(&mut self, stages: StageCount) {
        self.stages = stages.min(self.profile.stages);
        if self.bundle_grading.as_ref().is_some_and(|g| g.bucket().is_none()) {
            self.grade_bundles();
        }
    }

    /// Gives frames of a held rate at most so many stages, from the next bundle on.
    pub fn limit_stages(&mut self, most: StageCount) {
        if let Some(grading) = &mut self.bundle_grading {
            grading.limit(most.min(self.profile.stages));
        }
    }

    /// Gives frames from here on stages by their level, at most those of the encoder; such bundles can only be coded.
    pub fn set_grading(&mut self, grading: Grading) {
        self.grading = Some(grading);
    }

    /// Gives bundles from here on stages by their level: those of the encoder on average, and at most twice as many, which is
    /// returned. A bundle's level is that of its first job.
    pub fn grade_bundles(&mut self) -> StageCount {
        let most = StageCount::new(self.stages.value().saturating_mul(2)).unwrap_or(StageCount::MAX);
        let grading = BundleGrading::new(self.stages, most.min(self.profile.stages));
        self.bundle_grading = Some(grading);
        grading.most()
    }

    /// Gives bundles from here on as many stages as the bucket has room for, loud ones more; say with [`Encoder::spent`] what each
    /// took before the next is asked for. With `by_frame` loud frames get more inside a bundle, too.
    pub fn hold_rate(&mut self, bucket: Bucket, by_frame: bool) {
        self.bundle_grading = Some(BundleGrading::within(bucket, self.profile.stages));
        self.by_frame = by_frame;
    }

    /// Notes what a bundle of so many codes really took, its message included.
    pub fn spent(&mut self, frames: u8, codes: u32, bits: u64) {
        if let Some(grading) = &mut self.bundle_grading {
            grading.spent(frames, codes, bits);
        }
    }

    /// What is left of the rate; None unless one is held.
    pub fn bucket(&self) -> Option<&Bucket> {
        self.bundle_grading.as_ref().and_then(BundleGrading::bucket)
    }

    /// Samples at the codec's rate. Values that are not finite become 0, others are limited to -1..1.
    pub fn push(&mut self, pcm: &[f32]) {
        // What was read is moved away only when it is most of the buffer, so that this costs O(1) a sample.
        if self.read > self.pending.len() / 2 {
            self.pending.drain(..self.read);
            self.read = 0;
        }
        self.samples_in += pcm.len() as u64;
        self.pending.extend(pcm.iter().map(|&x| usable(x)));
    }

    /// Samples pushed so far.
    pub fn samples_in(&self) -> u64 {
        self.samples_in
    }

    /// Samples waiting to be encoded.
    pub fn backlog(&self) -> usize {
        self.pending.len() - self.read
    }

    /// Ends the input: pads with silence until everything pushed can be decoded.
    pub fn finish(&mut self) {
        if self.finished {
            return;
        }
        self.finished = true;
        if self.samples_in == 0 {
            return;
        }
        let missing = self.profile.padding(self.samples_in);
        self.pending.resize(self.pending.len() + missing, 0.0);
    }

    /// The next piece of work; None while samples are missing, a bundle waits to be taken, or a job is out.
    pub fn next_job(&mut self) -> Option<EncodeJob> {
        let frames = self.next_frames();
        if frames == 0 {
            return None;
        }
        let mut job = self.idle.take()?;
        if self.open.frames == 0 {
            let samples = frames * self.profile.frame_samples;
            let pcm = &self.pending[self.read..self.read + samples];
            self.open.stages = match &mut self.bundle_grading {
                Some(_) if self.by_frame => self.profile.stages,
                Some(grading) => grading.next(pcm, self.profile.frame_samples),
                None => self.stages,
            };
            self.open.first_frame = self.next_frame;
        }
        job.frames = frames;
        job.stages = self.open.stages;
        job.first_frame = self.next_frame;
        let samples = frames * self.profile.frame_samples;
        job.pcm.clear();
        job.pcm.extend_from_slice(&self.pending[self.read..self.read + samples]);
        self.read += samples;
        if let Some(silence) = &mut self.silence {
            silence.hear(&job.pcm, self.profile.frame_samples, self.open.frames == 0);
        }
        job.work = if self.latents.is_some() { Work::Codes } else { Work::All };
        if let Some((latents, read)) = &mut self.latents {
            let values = frames * self.profile.latent_dim;
            job.latents.clear();
            job.latents.extend_from_slice(&latents[*read..*read + values]);
            *read += values;
        }
        job.depths.clear();
        if let Some(grading) = self.bundle_grading.as_mut().filter(|_| self.by_frame) {
            grading.depths(&job.pcm, self.profile.frame_samples, &mut job.depths);
        } else if let Some(grading) = &self.grading {
            for frame in job.pcm.chunks_exact(self.profile.frame_samples) {
                let depth = grading.depth(level_db(frame), self.last_depth, job.stages);
                self.last_depth = Some(depth);
                job.depths.push(depth);
            }
        }
        Some(job)
    }

    /// The next finished bundle, with `run` doing the jobs on the way to it; None if samples are missing.
    ///
    /// # Errors
    /// Those of `run`; the stream cannot go on then.
    pub fn advance<E>(&mut self, mut run: impl FnMut(&mut EncodeJob) -> Result<(), E>) -> Result<Option<Bundle>, E> {
        loop {
            if let Some(bundle) = self.next_bundle() {
                return Ok(Some(bundle));
            }
            let Some(mut job) = self.next_job() else { return Ok(None) };
            run(&mut job)?;
            self.accept(job);
        }
    }

    /// Samples that the next job will take; empty if there is none yet.
    pub fn upcoming(&self) -> &[f32] {
        let samples = self.next_frames() * self.profile.frame_samples;
        &self.pending[self.read..self.read + samples]
    }

    /// Frames that the next job will have.
    fn next_frames(&self) -> usize {
        let room = usize::from(self.frames_per_bundle - self.open.frames);
        let mut ready = self.backlog() / self.profile.frame_samples;
        if let Some((latents, read)) = &self.latents {
            ready = ready.min((latents.len() - read) / self.profile.latent_dim);
        }
        let wanted = self.job_frames.min(room);
        match () {
            () if self.full => 0,
            () if ready >= wanted => wanted,
            () if self.finished => ready,
            () => 0,
        }
    }

    /// Takes a finished job back.
    pub fn accept(&mut self, job: EncodeJob) {
        self.next_frame += job.frames as u64;
        self.open.frames += job.frames as u8;
        self.open.codes.extend_from_slice(&job.codes);
        self.full = self.open.frames >= self.frames_per_bundle;
        self.idle = Some(job);
    }

    /// Moves the next finished bundle into `bundle`, whose buffer is reused; false if there is none.
    pub fn next_bundle_into(&mut self, bundle: &mut Bundle) -> bool {
        let last =
            self.finished && self.idle.is_some() && self.open.frames > 0 && self.backlog() < self.profile.frame_samples;
        if !self.full && !last {
            return false;
        }
        std::mem::swap(bundle, &mut self.open);
        self.open.frames = 0;
        self.open.codes.clear();
        self.full = false;
        self.begin_bundle();
        true
    }

    /// The next finished bundle. After [`Encoder::finish`] the last one may have fewer frames.
    pub fn next_bundle(&mut self) -> Option<Bundle> {
        let mut bundle = Bundle { first_frame: 0, frames: 0, stages: self.stages, codes: Vec::new() };
        self.next_bundle_into(&mut bundle).then_some(bundle)
    }
}
