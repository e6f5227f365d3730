"""Makes a GGUF file with the vocabulary of a small uncased BERT, and the ids that Hugging Face's tokenizer gives.

  python scripts/reference/make_bert_vocab_case.py [--out tests/data/tokenizer]

The vocabulary is written as llama.cpp's convert_hf_to_gguf.py does for BERT: special tokens as they are, `##ing` as `ing`, every other token with a phantom
space in front. Running it again gives the same bytes.
"""
import argparse, json, pathlib
import gguf, numpy as np, tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "the a of and to in is was for on with he she it they play walk talk film un able ##s ##ing ##ed ##er ##able ##ly cafe 東 京".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-()[]\"#▁"
TEXTS = ["The film was playing.", "", " ", "He talked, she WALKED unplayably!", "Café naïve façade", "東京 is 2 km (far)", "of the ##ing",
         "xyzzy" * 3, "q" * 120, "a\tb\nc\x00d\u200be", "don't re-do \"it\"", "ÀÉÎ õ ü", "emoji 😀 end", "It ▁is [unused0] #1"]
PAIRS = [("the film", "was able"), ("a", "")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/data/tokenizer")
    out = parser.parse_args().out
    tokens = list(dict.fromkeys(SPECIAL + ["[unused0]"] + WORDS + list(LETTERS) + [f"##{c}" for c in LETTERS]))
    tokenizer = tokenizers.Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(SPECIAL)

    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    types = [control if t in SPECIAL else normal for t in tokens]
    phantom = lambda t, kind: t if kind == control else t[2:] if t.startswith("##") else "\u2581" + t
    writer = gguf.GGUFWriter(str(out / "bert_vocab.gguf"), "bert")
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([phantom(t, kind) for t, kind in zip(tokens, types)])
    writer.add_token_types(types)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)
    writer.add_tensor("token_embd_norm.weight", np.ones(1, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    row = lambda e: {"ids": e.ids, "token_types": e.type_ids}
    cases = {"tokenizers": tokenizers.__version__, "gguf": "0.19.0",
             "texts": [{"text": t, **row(tokenizer.encode(t))} for t in TEXTS],
             "pairs": [{"text": a, "pair": b, **row(tokenizer.encode(a, b))} for a, b in PAIRS]}
    (out / "bert_vocab_cases.json").write_text(json.dumps(cases, ensure_ascii=True, indent=1) + "\n")
    print(len(tokens), "tokens,", len(TEXTS), "texts")


main()
