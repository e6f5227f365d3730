"""Training steps of Whisper with transformers and PEFT, or transcription. Prints one JSON line.

  python bench_speech.py train lora|full|partial [--batch 8] [--tokens 20] [--steps 4] [--warm 1] [--threads 2]
  python bench_speech.py transcribe transformers|faster-whisper --model FOLDER --audio FILE.wav [--compute int8] [--repeat 5]

train: whisper-tiny.en's shape with random weights, features of 30 s. lora: rank 8 on q_proj and v_proj; partial: the decoder, the encoder runs
without gradients. transcribe: --model is the folder of CTranslate2's model.bin (`retune fetch whisper-tiny.en --print-path`); transformers is
given the same weights. Greedy, without times; the model is loaded before the clock starts, features are part of what is measured.
"""
import argparse, json, pathlib, statistics, struct, time
from common import peak_rss_mib, run_steps, trainable


def tiny_en():
    import transformers as t
    return t.WhisperConfig(vocab_size=51864, num_mel_bins=80, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
                           decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536, max_source_positions=1500, max_target_positions=448,
                           dropout=0.0, pad_token_id=50256, bos_token_id=50256, eos_token_id=50256, decoder_start_token_id=50257)


def train(a):
    import torch, transformers as t
    torch.manual_seed(0)
    model = t.WhisperForConditionalGeneration(tiny_en())
    model.config.use_cache = False
    if a.what == "lora":
        import peft
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    if a.what == "partial":
        model.requires_grad_(False)
        model.model.decoder.layers.requires_grad_(True)
        model.model.decoder.layer_norm.requires_grad_(True)
    features = torch.randn(a.batch, 80, 3000)
    labels = torch.randint(0, 50000, (a.batch, a.tokens))
    batch = dict(input_features=features, labels=labels)
    seconds = []
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-4, fused=True)
    model.train()
    for _ in range(a.warm + a.steps):
        start = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds.append(time.perf_counter() - start)
    return dict(method=a.what, batch=a.batch, tokens=a.tokens, trainable=trainable(model),
                s_per_step_median=round(statistics.median(seconds[a.warm:]), 4))


def ctranslate2(path):
    """Name -> array of a model.bin (version 6, docs/formats.md)."""
    import numpy as np
    with open(path, "rb") as f:
        def text():
            return f.read(struct.unpack("<H", f.read(2))[0])[:-1].decode()
        version, _, _ = struct.unpack("<I", f.read(4))[0], text(), f.read(4)
        out = {}
        for _ in range(struct.unpack("<I", f.read(4))[0]):
            name, rank = text(), f.read(1)[0]
            shape = struct.unpack(f"<{rank}I", f.read(4 * rank))
            kind, size = f.read(1)[0], struct.unpack("<I", f.read(4))[0]
            out[name] = np.frombuffer(f.read(size), {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}[kind]).reshape(shape)
        return out


def whisper_of(folder):
    """transformers' model with the weights of a CTranslate2 folder."""
    import torch, transformers as t
    values = {name: torch.from_numpy(value.astype("float32")) for name, value in ctranslate2(folder / "model.bin").items() if value.ndim}
    model = t.WhisperForConditionalGeneration(tiny_en())
    state = {}

    def norm(to, of):
        state[to + ".weight"], state[to + ".bias"] = values[of + "/gamma"], values[of + "/beta"]

    def linear(to, of):
        state[to + ".weight"], state[to + ".bias"] = values[of + "/weight"], values[of + "/bias"]

    for side in ("encoder", "decoder"):
        state[f"model.{side}.embed_positions.weight"] = values[f"{side}/position_encodings/encodings"]
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        for layer in range(4):
            to, of = f"model.{side}.layers.{layer}", f"{side}/layer_{layer}"
            for kind, name in (("self_attn", "self_attention"), ("encoder_attn", "attention")):
                if kind == "encoder_attn" and side == "encoder":
                    continue
                norm(f"{to}.{kind}_layer_norm", f"{of}/{name}/layer_norm")
                weights, biases = [], []
                for part in range(3):
                    at = f"{of}/{name}/linear_{part}"
                    if at + "/weight" in values:
                        weights.append(values[at + "/weight"]), biases.append(values[at + "/bias"])
                *packed, out = zip(weights, biases)
                weight, bias = torch.cat([w for w, _ in packed]), torch.cat([b for _, b in packed])
                for i, proj in enumerate(("q_proj", "k_proj", "v_proj")):
                    state[f"{to}.{kind}.{proj}.weight"] = weight[384 * i:384 * (i + 1)]
                    if proj != "k_proj":
                        state[f"{to}.{kind}.{proj}.bias"] = bias[384 * i:384 * (i + 1)]
                state[f"{to}.{kind}.out_proj.weight"], state[f"{to}.{kind}.out_proj.bias"] = out
            norm(f"{to}.final_layer_norm", f"{of}/ffn/layer_norm")
            linear(f"{to}.fc1", f"{of}/ffn/linear_0")
            linear(f"{to}.fc2", f"{of}/ffn/linear_1")
    for conv in ("conv1", "conv2"):
        linear(f"model.encoder.{conv}", f"encoder/{conv}")
    state["model.decoder.embed_tokens.weight"] = values["decoder/embeddings/weight"]
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.eval()


