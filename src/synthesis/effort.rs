//! How many steps a live search may take: as many as the machine can afford.

use std::time::Duration;

/// Parts in a row with room for another step before it is taken.
const CALM: u32 = 3;

/// Share of the budget that another step must leave unused: what a step takes varies.
const RESERVE: f64 = 0.1;

/// Steps of a search that runs beside live sound, by what its parts really took. It falls at once, and rises by half of what there
/// seems to be room for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effort {
    budget: f64,
    most: u32,
    steps: u32,
    calm: u32,
}

impl Effort {
    /// At most `most` steps, as many as take no more than the share `budget` of real time on one core.
    pub fn new(budget: f64, most: u32) -> Self {
        Self { budget, most, steps: 0, calm: 0 }
    }

    /// The same, from all of them on: where nobody waits for the first part.
    #[must_use]
    pub fn from_the_top(self) -> Self {
        Self { steps: self.most, ..self }
    }

    /// Steps of the next part.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// Notes that a part of so much sound took so long.
    pub fn took(&mut self, took: Duration, media: Duration) {
        let share = took.as_secs_f64() / media.as_secs_f64().max(1e-9);
        if share > self.budget {
            let affordable = (f64::from(self.steps) * self.budget / share) as u32;
            self.steps = affordable.min(self.steps.saturating_sub(1));
            self.calm = 0;
            return;
        }
        // What does not grow with the steps is counted as if it did, so this errs to the safe side.
        let next =
            if self.steps == 0 { 2.0 * share } else { share * f64::from(self.steps + 1) / f64::from(self.steps) };
        self.calm = if next <= self.budget * (1.0 - RESERVE) { self.calm + 1 } else { 0 };
        if self.calm >= CALM {
            let room = f64::from(self.steps) * self.budget * (1.0 - RESERVE) / share.max(1e-9);
            let rise = ((room - f64::from(self.steps)) / 2.0).max(1.0) as u32;
            self.steps = self.steps.saturating_add(rise).min(self.most);
            self.calm = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEDIA: Duration = Duration::from_millis(100);

    /// A machine on which a part takes 4 % of its length and 3 % a step, times `slow`.
    fn run(effort: &mut Effort, parts: u32, slow: f64) -> f64 {
        let mut share = 0.0;
        for _ in 0..parts {
            share = slow * (0.04 + 0.03 * f64::from(effort.steps()));
            effort.took(MEDIA.mul_f64(share), MEDIA);
        }
        share
    }

    #[test]
    fn effort_falls_at_once_and_rises_when_there_is_room() {
        let mut effort = Effort::new(0.5, 20);
        let share = run(&mut effort, 200, 1.0);
        assert!((10..=15).contains(&effort.steps()) && share <= 0.5, "{effort:?} takes {share}");
        // Two seconds are enough to get there, since many streams are not much longer.
        let mut soon = Effort::new(0.5, 20);
        assert!(run(&mut soon, 20, 1.0) <= 0.5 && soon.steps() >= 10, "{soon:?}");
        let mut at_once = Effort::new(0.5, 20).from_the_top();
        run(&mut at_once, 1, 1.0);
        assert!((12..20).contains(&at_once.steps()), "{at_once:?}");
        // Something else begins to run: one part is late, the next is within the budget.
        run(&mut effort, 1, 4.0);
        assert!(4.0 * (0.04 + 0.03 * f64::from(effort.steps())) <= 0.55, "{effort:?}");
        run(&mut effort, 100, 4.0);
        let little = effort.steps();
        assert!(little <= 3, "{effort:?}");
        run(&mut effort, 200, 1.0);
        assert!(effort.steps() > little + 5, "{effort:?}");
        // Too slow for anything.
        run(&mut effort, 50, 20.0);
        assert_eq!(effort.steps(), 0);
        // And fast enough for everything.
        run(&mut effort, 200, 0.1);
        assert_eq!(effort.steps(), 20);
    }
}
