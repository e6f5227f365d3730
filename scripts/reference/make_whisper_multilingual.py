"""Makes a tiny random multilingual Whisper, and what transformers' `generate` hears and writes with it.

  python scripts/reference/make_whisper_multilingual.py [--out tests/data/whisper_multilingual] [--seed 3]

The folder is a whole model: config.json, generation_config.json, model.safetensors, tokenizer.json (bytes, and Whisper's special tokens of six
languages; times are not named, as in older files). `cases.safetensors` has the features [2, bands, frames]; `cases.json` for each clip the
probabilities of the languages behind the first token, and for each request the forced tokens and the greedy ids behind them: languages that
are named and detected, transcription and translation, without and with times. No text is longer than half of the decoder's positions.
"""
import argparse, json, pathlib, shutil
import torch
from reference import ROOT, save_file, versions, write_json

LANGUAGES = ["en", "zh", "de", "es", "fr", "ja"]
ROLES = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
BANDS, FRAMES, POSITIONS = 80, 48, 48
TIMES = 1501


def tokenizer(folder):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=ord)
    tok = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|startoftranscript|>"] + [f"<|{n}|>" for n in LANGUAGES + ROLES]
    tok.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    tok.save(str(folder / "tokenizer.json"))
    return {n: tok.token_to_id(n) for n in names}


def make_model(folder, ids, seed):
    import transformers as t
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    vocab = ids["<|notimestamps|>"] + 1 + TIMES
    config = t.WhisperConfig(vocab_size=vocab, num_mel_bins=BANDS, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
                             decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_source_positions=FRAMES // 2,
                             max_target_positions=POSITIONS, pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
                             suppress_tokens=None, begin_suppress_tokens=None)
    model = t.WhisperForConditionalGeneration(config)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if name != "model.encoder.embed_positions.weight":
                p.copy_(1 + 0.3 * torch.randn(p.shape, generator=g) if "norm.weight" in name else 0.5 * torch.randn(p.shape, generator=g))
        # times are many: less likely each, as in trained models; the end likelier, so that texts have one
        model.model.decoder.embed_tokens.weight[ids["<|notimestamps|>"] + 1:] *= 0.5
        model.model.decoder.embed_tokens.weight[end] *= 1.6
    own = [ids[f"<|{n}|>"] for n in ("startoftranscript", "translate", "transcribe", "startoflm", "startofprev", "nospeech")]
    model.generation_config = t.GenerationConfig(
        is_multilingual=True, lang_to_id={f"<|{n}|>": ids[f"<|{n}|>"] for n in LANGUAGES},
        task_to_id={n: ids[f"<|{n}|>"] for n in ("transcribe", "translate")}, no_timestamps_token_id=ids["<|notimestamps|>"],
        suppress_tokens=[1, 2, 7, 40] + own, begin_suppress_tokens=[32, end], max_initial_timestamp_index=50, return_timestamps=False,
        max_length=POSITIONS, pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start)
    model.save_pretrained(folder)
    return model.eval()


def greedy(model, x, prompt, language, task):
    """By `generate`: the ids behind the prompt, the end left out."""
    out = model.generate(x, max_new_tokens=POSITIONS // 2, num_beams=1, do_sample=False, language=language, task=task, return_timestamps=False,
                         return_dict_in_generate=True)["sequences"][0].tolist()
    assert out[:len(prompt)] == prompt, (out, prompt)
    return without_end(out[len(prompt):], model)


def greedy_with_times(model, x, prompt):
    """By transformers' own rules for times, one token after the other: `generate` cuts what it found into segments."""
    from transformers.generation import logits_process as rules
    c = model.generation_config
    processors = [rules.SuppressTokensLogitsProcessor(c.suppress_tokens), rules.SuppressTokensAtBeginLogitsProcessor(c.begin_suppress_tokens, len(prompt)),
                  rules.WhisperTimeStampLogitsProcessor(c, begin_index=len(prompt))]
    ids = torch.tensor([prompt])
    for _ in range(POSITIONS // 2):
        with torch.no_grad():
            scores = model(input_features=x, decoder_input_ids=ids).logits[:, -1]
        for processor in processors:
            scores = processor(ids, scores)
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
        if int(ids[0, -1]) == c.eos_token_id:
            break
    return without_end(ids[0, len(prompt):].tolist(), model)


def without_end(ids, model):
    end = model.generation_config.eos_token_id
    return ids[:ids.index(end)] if end in ids else ids


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default=ROOT / "tests" / "data" / "whisper_multilingual", type=pathlib.Path)
    ap.add_argument("--seed", type=int, default=3)
    args = ap.parse_args()
    torch.set_num_threads(1)
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    ids = tokenizer(args.out)
    model = make_model(args.out, ids, args.seed)
    names = {i: n for n, i in ids.items()}
    features = 0.7 * torch.randn(2, BANDS, FRAMES, generator=torch.Generator().manual_seed(args.seed + 1))
    save_file({"features": features.contiguous()}, str(args.out / "cases.safetensors"))
    clips = []
    for x in features.split(1):
        with torch.no_grad():
            logits = model(input_features=x, decoder_input_ids=torch.tensor([[ids["<|startoftranscript|>"]]])).logits[0, -1].double()
        spoken = torch.tensor([ids[f"<|{n}|>"] for n in LANGUAGES])
        p = logits[spoken].softmax(0)
        detected = names[int(model.detect_language(x, num_segment_frames=FRAMES)[0])].strip("<|>")
        written = []
        for language, task, times in [(None, "transcribe", False), ("fr", "transcribe", False), ("de", "translate", False), ("en", "transcribe", False),
                                      (None, "translate", True), ("ja", "transcribe", True)]:
            prompt = [ids["<|startoftranscript|>"], ids[f"<|{language or detected}|>"], ids[f"<|{task}|>"]] + ([] if times else [ids["<|notimestamps|>"]])
            found = greedy_with_times(model, x, prompt) if times else greedy(model, x, prompt, language, task)
            print(language or detected, task, times, found)
            written.append(dict(language=language, task=task, timestamps=times, prompt=prompt, ids=found))
        clips.append(dict(detected=detected, probabilities=dict(zip(LANGUAGES, p.tolist())), written=written))
    write_json(args.out / "cases.json", dict(**versions("torch", "transformers"), clips=clips))


if __name__ == "__main__":
    main()
