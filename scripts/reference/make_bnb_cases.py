"""Models quantised by transformers + bitsandbytes on the CPU, and what they say.

  python scripts/reference/make_bnb_cases.py [--out tests/data]

Writes formats/bnb_int8.safetensors (the state of a Linear8bitLt 24 x 40 with a bias) and, from parity/{llama_base_full,gpt2_base,bert_base}, the folders
parity/{llama_int8,gpt2_nf4,bert_fp4} as `save_pretrained` writes them (gpt2_nf4 with double quantisation, bert_fp4 without), with logits.safetensors of the
dequantised model (LLM.int8 rounds activations too, which Retune does not), inputs the base's, and meta.json with the names of the modules that were quantised.
"""
import argparse, json, pathlib, shutil
import torch
from reference import ROOT, load_file, save_file


def quantised(model):
    return sorted(n for n, m in model.named_modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt"))


def folder(out, base, cls, inputs, **settings):
    from transformers import BitsAndBytesConfig
    config = BitsAndBytesConfig(**settings)
    model = cls.from_pretrained(base, quantization_config=config, dtype=torch.float32, attn_implementation="eager").eval()
    names = quantised(model)
    shutil.rmtree(out, ignore_errors=True)
    model.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    plain = cls.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").dequantize().eval()
    tokens = {k: v for k, v in load_file(inputs).items() if k in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        logits = plain(**tokens).logits.contiguous()
    save_file({"logits": logits.float()}, str(out / "logits.safetensors"))
    (out / "meta.json").write_text(json.dumps({"base": base.name, "quantised": names}, indent=1))
    print(out.name, len(names), names[:3], tuple(logits.shape))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default=ROOT / "tests/data", type=pathlib.Path)
    a = ap.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(5)
    import bitsandbytes as bnb
    from transformers import BertForSequenceClassification, GPT2LMHeadModel, LlamaForCausalLM
    layer = bnb.nn.Linear8bitLt(40, 24, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(torch.randn(24, 40), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu")
    layer(torch.randn(2, 40))
    state = {k: v.contiguous() for k, v in layer.state_dict().items()}
    print({k: (v.dtype, tuple(v.shape)) for k, v in state.items()})
    save_file(state, str(a.out / "formats/bnb_int8.safetensors"))
    p = ROOT / "tests/data/parity"
    folder(a.out / "parity/llama_int8", p / "llama_base_full", LlamaForCausalLM, p / "llama_base_full/inputs.safetensors", load_in_8bit=True)
    folder(a.out / "parity/gpt2_nf4", p / "gpt2_base", GPT2LMHeadModel, p / "gpt2_full/inputs.safetensors",
           load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    folder(a.out / "parity/bert_fp4", p / "bert_base", BertForSequenceClassification, p / "bert_full/inputs.safetensors",
           load_in_4bit=True, bnb_4bit_quant_type="fp4")


if __name__ == "__main__":
    main()
