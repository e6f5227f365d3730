//! `retune convert`.

mod common;

use common::*;

#[test]
fn an_adapter_becomes_another_tools_files() {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let adapter = data("parity/llama_lora").display().to_string();
    let model = data("parity/llama_base_full").display().to_string();
    let done = retune(&["convert", &adapter, "--to", "mlx", "--out", &path("mlx")]).ok();
    assert!(done.stdout.contains("14 modules, for mlx"), "{}", done.stdout);
    retune(&["convert", &adapter, "--to", "mlx", "--out", &path("mlx")]).failed(65, &["--overwrite"]);
    retune(&["convert", &adapter, "--to", "gguf", "--out", &path("x.gguf")]).failed(65, &["--model"]);
    retune(&["convert", &adapter, "--to", "gguf", "--model", &model, "--out", &path("x.gguf")]).ok();
    let line = retune(&[
        "convert",
        &path("x.gguf"),
        "--to",
        "peft",
        "--model",
        &model,
        "--out",
        &path("back"),
        "--json",
    ]);
    assert_eq!(line.ok().json_lines()[0]["modules"], 14);
    retune(&["convert", &adapter, "--to", "mlxx", "--out", &path("y")]).failed(2, &["did you mean mlx"]);
    let dora = data("parity/llama_lora_dora").display().to_string();
    retune(&["convert", &dora, "--to", "gguf", "--model", &model, "--out", &path("z.gguf")])
        .failed(65, &["magnitude"]);
}
