//! `retune transcribe`: what is said in sound files, streamed to the terminal or written as text, subtitles and JSON.

pub mod score;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write, stdout};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use retune::metrics::words::NormalizerChoice;
use retune::models::{Model, Reads, spec_of};
use retune::nn::Active;
use retune::tasks::speech::transcribe::Options;
use retune::tasks::speech::{
    AudioWindow, Format, Progress, Segment, SpeechTask, Transcriber, Transcript, language_code,
};
use retune_formats::atomic;
use retune_media::sound;
use serde_json::json;

use crate::exit::{Ended, UsageError};
use crate::loading::{ModelArgs, language, tell_streamed};
use crate::signals::Signals;
use crate::style::{self, dim, printable};
use crate::tasks::{NOT_EXACT, window};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune transcribe --model whisper-small talk.mp3 --language fr
  retune transcribe --model whisper-small --adapter french *.wav --language fr --format srt,txt --out transcripts
  retune transcribe --model whisper-small talk.ogg --task translate --beam-size 5
  retune transcribe --model whisper-small --adapter french --data test.tsv --language fr

Sounds are wav, FLAC, MP3 and Ogg/Vorbis, of any length up to 4 hours. Without --language a multilingual model is asked first. With several
--adapter each file goes through each of them.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Sound files
    #[arg(value_name = "FILE", required_unless_present = "data")]
    files: Vec<PathBuf>,

    /// Rows with their transcripts, in the forms that train reads: tells the word and character error rates, and the worst rows
    #[arg(long, value_name = "PATH", conflicts_with_all = ["files", "out", "format"])]
    data: Option<PathBuf>,

    /// Of --data: how texts are made alike before they are compared; auto as Whisper's authors do for the language
    #[arg(long, value_name = "auto|basic|english|none", default_value = "auto")]
    normalizer: NormalizerChoice,

    /// Of --data: leave out rows longer than 30 s instead of refusing them all
    #[arg(long, requires = "data")]
    skip_long: bool,

    /// What the encoder sees: windows of 30 s, or the clip alone, which is not what Whisper was trained on; without it, as the
    /// adapter was trained
    #[arg(long, value_name = "30s|clip")]
    audio_window: Option<AudioWindow>,

    /// The language that is spoken, as a code or an English name: fr, French
    #[arg(long, value_name = "NAME", value_parser = language_code)]
    language: Option<&'static str>,

    /// The words as they are said, or in English
    #[arg(long, value_name = "transcribe|translate", default_value = "transcribe", value_parser = SpeechTask::from_name)]
    task: SpeechTask,

    /// txt, srt, vtt or json; several with commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "txt", value_parser = format_of)]
    format: Vec<Format>,

    /// Write FILE.txt and so on into this folder
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    /// Ask for the times of segments; subtitles and json have them in any case
    #[arg(long)]
    timestamps: bool,

    /// Texts that are followed side by side; 1 takes the likeliest token each time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    beam_size: u32,

    /// Tried one after the other until a text neither repeats itself nor is unlikely; 0 alone never tries again [default: 0,0.2,0.4,0.6,0.8,1;
    /// with --data 0, as training measures]
    #[arg(long, value_name = "X,...", value_delimiter = ',')]
    temperature: Option<Vec<f32>>,

    /// The same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

fn format_of(name: &str) -> Result<Format, String> {
    let names = Format::ALL.map(Format::name).join(", ");
    Format::from_name(name).ok_or_else(|| format!("there are {names}"))
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let options = args.options();
    options.check().map_err(|error| UsageError(error.to_string()))?;
    let signals = Signals::catch()?;
    let files = args.model.files()?;
    if spec_of(&files)?.reads != Reads::Sound {
        let what =
            format!("{}: this model does not read sound; Whisper models do", args.model.model.display());
        return Err(UsageError(what).into());
    }
    args.check_names()?;
    let mut failed = 0;
    args.model.one_by_one(|adapter, model, record| {
        let window = window(args.audio_window, record);
        if window == AudioWindow::Clip && !json {
            eprintln!("{}", dim(&format!("note: {NOT_EXACT}")));
        }
        failed += args.all((adapter, model, window), &options, json, &signals)?;
        tell_streamed(model, json);
        Ok(())
    })?;
    match failed {
        0 => Ok(()),
        1 => bail!("a file could not be transcribed; the others are done"),
        n => bail!("{n} files could not be transcribed; the others are done"),
    }
}

impl Args {
    fn options(&self) -> Options {
        let usual = if self.data.is_some() { Options::greedy() } else { Options::default() };
        let timed = self.format.iter().any(|format| *format != Format::Text);
        Options {
            language: self.language,
            task: self.task,
            timestamps: self.timestamps || timed,
            beam_size: self.beam_size as usize,
            temperatures: self.temperature.clone().unwrap_or(usual.temperatures),
            seed: self.seed,
            ..Options::default()
        }
    }

    /// No two files may be written into one.
    fn check_names(&self) -> Result<()> {
        if self.out.is_none() {
            return Ok(());
        }
        let mut names: BTreeMap<_, &Path> = BTreeMap::new();
        for file in &self.files {
            if let Some(other) = names.insert(file.file_stem(), file) {
                let what =
                    format!("{} and {} would be written into one file", other.display(), file.display());
                return Err(UsageError(format!("{what}; transcribe them into two folders")).into());
            }
        }
        Ok(())
    }

