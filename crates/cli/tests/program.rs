//! The program as a whole: help, exit codes, errors, what needs no model.

mod common;

use common::{data, program, ran, retune};

#[test]
fn help_and_version() {
    let help = retune(&["--help"]).ok();
    assert!(help.stdout.contains("Usage: retune"));
    assert!(retune(&["--version"]).ok().stdout.starts_with("retune "));
    for command in help
        .stdout
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
    {
        let name = command.split_whitespace().next().unwrap();
        if name != "help" {
            let help = retune(&[name, "--help"]).ok();
            assert!(help.stdout.contains("Examples:"), "{name} has no examples");
        }
    }
}

#[test]
fn all_unknown_flags_are_named_at_once() {
    let ran = retune(&["fetch", "--jsn", "--colour", "x"])
        .failed(2, &["--jsn", "did you mean --json?", "--colour"]);
    assert_eq!(ran.stderr.lines().count(), 2);
    retune(&["fecth"]).failed(2, &["fetch"]);
}

#[test]
fn fetch_lists_and_names_the_nearest() {
    let lines = retune(&["fetch", "--json"]).ok().json_lines();
    assert!(lines.iter().any(|line| line["name"] == "smollm2"));
    let help = retune(&["fetch", "--help"]).ok().stdout;
    assert!(
        help.contains("vision models") && help.contains("yolov3-tiny") && help.contains("tiny "),
        "{help}"
    );
    retune(&["fetch", "smolm2"]).failed(2, &["did you mean \"smollm2\"?"]);
}

#[test]
fn fetch_without_clients_is_one_sentence() {
    let cache = tempfile::tempdir().unwrap();
    let mut command = program();
    command.args(["fetch", "smollm2"]).env("PATH", "/nowhere").env("RETUNE_CACHE", cache.path());
    let ran = ran(command.output().unwrap());
    let ran = ran.failed(65, &["no pip"]);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn inspect_knows_models_adapters_and_data() {
    let found =
        retune(&["inspect".into(), data("parity/llama_base_full"), "--json".into()]).ok().json_lines();
    assert_eq!(found[0]["kind"], "Hugging Face model folder");
    assert_eq!(found[0]["parameters"], 90_432);
    let text = retune(&["inspect".into(), data("parity/llama_lora")]).ok().stdout;
    assert!(text.contains("PEFT adapter") && text.contains("down_proj, gate_proj"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours in a pipe");
    let dir = tempfile::tempdir().unwrap();
    let rows = dir.path().join("rows.jsonl");
    std::fs::write(&rows, "{\"text\": \"a\"}\n\n{\"text\": \"b\"}\n").unwrap();
    assert!(retune(&["inspect".into(), rows]).ok().stdout.contains("rows             2"));
}

#[test]
fn wrong_paths_have_their_own_exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    retune(&["inspect".into(), path("absent.gguf")]).failed(74, &["absent.gguf"]);
    retune(&["inspect".into(), dir.path().to_path_buf()]).failed(65, &["config.json"]);
    std::fs::write(path("broken.jsonl"), "{\"a\": 1}\n{oops\n").unwrap();
    retune(&["inspect".into(), path("broken.jsonl")]).failed(65, &["broken.jsonl:2"]);
    std::fs::write(path("cut.safetensors"), "\x10\0\0").unwrap();
    retune(&["inspect".into(), path("cut.safetensors")]).failed(65, &["cut.safetensors"]);
}

#[test]
fn errors_are_json_with_json() {
    let ran = retune(&["inspect", "/nowhere", "--json"]);
    assert_eq!((ran.code, &ran.json_lines()[0]["code"]), (74, &serde_json::json!(74)));
}

#[test]
fn a_closed_pipe_is_no_failure() {
    use std::io::Read;
    let mut child = program()
        .arg("fetch")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(stderr, "");
}

#[test]
fn recipes_are_right() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // A folder's script gives the paths.
        let (path, given) = match path.is_dir() {
            true => (path.join("train.toml"), &["model", "data", "out"][..]),
            false => (path, &[][..]),
        };
        let key = |name| retune::run_file::keys::Key::find("", name).unwrap();
        let given: Vec<_> = given.iter().map(|name| (key(name), format!("some/{name}"))).collect();
        retune::run_file::RunFile::load(Some(&path), &given)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

#[test]
fn logits_are_those_of_pytorch_with_and_without_an_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("logits.safetensors");
    for (folder, adapter) in [("parity/llama_base_full", false), ("parity/llama_lora", true)] {
        let mut words =
            vec!["logits".into(), "--model".into(), data("parity/llama_base_full"), "--ids".into()];
        words.extend([data(folder).join("inputs.safetensors"), "--out".into(), out.clone()]);
        if adapter {
            words.extend(["--adapter".into(), data(folder)]);
        }
        retune(&words).ok();
        let [ours, reference] = [out.clone(), data(folder).join("logits.safetensors")].map(|path| {
            use retune_formats::TensorSource;
            retune_formats::safetensors::File::open(path).unwrap().read_f32("logits").unwrap()
        });
        assert_eq!(ours.len(), reference.len());
        let largest = reference.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        // Ours are zero at padding, where the reference holds what it computed there.
        let off = ours
            .iter()
            .zip(&reference)
            .filter(|(a, _)| **a != 0.0)
            .fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(off <= 1e-4 * largest, "{off}");
    }
}

#[test]
fn registries_are_printed() {
    assert!(retune(&["methods"]).ok().stdout.contains("lora"));
    assert_eq!(retune(&["models", "--json"]).ok().json_lines()[0]["name"], "llama");
}
