//! Data sets in folders of their own, with sounds made here.

use std::fs;

use super::*;
use crate::tasks::speech::tokens::tests::tokenizer;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str, text: &str) -> PathBuf {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// 16-bit mono at 8 kHz: a tone, silent where `quiet` (in seconds) says.
    fn sound(&self, name: &str, seconds: f64, quiet: &[(f64, f64)]) {
        let value = |i: usize| {
            let t = i as f64 / 8_000.0;
            let heard = !quiet.iter().any(|(start, end)| (*start..*end).contains(&t));
            ((t * 2_500.0).sin() * 9_000.0 * f64::from(u8::from(heard))) as i16
        };
        let data: Vec<u8> = (0..(seconds * 8_000.0) as usize).flat_map(|i| value(i).to_le_bytes()).collect();
        let mut out = b"RIFF".to_vec();
        out.extend((36 + data.len() as u32).to_le_bytes());
        out.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data");
        out.extend((data.len() as u32).to_le_bytes());
        out.extend(data);
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), out).unwrap();
    }

    fn load(&self, name: &str) -> Result<Dataset> {
        Dataset::load(&self.path(name), &Options::default())
    }

    /// The lines of an error, without the folder's name.
    fn problems(&self, name: &str) -> Vec<String> {
        let text = self.load(name).unwrap_err().to_string();
        let folder = format!("{}/", self.0.path().display());
        text.lines().map(|line| line.replace(&folder, "")).collect()
    }
}

fn texts(data: &Dataset) -> Vec<&str> {
    data.clips.iter().map(|clip| clip.text.as_str()).collect()
}

#[test]
fn manifests_of_every_form() {
    let folder = Folder::new();
    folder.sound("a.wav", 1.0, &[]);
    folder.sound("sub/b.wav", 2.0, &[]);
    folder
        .text("m.csv", "audio,text,language,task\na.wav,Ça va,French,translate\nsub/b.wav,\"one, two\",,\n");
    let data = folder.load("m.csv").unwrap();
    assert_eq!(texts(&data), ["Ça va", "one, two"]);
    assert_eq!((data.clips[0].language, data.clips[0].task), (Some("fr"), Some(SpeechTask::Translate)));
    assert_eq!((data.clips[1].language, data.clips[1].task), (None, None));
    assert!((data.report.seconds - 3.0).abs() < 1e-3 && data.report.languages["fr"] == 1);
    assert_eq!(data.clips[1].source.line, 3);
    folder.text("m.tsv", "Path\tTranscription\na.wav\tone\n");
    assert_eq!(texts(&folder.load("m.tsv").unwrap()), ["one"]);
    folder.text("m.jsonl", "{\"audio\": {\"path\": \"a.wav\"}, \"sentence\": \"one\"}\n\n{\"file\": \"sub/b.wav\", \"text\": \"two\", \"locale\": \"pt-BR\"}\n");
    let data = folder.load("m.jsonl").unwrap();
    assert_eq!((texts(&data), data.clips[1].language), (vec!["one", "two"], Some("pt")));
    let options = Options { language: Some("de"), ..Options::default() };
    let data = Dataset::load(&folder.path("m.jsonl"), &options).unwrap();
    assert_eq!((data.clips[0].language, data.clips[1].language), (Some("de"), Some("pt")));
    let sound = data.clips[0].sound().unwrap();
    assert_eq!((sound.samples.len(), sound.start), (16_000, 0.0));
}