    /// All files through one adapter; how many could not be read.
    fn all(
        &self,
        (adapter, model, window): (Option<&Path>, &Model, AudioWindow),
        options: &Options,
        json: bool,
        signals: &Signals,
    ) -> Result<usize> {
        let language = language(&model.files)?;
        let transcriber = Transcriber::new(model, &language.tokenizer, Active::default())?.through(window);
        if let Some(path) = &self.data {
            let rows = score::Rows { path, skip_long: self.skip_long, normalizer: self.normalizer };
            score::run(&transcriber, adapter, &rows, options, json, signals)?;
            return Ok(0);
        }
        let mut failed = 0;
        for file in &self.files {
            let samples = match sound::load(file) {
                Ok(samples) => samples,
                Err(error) => {
                    eprintln!("{}: {error}", style::error("error"));
                    failed += 1;
                    continue;
                }
            };
            let started = Instant::now();
            let transcript = self.one(&transcriber, file, &samples, options, json, signals)?;
            let length = sound::seconds(samples.len());
            self.tell(adapter, file, &transcript, (length, started.elapsed().as_secs_f64()), json)?;
        }
        Ok(failed)
    }

    fn one(
        &self,
        transcriber: &Transcriber,
        file: &Path,
        samples: &[f32],
        options: &Options,
        json: bool,
        signals: &Signals,
    ) -> Result<Transcript> {
        let bar = bar(file, sound::seconds(samples.len()));
        let streams = !json && self.out.is_none() && self.format == [Format::Text];
        let mut failure = None;
        let found = transcriber.transcribe(samples, options, &mut |progress| {
            match progress {
                Progress::Segment(segment) if streams => {
                    let written = bar.suspend(|| show(segment, options.timestamps));
                    failure = written.err();
                }
                Progress::Done(seconds) => bar.set_position(seconds as u64),
                Progress::Segment(_) | Progress::Step => {}
            }
            failure.is_none() && signals.exit_code().is_none()
        });
        bar.finish_and_clear();
        let found = found.with_context(|| file.display().to_string())?;
        if let Some(error) = failure {
            return Err(error.into());
        }
        found.ok_or_else(|| Ended::new(signals.exit_code().unwrap_or(130), "interrupted").into())
    }

    /// Writes the files, or prints what has not been streamed.
    fn tell(
        &self,
        adapter: Option<&Path>,
        file: &Path,
        transcript: &Transcript,
        (length, took): (f64, f64),
        json: bool,
    ) -> Result<()> {
        let language = transcript.language;
        if let Some(folder) = &self.out {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
            for format in &self.format {
                let mut name = file.file_stem().unwrap_or_default().to_os_string();
                if let Some(adapter) =
                    adapter.and_then(Path::file_name).filter(|_| self.model.adapter.len() > 1)
                {
                    name.push(".");
                    name.push(adapter);
                }
                name.push(format!(".{}", format.name()));
                atomic::write_bytes(
                    &folder.join(name),
                    format.write(&transcript.segments, language).as_bytes(),
                )?;
            }
        }
        if json {
            let line = json!({
                "audio": file.display().to_string(), "adapter": adapter.map(|path| path.display().to_string()),
                "language": language, "text": transcript.text(), "segments": transcript.segments,
                "seconds": length, "took_s": took,
            });
            writeln!(stdout(), "{line}")?;
            return Ok(());
        }
        if self.out.is_none() && self.format != [Format::Text] {
            for format in &self.format {
                write!(stdout(), "{}", format.write(&transcript.segments, language))?;
            }
        }
        let speed = if took > 0.0 { length / took } else { 0.0 };
        let language = language.map(|code| format!(", language {code}")).unwrap_or_default();
        eprintln!(
            "{}",
            dim(&format!("{}: {length:.1} s in {took:.1} s ({speed:.1} x){language}", file.display()))
        );
        Ok(())
    }
}

/// A segment for people.
fn show(segment: &Segment, times: bool) -> std::io::Result<()> {
    let mut out = stdout().lock();
    let text = printable(segment.text.trim());
    if times {
        write!(out, "{} ", dim(&format!("[{} - {}]", clock(segment.start), clock(segment.end))))?;
    }
    writeln!(out, "{text}")?;
    out.flush()
}

fn clock(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    format!("{:02}:{:02}:{:05.2}", whole / 3600, whole / 60 % 60, seconds.max(0.0) % 60.0)
}

/// A bar of seconds, or of rows.
fn bar(file: &Path, seconds: f64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar =
        ProgressBar::with_draw_target(Some(seconds.ceil() as u64), ProgressDrawTarget::stderr_with_hz(8));
    let style = ProgressStyle::with_template("{elapsed:>4}  {bar:30.cyan/dim} {pos}/{len}  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─"));
    bar.set_message(file.file_name().unwrap_or_default().to_string_lossy().into_owned());
    bar.enable_steady_tick(std::time::Duration::from_millis(500));
    bar
}
