//! The learning rate as a pure function of the step, as transformers' `get_*_schedule_with_warmup` define it:
//! `k / warmup` while warming up, then 1, a straight line to 0, or `(1 + cos(pi progress)) / 2`.

use crate::run_file::Schedule;

/// The factor on the peak learning rate for the step with index `step` (0 is the first).
pub fn factor(schedule: Schedule, step: u64, warmup_steps: u64, steps_total: u64) -> f64 {
    if step < warmup_steps {
        return step as f64 / warmup_steps as f64;
    }
    let decay_steps = steps_total.saturating_sub(warmup_steps).max(1) as f64;
    let progress = ((step - warmup_steps) as f64 / decay_steps).min(1.0);
    match schedule {
        Schedule::Constant => 1.0,
        Schedule::Linear => 1.0 - progress,
        Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
    }
}

/// Warm-up in steps: below 1 it is a share of all steps (rounded up), from 1 a number of steps.
pub fn warmup_steps(warmup: f64, steps_total: u64) -> u64 {
    let steps = if warmup < 1.0 { (warmup * steps_total as f64).ceil() } else { warmup };
    (steps as u64).min(steps_total)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `torch.optim.lr_scheduler.LambdaLR` in transformers' own test (lr 10, 2 of 10 steps warm-up).
    #[test]
    fn matches_the_values_in_transformers_tests() {
        let cases = [
            (Schedule::Constant, [0.0, 2.5, 5.0, 7.5, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0], 4),
            (Schedule::Linear, [0.0, 5.0, 10.0, 8.75, 7.5, 6.25, 5.0, 3.75, 2.5, 1.25], 2),
            (Schedule::Cosine, [0.0, 5.0, 10.0, 9.61, 8.53, 6.91, 5.0, 3.08, 1.46, 0.38], 2),
        ];
        for (schedule, expected, warmup) in cases {
            for (step, want) in expected.iter().enumerate() {
                let got = 10.0 * factor(schedule, step as u64, warmup, 10);
                assert!((got - want).abs() < 1e-2, "{schedule:?} step {step}: {got}, not {want}");
            }
        }
    }

    #[test]
    fn warmup_is_a_share_or_a_count() {
        assert_eq!(warmup_steps(0.0, 100), 0);
        assert_eq!(warmup_steps(0.03, 100), 3);
        assert_eq!(warmup_steps(0.03, 10), 1);
        assert_eq!(warmup_steps(20.0, 100), 20);
    }

    #[test]
    fn stays_within_0_and_1_for_odd_lengths() {
        for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine] {
            for (warmup, total) in [(0, 1), (1, 1), (5, 3), (0, 0)] {
                for step in 0..8 {
                    let f = factor(schedule, step, warmup, total);
                    assert!((0.0..=1.0).contains(&f), "{schedule:?} {step} {warmup} {total}: {f}");
                }
            }
        }
    }
}
