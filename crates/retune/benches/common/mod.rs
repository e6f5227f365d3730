//! What the benchmarks share: arguments, shapes, models with random weights, memory, medians.
#![allow(dead_code)]

pub mod shapes;

use std::str::FromStr;
use std::time::Instant;

use retune::objective::Objective;
use retune::run_file::RunFile;
use retune::train::{Control, Event, TrainSettings, train};
use retune_tensor::Params;

/// The arguments after the program's name: `--key value`, or `--key` alone for switches.
pub struct Args(Vec<String>);

impl Args {
    /// `None` if there are no arguments at all: that is `cargo test --all-targets`, which only checks that we start.
    pub fn read(usage: &str, known: &[&str]) -> Option<Args> {
        let args: Vec<String> = std::env::args().skip(1).collect();
        if args.is_empty() || args.iter().any(|a| a == "--help") {
            println!("{usage}");
            return None;
        }
        for arg in args.iter().filter(|a| a.starts_with("--")) {
            let name = &arg[2..];
            assert!(name == "bench" || known.contains(&name), "unknown option {arg}\n{usage}");
        }
        Some(Args(args))
    }

    /// `--threads`, 2 without it; the pool has so many from here on. Memory is given back as the program does.
    pub fn threads(&self) -> usize {
        retune_tensor::memory::give_back_large_buffers();
        let threads = self.get("threads", 2);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread();
        pool.build_global().expect("no pool was used before");
        threads
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|a| a.strip_prefix("--") == Some(name))
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|a| a.strip_prefix("--") == Some(name))?;
        Some(self.0.get(at + 1).unwrap_or_else(|| panic!("--{name} needs a value")))
    }

    pub fn get<T: FromStr>(&self, name: &str, default: T) -> T {
        let Some(text) = self.text(name) else { return default };
        text.parse().unwrap_or_else(|_| panic!("--{name} cannot be \"{text}\""))
    }
}

/// Seconds a step.
pub struct Timed {
    /// Steps of the first epoch that were timed, and the median of their seconds.
    pub steps: usize,
    pub first: f64,
    /// The median from the second epoch on.
    pub later: Option<f64>,
}

/// Trains for `warm + steps` steps an epoch, each of `batch` examples; two epochs if something is kept for the second.
pub fn timed(
    params: &mut Params,
    objective: &dyn Objective,
    run: &RunFile,
    batch: usize,
    (warm, steps): (usize, usize),
    is_kept: bool,
) -> Timed {
    let epochs = if is_kept { 2 } else { 1 };
    let settings = TrainSettings {
        batch_size: batch,
        steps: Some(((steps + warm) * epochs) as u64),
        ..TrainSettings::from_run_file(run, 1e-4)
    };
    let mut seconds = Vec::new();
    let mut last = Instant::now();
    train(params, objective, None, &settings, None, &mut |event| {
        if let Event::Step { .. } = event {
            seconds.push(last.elapsed().as_secs_f64());
            last = Instant::now();
        }
        Control::Continue
    })
    .unwrap_or_else(|e| panic!("{e}"));
    let first = &seconds[warm.min(seconds.len())..(steps + warm).min(seconds.len())];
    let later = is_kept.then(|| median(&seconds[(steps + warm).min(seconds.len())..]));
    Timed { steps: first.len(), first: median(first), later }
}

/// The middle of some numbers.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]),
    }
}

/// `x` with some decimals, as a JSON number.
pub fn round(x: f64, decimals: i32) -> f64 {
    let scale = 10f64.powi(decimals);
    (x * scale).round() / scale
}

/// Resident memory in MiB as the kernel counts it: `VmHWM` the highest so far, `VmRSS` now.
pub fn resident_mib(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with(field));
    let kib: Option<f64> = line.and_then(|l| l.split_whitespace().nth(1)).and_then(|n| n.parse().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// Processor seconds that this process used so far, all threads together: steadier than the clock on a busy machine.
pub fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, in brackets, may hold spaces; the times are the 12th and 13th field behind it, in 1/100 s.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace());
    let times = fields.into_iter().flatten().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok());
    times.sum::<f64>() / 100.0
}

/// The machine's load average over one minute.
pub fn load1() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(f64::NAN)
}

/// A cheap stream of random numbers in -1..1.
pub struct Noise(pub u32);

impl Noise {
    pub fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }

    pub fn uniform(&mut self) -> f32 {
        self.bits() as f32 / (1 << 23) as f32 - 1.0
    }
}