def samples(path):
    """Mono samples of a 16-bit wav of 16 kHz, or of 8 kHz by interpolation (speed does not depend on the values)."""
    import numpy as np, wave
    with wave.open(str(path)) as f:
        x = np.frombuffer(f.readframes(f.getnframes()), "<i2").astype("float32") / 32768
        rate = f.getframerate()
    return x if rate == 16000 else np.interp(np.arange(len(x) * 16000 // rate) * rate / 16000, np.arange(len(x)), x).astype("float32")


def transcribe(a):
    sound = samples(a.audio)
    if a.what == "transformers":
        import torch, transformers as t
        model = whisper_of(a.model)
        extractor = t.WhisperFeatureExtractor(feature_size=80)
        tokenizer = t.PreTrainedTokenizerFast(tokenizer_file=str(a.model / "tokenizer.json"))
        model.generation_config = t.GenerationConfig(
            eos_token_id=50256, pad_token_id=50256, decoder_start_token_id=50257, max_length=448, no_timestamps_token_id=50362, is_multilingual=False,
            begin_suppress_tokens=[220, 50256], suppress_tokens=json.loads((a.model / "config.json").read_text())["suppress_ids"],
            forced_decoder_ids=None, return_timestamps=False)

        def run():
            features = extractor(sound, sampling_rate=16000, return_tensors="pt").input_features
            with torch.no_grad():
                return tokenizer.decode(model.generate(features, num_beams=1, do_sample=False)[0], skip_special_tokens=True)
    else:
        from faster_whisper import WhisperModel
        model = WhisperModel(str(a.model), device="cpu", compute_type=a.compute, cpu_threads=a.threads)

        def run():
            segments, _ = model.transcribe(sound, beam_size=1, language="en", without_timestamps=True, temperature=0)
            return "".join(segment.text for segment in segments)
    text = run()
    seconds = []
    for _ in range(a.repeat):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    took = statistics.median(seconds)
    return dict(compute=a.compute if a.what != "transformers" else "float32", seconds=round(took, 4), sound_s=round(len(sound) / 16000, 2),
                real_time_factor=round(took * 16000 / len(sound), 4), text=text.strip())


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("bench", choices=["train", "transcribe"])
    ap.add_argument("what", choices=["lora", "full", "partial", "transformers", "faster-whisper"])
    ap.add_argument("--batch", type=int, default=8)
    ap.add_argument("--tokens", type=int, default=20)
    ap.add_argument("--steps", type=int, default=4)
    ap.add_argument("--warm", type=int, default=1)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--model", type=pathlib.Path)
    ap.add_argument("--audio", type=pathlib.Path)
    ap.add_argument("--compute", default="int8")
    ap.add_argument("--repeat", type=int, default=5)
    a = ap.parse_args()
    if a.what != "faster-whisper":
        import torch
        torch.set_num_threads(a.threads)
    line = train(a) if a.bench == "train" else transcribe(a)
    print(json.dumps(dict(engine=a.what if a.bench == "transcribe" else "torch", bench=a.bench, **line, peak_rss_mib=round(peak_rss_mib(), 1),
                          threads=a.threads)))


if __name__ == "__main__":
    main()
