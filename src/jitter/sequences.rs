//! Which sequence numbers have come.

/// Numbers below the highest one that are remembered; an older packet counts as a duplicate.
const WINDOW: u64 = 1024;

/// What a number says about its packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// Higher than all before.
    New,
    /// Others overtook it.
    Reordered,
    /// It came before, or is too old to tell.
    Duplicate,
}

#[derive(Debug)]
pub(super) struct Sequences {
    /// First number, and the one after the highest; None before the first packet.
    range: Option<(u64, u64)>,
    bits: [u64; (WINDOW / 64) as usize],
}

impl Sequences {
    pub(super) fn new() -> Self {
        Self { range: None, bits: [0; (WINDOW / 64) as usize] }
    }

    fn bit(&mut self, number: u64) -> (&mut u64, u64) {
        let at = number % WINDOW;
        (&mut self.bits[(at / 64) as usize], 1 << (at % 64))
    }

    pub(super) fn note(&mut self, number: u64) -> Seen {
        let after = number.saturating_add(1);
        let Some((first, next)) = self.range else {
            self.range = Some((number, after));
            let (word, bit) = self.bit(number);
            *word |= bit;
            return Seen::New;
        };
        if number >= next {
            // Numbers that were skipped have not come; their places may hold older ones.
            for n in next..=number.min(next.saturating_add(WINDOW - 1)) {
                let (word, bit) = self.bit(n);
                *word &= !bit;
            }
            self.range = Some((first, after));
        } else if next - number > WINDOW {
            return Seen::Duplicate;
        }
        let (word, bit) = self.bit(number);
        let before = *word & bit != 0;
        *word |= bit;
        if number < next {
            // A packet from before the first one: the count starts there.
            self.range = Some((first.min(number), next));
        }
        match (before, number < next) {
            (true, true) => Seen::Duplicate,
            (false, true) => Seen::Reordered,
            (_, false) => Seen::New,
        }
    }

    /// The number after the highest.
    pub(super) fn next(&self) -> u64 {
        self.range.map_or(0, |(_, next)| next)
    }

    /// Packets that should have come since the first.
    pub(super) fn expected(&self) -> u64 {
        self.range.map_or(0, |(first, next)| next - first)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_new_late_or_known() {
        let mut s = Sequences::new();
        let seen: Vec<_> = [5, 6, 9, 6, 8, 4, 9, 2_000, 9].into_iter().map(|n| s.note(n)).collect();
        use Seen::{Duplicate, New, Reordered};
        assert_eq!(seen, [New, New, New, Duplicate, Reordered, Reordered, Duplicate, New, Duplicate]);
        assert_eq!((s.next(), s.expected()), (2_001, 1_997));
        assert_eq!(s.note(u64::MAX), New);
    }

    proptest! {
        #[test]
        fn within_the_window_every_number_is_taken_once(numbers in prop::collection::vec(3_000u64..3_900, 1..400)) {
            let mut s = Sequences::new();
            let mut taken = std::collections::BTreeSet::new();
            for n in numbers {
                prop_assert_eq!(s.note(n) != Seen::Duplicate, taken.insert(n));
            }
        }
    }
}
