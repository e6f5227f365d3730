//! `metrics.jsonl`: one line for each event. A resumed run goes on where its checkpoint was, so that no step is in it twice.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::events::Event;

/// The open log of a run.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// An empty log; an old one is replaced.
    ///
    /// # Errors
    /// If the file cannot be created.
    pub fn create(path: &Path) -> Result<MetricsLog> {
        let file = File::create(path).map_err(Error::io(path, "create"))?;
        Ok(MetricsLog { path: path.to_path_buf(), file })
    }

    /// The log of a run that is resumed: of what is there, the lines up to `step` stay. A line cut short by a crash goes.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn resume(path: &Path, step: u64) -> Result<MetricsLog> {
        if let Ok(old) = File::open(path) {
            let kept: Vec<String> = BufReader::new(old)
                .lines()
                .map_while(std::io::Result::ok)
                .filter(|line| {
                    serde_json::from_str::<Event>(line).is_ok_and(|e| e.step().is_none_or(|s| s <= step))
                })
                .collect();
            retune_formats::atomic::write_file(path, |out| {
                kept.iter()
                    .try_for_each(|line| writeln!(out, "{line}"))
                    .map_err(retune_formats::Error::io(path, "write"))
            })?;
        }
        let file =
            OpenOptions::new().create(true).append(true).open(path).map_err(Error::io(path, "open"))?;
        Ok(MetricsLog { path: path.to_path_buf(), file })
    }

    /// Adds a line; does nothing for transient events.
    ///
    /// # Errors
    /// If the disk is full, say.
    pub fn write(&mut self, event: &Event) -> Result<()> {
        if event.is_transient() {
            return Ok(());
        }
        let mut line = serde_json::to_vec(event)
            .map_err(std::io::Error::other)
            .map_err(Error::io(&self.path, "write an event to"))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(Error::io(&self.path, "write to"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resuming_forgets_what_comes_after_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let eval =
            |step| Event::Eval { step, loss: 1.0, perplexity: 2.5, best: false, metrics: Default::default() };
        let mut log = MetricsLog::create(&path).unwrap();
        for step in [0, 4, 8] {
            log.write(&eval(step)).unwrap();
        }
        log.file.write_all(b"{\"event\":\"ev").unwrap();
        MetricsLog::resume(&path, 4).unwrap().write(&eval(5)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let steps: Vec<_> =
            text.lines().map(|l| serde_json::from_str::<Event>(l).unwrap().step().unwrap()).collect();
        assert_eq!(steps, [0, 4, 5]);
    }
}
