"""A small SentencePiece-BPE vocabulary made up here (equal scores on purpose) and llama.cpp's tokens of 250 texts: tests/data/tokenizer/sentencepiece_cases.json."""
import argparse, pathlib, random, tempfile

import gguf
import numpy as np

from llama_cpp import LlamaCpp
from reference import versions, write_json

WORDS = """the of and to in is you that it he was for on are as with his they at be this have from or one had by word
but not what all were we when your can said there use an each which she do how their if will up other about out many then
them these so some her would make like him into time has look two more write go see number no way could people my than
first water been call who oil its now find long down day did get come made may part hello world""".split()
CONTROL, UNKNOWN, USER_DEFINED, BYTE, NORMAL = 3, 2, 4, 6, 1
STRANGE = ["", " ", "  ", "   x", "x   ", "\n", "a\n\nb", "\t", "é", "ñandú", "東京", "🦀", "e\u0301", "<s>", "</s>", "<s>hello", "hello</s> world",
           "<s>[INST] hello [/INST] world</s>", "<think>", "the<think>of", " <think> ", "<unk>", "<0x0A>", "▁", "▁the", "the▁of", "a..b...c....", "<", "<s", "s>"]


def vocabulary(rng):
    pieces = {}
    for word in WORDS:
        for start in range(len(word)):
            for end in range(start + 1, len(word) + 1):
                if rng.random() < 0.3:
                    pieces[word[start:end]] = 0
                if start == 0 and rng.random() < 0.4:
                    pieces["▁" + word[:end]] = 0
    pieces |= dict.fromkeys("abcdefghijklmnopqrstuvwxyz.,!?<>/s▁é", 0) | dict.fromkeys(["▁▁", "▁▁▁", "...", "ñ", "東"], 0)
    order = list(pieces)
    rng.shuffle(order)
    tokens = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    tokens += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    tokens += [(piece, float(-(i // 4)), NORMAL) for i, piece in enumerate(order)]
    return tokens + [("<think>", 0.0, USER_DEFINED)]


def write_gguf(path, tokens):
    """The vocabulary in a one-layer model of zeros, so that llama.cpp loads it."""
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(512), w.add_embedding_length(32), w.add_block_count(1), w.add_feed_forward_length(32), w.add_head_count(1)
    w.add_head_count_kv(1), w.add_layer_norm_rms_eps(1e-5), w.add_rope_dimension_count(32), w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("llama"), w.add_token_list([t for t, _, _ in tokens]), w.add_token_scores([s for _, s, _ in tokens])
    w.add_token_types([k for _, _, k in tokens]), w.add_bos_token_id(1), w.add_eos_token_id(2), w.add_unk_token_id(0)
    square = {f"blk.0.{n}.weight": (32, 32) for n in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]}
    norms = {n: (32,) for n in ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"]}
    for name, shape in (square | norms | {"token_embd.weight": (len(tokens), 32), "output.weight": (len(tokens), 32)}).items():
        w.add_tensor(name, np.zeros(shape, np.float32))
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()


def texts(rng):
    letters = "abcdefghijklmnopqrstuvwxyz"
    for i in range(220):
        parts = [rng.choice(WORDS) if rng.random() < 0.8 else "".join(rng.choices(letters, k=rng.randint(1, 8))) for _ in range(rng.randint(1, 9))]
        yield rng.choice([" ", " ", " ", "", "  "]).join(parts) + rng.choice(["", ".", "...", "!", "\n", "é"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("tests/data/tokenizer"))
    out = parser.parse_args().out
    rng = random.Random(1)
    tokens = vocabulary(rng)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "vocabulary.gguf"
        write_gguf(path, tokens)
        llama = LlamaCpp(path)
        cases = [{"text": text, "ids": llama.tokenize(text)} for text in [*STRANGE, *texts(rng)]]
    write_json(out / "sentencepiece_cases.json", {
        "versions": versions("xllamacpp", "gguf"), "tokens": [t for t, _, _ in tokens], "scores": [s for _, s, _ in tokens],
        "token_types": [k for _, _, k in tokens], "texts": cases})


if __name__ == "__main__":
    main()
