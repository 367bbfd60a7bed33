//! Two clocks that never agree: how much faster or slower to resample so that a buffer between them stays as full as it should.

/// Largest correction, as a part of the rate: half a percent, which nobody hears as a change of pitch.
pub const MAX_CORRECTION: f64 = 0.005;

/// Correction for each second that the buffer is too full, and the same for the sum of that over time. The pair is critically
/// damped (integral = proportional² / 4): an error is gone within about a minute, without overshoot.
const PROPORTIONAL: f64 = 0.1;
const INTEGRAL: f64 = PROPORTIONAL * PROPORTIONAL / 4.0;

/// Time constant in seconds of the mean over the fill: bundles come at once and leave sample by sample, which is not drift.
const SMOOTHING_S: f64 = 1.0;

/// Proportional-integral control of a buffer's fill.
///
/// Give it the fill error at regular media times; it answers how much faster the buffer should be emptied.
#[derive(Debug, Clone, Default)]
pub struct DriftController {
    smooth: Option<f64>,
    integral: f64,
    correction: f64,
}

impl DriftController {
    /// `error_s` is how many seconds of audio too many are in the buffer (negative: too few), `elapsed_s` the media time
    /// since the last call. Returns the correction in -[`MAX_CORRECTION`] to [`MAX_CORRECTION`]: 0.001 empties the
    /// buffer 0.1 % faster. Values that are not finite change nothing.
    pub fn update(&mut self, error_s: f64, elapsed_s: f64) -> f64 {
        if !(error_s.is_finite() && elapsed_s.is_finite() && elapsed_s > 0.0) {
            return self.correction;
        }
        let old = self.smooth.unwrap_or(error_s);
        let smooth = old + (error_s - old) * (elapsed_s / SMOOTHING_S).min(1.0);
        self.smooth = Some(smooth);
        let wanted = PROPORTIONAL * smooth + self.integral;
        // What the clamp cuts off must not pile up in the integral, or it would overshoot later.
        if wanted.abs() < MAX_CORRECTION || wanted * smooth < 0.0 {
            self.integral = (self.integral + INTEGRAL * smooth * elapsed_s).clamp(-MAX_CORRECTION, MAX_CORRECTION);
        }
        self.correction = (PROPORTIONAL * smooth + self.integral).clamp(-MAX_CORRECTION, MAX_CORRECTION);
        self.correction
    }

    /// The clocks' difference as found so far, in parts per million; positive if the buffer's writer is the faster one.
    pub fn ppm(&self) -> f64 {
        self.integral * 1e6
    }

    /// Forgets the fill but not the clocks' difference: the buffer was emptied or filled by hand.
    pub fn jump(&mut self) {
        self.smooth = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A buffer that is filled by a clock `ppm` faster, in pieces of `piece` seconds, and emptied as told; returns the
    /// last error and the controller.
    fn run(ppm: f64, piece: f64, start: f64, seconds: f64) -> (f64, f64, DriftController) {
        let (mut control, tick) = (DriftController::default(), 0.02);
        let (mut fill, mut owed, mut worst) = (start, 0.0, 0.0f64);
        for n in 0..(seconds / tick) as usize {
            owed += tick * (1.0 + ppm * 1e-6);
            if owed >= piece {
                fill += owed;
                owed = 0.0;
            }
            let correction = control.update(fill, tick);
            fill -= tick * (1.0 + correction);
            if n as f64 * tick > seconds / 2.0 {
                worst = worst.max((control.update(fill, 1e-9)).abs());
            }
        }
        (fill, worst, control)
    }

    #[test]
    fn clocks_that_differ_by_300_ppm_are_found() {
        for ppm in [-300.0, 0.0, 300.0] {
            for piece in [0.02, 0.1] {
                let (fill, worst, control) = run(ppm, piece, 0.0, 300.0);
                assert!((control.ppm() - ppm).abs() < 15.0, "{ppm}: found {}", control.ppm());
                assert!(fill.abs() < 0.08, "{ppm}: {fill} s off");
                assert!(worst < 0.000_5, "{ppm}: corrections up to {worst} when settled");
            }
        }
    }

    #[test]
    fn corrections_are_clamped_and_the_integral_does_not_wind_up() {
        let (fill, _, control) = run(20_000.0, 0.02, 0.0, 100.0);
        assert!(fill > 1.0, "half a percent cannot make up for two");
        assert!(control.ppm() <= 5_000.0);
        let mut control = DriftController::default();
        for _ in 0..10_000 {
            assert_eq!(control.update(3.0, 0.02), MAX_CORRECTION);
        }
        // Once the buffer is right again the correction is gone in a few seconds, but for what was rightly integrated on the way.
        (0..600).for_each(|_| {
            control.update(0.0, 0.02);
        });
        assert!(control.update(0.0, 0.02).abs() < 0.000_2);
        assert_eq!(control.update(f64::NAN, 0.02), control.update(0.0, 0.0));
    }

    #[test]
    fn a_step_is_worked_off_without_overshoot() {
        let (fill, _, control) = run(0.0, 0.02, 0.3, 400.0);
        assert!(fill.abs() < 0.03 && control.ppm().abs() < 20.0, "{fill} s, {} ppm", control.ppm());
    }
}