#[test]
fn common_voice_and_pairs() {
    let folder = Folder::new();
    for name in ["cv/clips/x.wav", "cv/clips/y.wav", "pairs/a.wav", "pairs/deep/b.wav"] {
        folder.sound(name, 0.5, &[]);
    }
    // A quotation mark in such a table is one.
    let header = "client_id\tpath\tsentence\tlocale\n";
    folder.text("cv/train.tsv", &format!("{header}1\tx.wav\t\"Oui\", dit-il.\tfr\n2\ty.wav\tNon\tfr\n"));
    folder.text("cv/dev.tsv", &format!("{header}1\tx.wav\t\"Oui\tfr\n"));
    assert_eq!(texts(&folder.load("cv").unwrap()), ["\"Oui\", dit-il.", "Non"]);
    assert_eq!(texts(&folder.load("cv/dev.tsv").unwrap()), ["\"Oui"]);
    folder.text("cv/test.tsv", &format!("{header}1\tx.wav\n"));
    assert_eq!(folder.problems("cv/test.tsv"), ["cv/test.tsv:2: 2 fields, the header has 4"]);

    folder.text("pairs/a.txt", "\u{feff}one\r\ntwo\n");
    folder.text("pairs/deep/b.TXT", "three");
    folder.text("pairs/README.txt", "about this");
    assert_eq!(texts(&folder.load("pairs").unwrap()), ["one two", "three"]);
    folder.sound("pairs/c.wav", 0.5, &[]);
    folder.text("pairs/d.txt", "alone");
    folder.text("pairs/deep/b.flac", "x");
    let problems = folder.problems("pairs");
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems[0].starts_with("pairs/c.wav:1: its text is missing: write it into pairs/c.txt"));
    assert!(problems[1].contains("no sound of this name") && problems[2].contains("one sound for a text"));
    fs::create_dir(folder.path("none")).unwrap();
    assert!(folder.problems("none")[0].contains("there are no sounds in it"));
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let folder = Folder::new();
    folder.sound("a.wav", 1.0, &[]);
    folder.sound("long.wav", 31.0, &[]);
    folder.text(
        "m.csv",
        "path,text\nmissing.wav,one\na.wav,\nlong.wav,two\nb.m4a,three\na.wav,four\na.wav,five\n",
    );
    folder.text("b.m4a", "x");
    let problems = folder.problems("m.csv");
    assert_eq!(problems.len(), 5, "{problems:?}");
    assert!(
        problems.iter().any(|p| p.starts_with("m.csv:2: missing.wav: there is no such file")),
        "{problems:?}"
    );
    assert!(problems.iter().any(|p| p.starts_with("m.csv:3: the text of a.wav is empty")));
    assert!(problems.iter().any(|p| p.starts_with("m.csv:4: long.wav is 31.0 s long, Whisper hears 30 s")));
    assert!(problems.iter().any(|p| p.starts_with("m.csv:5: b.m4a: .m4a files are not read")));
    assert!(problems.iter().any(|p| p.starts_with("m.csv:7: the same sound has another text in m.csv:6")));
    folder.text("n.csv", "path,text\na.wav,one\na.wav,one\n");
    let data = folder.load("n.csv").unwrap();
    assert_eq!((data.clips.len(), data.report.rows, data.report.duplicates), (1, 2, 1));
    for (row, word) in [
        ("{\"audoi\": \"a.wav\", \"text\": \"x\"}", "is `audoi` meant"),
        ("{\"audio\": 3, \"text\": \"x\"}", "the sound is the number 3"),
        ("{\"audio\": \"a.wav\"}", "what is said is missing"),
        ("{\"audio\": \"a.wav\", \"text\": \"x\", \"language\": \"frnech\"}", "the nearest is `french`"),
        ("{\"audio\": \"a.wav\", \"text\": \"x\", \"task\": \"sing\"}", "`sing` is no task"),
        ("{\"audio\": \"a.wav\", \"text\": \"x\", \"start\": -1}", "`start` is -1"),
        (
            "{\"audio\": \"a.wav\", \"text\": \"x\", \"start\": 0.5, \"end\": 0.2}",
            "starts at 0.5 s and ends at 0.2 s",
        ),
        ("{\"audio\": \"a.wav\", \"text\": \"x\", \"start\": 0.5, \"end\": 2}", "`end` is 2 s, "),
        ("{\"audio\": \"long.wav\", \"text\": \"x\", \"start\": 0.0, \"end\": 30.5}", "more than the 30 s"),
        (
            "{\"audio\": \"a.wav\", \"segments\": [{\"start\": 1, \"text\": \"x\"}]}",
            "segment 1 has no start or no end",
        ),
        (
            "{\"audio\": \"long.wav\", \"segments\": [{\"start\": 0, \"end\": 31, \"text\": \"x\"}]}",
            "longer than the 30 s",
        ),
    ] {
        folder.text("one.jsonl", row);
        let problems = folder.problems("one.jsonl");
        assert!(
            problems[0].starts_with("one.jsonl:1: ") && problems[0].contains(word),
            "{row}: {problems:?}"
        );
    }
    folder.text("empty.csv", "path,text\n");
    assert!(folder.problems("empty.csv")[0].contains("there are no rows"));
}

#[test]
fn long_files_are_cut_in_their_pauses() {
    let folder = Folder::new();
    // Quiet from 19.8 to 20.2 and from 39.9 to 40.3.
    folder.sound("long.wav", 50.0, &[(19.8, 20.2), (39.9, 40.3)]);
    let row = "{\"path\": \"long.wav\", \"segments\": [{\"start\": 0.5, \"end\": 10, \"text\": \" one\"}, {\"start\": 10, \
               \"end\": 19.7, \"text\": \"two \"}, {\"timestamp\": [20.5, 39.8], \"text\": \"three\"}, {\"start\": 40.4, \"end\": 50, \
               \"text\": \"four\"}, {\"start\": 50, \"end\": 50.01, \"text\": \" \"}]}";
    folder.text("m.jsonl", row);
    let data = folder.load("m.jsonl").unwrap();
    assert_eq!(texts(&data), ["one two", "three four"]);
    let first = data.clips[0].sound().unwrap();
    let end = first.start + sound::seconds(first.samples.len());
    assert!(first.start < 0.5 && (19.8..=20.2).contains(&end), "{} {end}", first.start);
    let second = data.clips[1].sound().unwrap();
    assert!((20.0..20.5).contains(&second.start) && second.samples.len() <= 30 * 16_000, "{}", second.start);
    // Times are counted from the cut.
    let names = tokenizer(true);
    let tokens = SpeechTokens::new(&names, None).unwrap();
    let request = Request { language: Some("en"), timestamps: true, ..Request::default() };
    let labels = data.clips[1].labels(&tokens, &names, request, second.start).unwrap();
    let time = tokens.time(labels.ids[3]).unwrap();
    assert!((time - (20.5 - second.start)).abs() <= 0.02, "{time}");
    assert!(data.check(&tokens, &names, request, || ()).is_ok());
    // Rows with times of their own are parts of a file.
    folder.text("n.csv", "audio,text,start,end\nlong.wav,one,0.5,19.7\nlong.wav,two,20.4,39.8\n");
    let data = folder.load("n.csv").unwrap();
    let sounds: Vec<Sound> = data.clips.iter().map(|clip| clip.sound().unwrap()).collect();
    let end = sounds[0].start + sound::seconds(sounds[0].samples.len());
    assert!((19.7..20.4).contains(&end) && sounds[1].start >= 19.9, "{end} {}", sounds[1].start);
}

