//! A base that is quantised while it is loaded is never there whole in f32. Alone in its program: memory is counted for all of it.

use std::path::Path;

use retune::models::{Model, Quantisation, StorageChoice, fresh};
use retune_tensor::memory;
use serde_json::json;

#[test]
fn loading_takes_the_quantised_model_and_one_tensor() {
    let config = json!({
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 300, "tie_word_embeddings": true
    });
    let folder = tempfile::tempdir().expect("folder");
    let dir = folder.path().join("model");
    fresh::write_folder(Path::new("config.json"), &config, 1, None, &[], &dir).expect("model");
    memory::trim();
    let linears = 6 * (4 * 256 * 256 + 3 * 256 * 1024);
    // Tables and norms are held in f32.
    let rest = 4 * (300 * 256 + 13 * 256);
    for (code, double, bits) in [("nf4", true, 4.13), ("fp4", false, 4.5), ("int8", false, 8.2)] {
        memory::reset_peak();
        let before = memory::live_bytes();
        let how = Quantisation::from_name(code, double).expect("code");
        let model = Model::load(&dir, StorageChoice::Quantised(how)).expect("model");
        let held = (memory::live_bytes() - before) as f64;
        let exact = linears as f64 * bits / 8.0 + rest as f64;
        assert!(held <= 1.02 * exact && held >= 0.95 * exact, "{code}: {held} bytes, {exact} expected");
        let largest = 4 * 256 * 1024;
        let peak = memory::peak_bytes() - before;
        // The tensor in f32, and the strip that it is read by.
        assert!(peak as f64 <= held + 2.3 * largest as f64, "{code}: peak {peak}, held {held}");
        assert!(peak < 2 * linears, "{code}: {peak} is half of the model in f32");
        drop(model);
        assert_eq!(memory::live_bytes(), before, "{code}");
    }
}
