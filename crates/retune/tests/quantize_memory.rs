//! Quantising takes the memory of one tensor, not of the model. Alone in its program: memory is counted for all of it.

use std::path::Path;

use peakmem_alloc::{INSTRUMENTED_SYSTEM, PeakMemAlloc, PeakMemAllocTrait};
use retune::export::{ExportDtype, ExportOptions, write};
use retune::models::{LoadOptions, Model, StorageChoice, fresh};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: &PeakMemAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// What is decoded, encoded and compared at a time, and the program's own.
const BUFFERS: usize = 8 << 20;

#[test]
fn quantising_takes_the_largest_tensor_and_buffers() {
    let config = json!({
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 8192, "tie_word_embeddings": true
    });
    let largest = 4 * 8192 * 256;
    let folder = tempfile::tempdir().expect("folder");
    let at = |name: &str| folder.path().join(name);
    fresh::write_folder(Path::new("config.json"), &config, 1, None, &[], &at("model")).expect("model");
    let whole: u64 = 4 * Model::load(&at("model"), StorageChoice::F32)
        .expect("model")
        .params
        .iter()
        .map(|(_, p)| p.elements() as u64)
        .sum::<u64>();
    assert!(whole as usize > 2 * (largest + BUFFERS), "the test tells nothing: {whole}");
    for (from, to, out) in [
        ("model", "nf4", "nf4"),
        ("model", "int8", "int8"),
        ("model", "q8_0", "q8.gguf"),
        ("model", "q4_k", "q4.gguf"),
        ("model", "bf16", "bf16"),
        ("nf4", "f32", "f32"),
        ("q8.gguf", "q4_0", "again.gguf"),
    ] {
        retune_tensor::memory::trim();
        ALLOCATOR.reset_peak_memory();
        let dtype = ExportDtype::parse(to, true).expect("a type");
        let options = ExportOptions { dtype, ..ExportOptions::default() };
        let in_file = LoadOptions { in_file: true, ..LoadOptions::default() };
        let model = Model::load(&at(from), in_file).expect("model");
        let report = write(&model, &at(out), &options, &mut |_| {});
        let report = report.unwrap_or_else(|e| panic!("{from} to {to}: {e}"));
        drop(model);
        let peak = ALLOCATOR.get_peak_memory();
        assert!(peak <= largest + BUFFERS, "{from} to {to}: {peak} bytes, {largest} is the largest tensor");
        assert!(report.loss().elements * 4 == whole, "{from} to {to}");
        Model::load(&at(out), StorageChoice::AsIs).unwrap_or_else(|e| panic!("{to}: {e}"));
    }
}