#[test]
fn what_is_broken_inside_is_found_before_training() {
    let folder = Folder::new();
    folder.sound("silent.wav", 2.0, &[(0.0, 9.0)]);
    folder.sound("good.wav", 2.0, &[]);
    folder
        .text("m.csv", &format!("audio,text\nsilent.wav,one\ngood.wav,two\ngood2.wav,{}\n", "x".repeat(500)));
    folder.sound("good2.wav", 1.0, &[]);
    let data = folder.load("m.csv").unwrap();
    let names = tokenizer(true);
    let tokens = SpeechTokens::new(&names, None).unwrap();
    let request = Request { language: Some("en"), ..Request::default() };
    let done = std::sync::atomic::AtomicUsize::new(0);
    let count = || {
        done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    };
    let message = data.check(&tokens, &names, request, count).unwrap_err().to_string();
    assert!(message.contains("m.csv:2: ") && message.contains("is silent for all of its 2.0 s"), "{message}");
    assert!(message.contains("m.csv:4: the transcript takes 506 tokens"), "{message}");
    assert_eq!((message.lines().count(), done.into_inner()), (2, 3));
}

#[test]
fn splits_keep_files_together() {
    let folder = Folder::new();
    let mut manifest = "audio,text,start,end\n".to_string();
    for i in 0..20 {
        folder.sound(&format!("{i}.wav"), 1.0, &[]);
        manifest += &format!("{i}.wav,one,0,0.5\n{i}.wav,two,0.5,1\n");
    }
    folder.text("m.csv", &manifest);
    let split = |seed| folder.load("m.csv").unwrap().split([0.1, 0.1], seed).unwrap();
    let [train, validation, test] = split(1);
    assert_eq!((train.clips.len(), validation.clips.len(), test.clips.len()), (32, 4, 4));
    let files = |data: &Dataset| data.clips.iter().map(|clip| clip.content).collect::<BTreeSet<u64>>();
    assert!(files(&train).is_disjoint(&files(&test)) && files(&validation).is_disjoint(&files(&test)));
    assert_eq!(split(1)[2].clips, test.clips);
    assert_ne!(split(2)[2].clips, test.clips);
    assert!(folder.load("m.csv").unwrap().split([0.5, 0.5], 1).is_err());
}

#[test]
fn rows_that_are_too_long_are_refused_together_or_left_out() {
    let folder = Folder::new();
    folder.sound("short.wav", 1.0, &[]);
    folder.sound("long.wav", 31.0, &[]);
    folder.sound("longer.wav", 70.0, &[]);
    folder.text(
        "m.jsonl",
        concat!(
            "{\"audio\": \"short.wav\", \"text\": \"one\"}\n{\"audio\": \"long.wav\", \"text\": \"two\"}\n",
            "{\"audio\": \"longer.wav\", \"text\": \"three\"}\n",
            "{\"audio\": \"longer.wav\", \"start\": 1, \"end\": 40, \"text\": \"four\"}\n",
            "{\"audio\": \"longer.wav\", \"start\": 1, \"end\": 4, \"text\": \"five\"}\n"
        ),
    );
    let told = folder.problems("m.jsonl");
    assert_eq!(told.len(), 3, "{told:#?}");
    assert!(
        told[0].contains("m.jsonl:2")
            && told[0].contains("31.0 s long")
            && told[0].contains("skip_long = true")
    );
    assert!(told[1].contains("m.jsonl:3") && told[2].contains("m.jsonl:4"));
    let options = Options { skip_long: true, ..Options::default() };
    let data = Dataset::load(&folder.path("m.jsonl"), &options).unwrap();
    assert_eq!(texts(&data), ["one", "five"]);
    let lines: Vec<usize> = data.report.too_long.iter().map(|source| source.line).collect();
    assert_eq!(lines, [2, 3, 4]);
    // Nothing else is passed over.
    folder.text("bad.jsonl", "{\"audio\": \"none.wav\", \"text\": \"one\"}\n");
    assert!(Dataset::load(&folder.path("bad.jsonl"), &options).is_err());
}
