//! In which order matrices are used, learned from how they were used before.
//!
//! A training step goes up through the blocks and down again, generation goes up time after time; each pass is like an
//! earlier one. So what comes next is what came next the last time that the same things had come before.

/// Uses that must be the same before an earlier pass is taken for the present one.
const ALIKE_MIN: usize = 2;
/// More than these are not compared.
const ALIKE_MAX: usize = 256;

/// What was used, one after the other.
#[derive(Default)]
pub struct Order {
    used: Vec<usize>,
    /// `used[at]` is expected next.
    at: Option<usize>,
    /// Things that can be used: 0..things.
    things: usize,
}

impl Order {
    /// One more thing, after those that there are.
    pub fn add(&mut self) {
        self.things += 1;
    }

    /// Says that `thing` is used now.
    pub fn now(&mut self, thing: usize) {
        self.forget();
        let as_expected = self.at.filter(|&at| self.used.get(at) == Some(&thing));
        self.at = match as_expected {
            Some(at) => Some(at + 1),
            None => self.like_now(thing).map(|at| at + 1),
        };
        self.used.push(thing);
    }

    /// What is expected, the soonest first; things may occur more than once.
    pub fn expected(&self) -> impl Iterator<Item = usize> + '_ {
        let known = self.at.map(|at| self.used.get(at..).unwrap_or_default()).unwrap_or_default();
        // Nothing like it was seen yet: it goes on in the direction that it has.
        let (up, down) = match (known, self.used.as_slice()) {
            ([], [.., before, now]) if now < before => (0..0, 0..*now),
            ([], [.., now]) => (now + 1..self.things, 0..0),
            ([], []) => (0..self.things, 0..0),
            _ => (0..0, 0..0),
        };
        known.iter().copied().chain(up).chain(down.rev())
    }

    /// How soon each thing is expected; `None` for those that are not.
    pub fn distances(&self) -> Vec<Option<usize>> {
        let mut distances = vec![None; self.things];
        for (distance, thing) in self.expected().enumerate() {
            if let Some(first @ None) = distances.get_mut(thing) {
                *first = Some(distance);
            }
        }
        distances
    }

    /// The place in the past that is most like the present, if `thing` is used now: the newest of the longest matches.
    fn like_now(&self, thing: usize) -> Option<usize> {
        let alike = |&at: &usize| {
            let before = self.used.get(..at).unwrap_or_default().iter().rev();
            1 + before.zip(self.used.iter().rev()).take(ALIKE_MAX).take_while(|(a, b)| a == b).count()
        };
        let places = (0..self.used.len()).filter(|&at| self.used[at] == thing);
        let best = places.map(|at| (alike(&at), at)).max()?;
        (best.0 >= ALIKE_MIN).then_some(best.1)
    }

    /// Keeps the last passes only.
    fn forget(&mut self) {
        let kept = 16 * self.things + 64;
        if self.used.len() >= 2 * kept {
            let gone = self.used.len() - kept;
            self.used.drain(..gone);
            self.at = self.at.and_then(|at| at.checked_sub(gone));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(things: usize, used: impl IntoIterator<Item = usize>) -> Order {
        let mut order = Order::default();
        (0..things).for_each(|_| order.add());
        used.into_iter().for_each(|thing| order.now(thing));
        order
    }

    fn next(order: &Order, n: usize) -> Vec<usize> {
        order.expected().take(n).collect()
    }

    #[test]
    fn a_first_pass_goes_on_as_it_goes() {
        assert_eq!(next(&order(4, []), 9), [0, 1, 2, 3]);
        assert_eq!(next(&order(4, [0, 1]), 9), [2, 3]);
        assert_eq!(next(&order(4, [0, 1, 2, 3, 2]), 9), [1, 0]);
    }

    #[test]
    fn later_passes_are_like_earlier_ones() {
        let round = [0, 1, 2, 3];
        let generating = order(4, round.into_iter().chain(round).chain([0, 1]));
        assert_eq!(next(&generating, 4), [2, 3, 0, 1]);
        // Up and down, each block again before its gradient: what follows 1 depends on what was before it.
        let step = [0, 1, 2, 3, 2, 3, 2, 0, 1, 0];
        let mut training = order(4, step.into_iter().chain(step).chain([0, 1, 2]));
        assert_eq!(next(&training, 5), [3, 2, 3, 2, 0]);
        for thing in [3, 2, 3, 2, 0] {
            training.now(thing);
        }
        assert_eq!(next(&training, 2), [1, 0]);
        assert!(training.distances()[3].is_some());
    }

    #[test]
    fn a_pass_of_another_kind_is_noticed_and_the_past_is_bounded() {
        let step = [0, 1, 2, 3, 2, 1];
        let mut seen = order(4, step.into_iter().cycle().take(6 * 40));
        assert!(seen.used.len() < 2 * (16 * 4 + 64));
        // An evaluation: up only.
        for thing in [0, 1, 2, 3, 0, 1, 2] {
            seen.now(thing);
        }
        seen.now(3);
        assert_eq!(next(&seen, 2), [0, 1]);
    }
}
