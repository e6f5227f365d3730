//! `retune merge --combine`: several adapters as one.

mod common;

use common::*;

#[test]
fn adapters_become_one_folder() {
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("both");
    let data = |name: &str| data("combine").join(name).display().to_string();
    let (a, b, to) = (data("a"), data("b"), out.display().to_string());
    let merge = |how: &[&str]| {
        let flags = ["merge", "--adapter", &a, "--adapter", &b, "--out", &to];
        retune(&[&flags[..], how].concat())
    };
    merge(&["--combine", "ties"]).failed(65, &["density"]);
    let done = merge(&["--combine", "ties", "--density", "0.5", "--adapter-weights", "0.7,-0.3"]).ok();
    assert!(done.stdout.contains("2 adapters by ties: rank 4, 2 modules"), "{}", done.stdout);
    assert!(out.join("adapter_model.safetensors").is_file());
    merge(&["--combine", "cat"]).failed(65, &["--overwrite"]);
    merge(&["--combine", "tias"]).failed(2, &["did you mean \"ties\"?"]);
}
