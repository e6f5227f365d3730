"""Loads what Retune's methods wrote into the tools whose files they are, and compares logits with Retune's own (CPU, f32).

  RETUNE_EXCHANGE=/tmp/exchange cargo test -p retune --test conformance law_4
  python scripts/reference/check_exchange.py /tmp/exchange [--adapters-python PYTHON]

PEFT's folders are loaded with `peft`, whole models with transformers, Retune's deltas by putting their values into the base. AdapterHub's want the
package `adapters`, which needs an older transformers: name a python that has it (`scripts/reference/setup.sh adapterhub` makes one), else they are
skipped and named. Prints one line a case. Exit status: 0 all right, 1 something differs.
"""
import argparse, json, os, pathlib, subprocess, sys, warnings
import torch

CLASSES = {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel", "bert": "BertForSequenceClassification"}
TOLERANCE = 1e-4


def tensors(path):
    from safetensors.torch import load_file
    return load_file(path)


def base_of(case, folder=None):
    import transformers
    name = case["name"].split(" on ")[1].split()[0]
    path = folder or case["base"]
    return getattr(transformers, CLASSES[name]).from_pretrained(path, dtype=torch.float32).eval()


def with_peft(case, folder):
    import peft
    with warnings.catch_warnings():
        warnings.simplefilter("error")          # PEFT only warns of tensors that are missing
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        return peft.PeftModel.from_pretrained(base_of(case), folder).eval()


def with_delta(case, folder):
    """Each named parameter takes its new values, or the differences of some entries; a linear without a bias may get one."""
    model = base_of(case)
    config, stored = json.loads((folder / "delta.json").read_text()), tensors(folder / "delta.safetensors")
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, what in config["tensors"].items():
            if what["kind"] == "sparse":
                flat = state[name].data.view(-1)
                flat[stored[f"{name}.indices"].long()] += stored[f"{name}.values"]   # differences
            elif name in state:
                state[name].data.copy_(stored[name].view_as(state[name]))
            else:                               # a bias that was not there, or a tied head's own weight
                module, parameter = name.rsplit(".", 1)
                setattr(model.get_submodule(module), parameter, torch.nn.Parameter(stored[name]))
    return model


def with_adapters(case, folder):
    import adapters
    from transformers import AutoModelForCausalLM
    name = case["name"].split(" on ")[1].split()[0]
    model = base_of(case)
    adapters.init(model)
    loaded = model.load_adapter(str(folder), with_head=False, use_safetensors=True)
    model.set_active_adapters(loaded)
    if name == "bert" and (folder / "head_config.json").exists():
        head = next(p for p in folder.iterdir() if p.name.startswith("model_head"))
        stored = {k.split(".", 2)[-1]: v for k, v in tensors(head).items()}
        weight = next(v for k, v in stored.items() if k.endswith("weight") and v.shape[0] == model.classifier.weight.shape[0])
        bias = next(v for k, v in stored.items() if k.endswith("bias") and v.shape[0] == weight.shape[0])
        with torch.no_grad():
            model.classifier.weight.copy_(weight), model.classifier.bias.copy_(bias)
    return model.eval()


def kind_of(folder):
    config = folder / "adapter_config.json"
    if config.exists():
        return "peft" if "peft_type" in json.loads(config.read_text()) else "adapters"
    return "delta" if (folder / "delta.json").exists() else "model"


LOADERS = {"peft": with_peft, "delta": with_delta, "adapters": with_adapters, "model": lambda case, folder: base_of(case, folder)}


def check(folder):
    """(kind, worst difference against the largest logit)."""
    case, expected = json.loads((folder / "case.json").read_text()), tensors(folder / "expected.safetensors")
    kind = kind_of(folder)
    model = LOADERS[kind](case, folder)
    worst = 0.0
    with torch.no_grad():
        for i in range(sum(key.startswith("ids.") for key in expected)):
            ids = expected[f"ids.{i}"].long()[None]
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            want = expected[f"logits.{i}"]
            logits = logits.reshape(want.shape)
            worst = max(worst, float((logits - want).abs().max() / want.abs().max()))
    return kind, worst


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folder", type=pathlib.Path)
    ap.add_argument("--adapters-python", help="a python with AdapterHub's adapters")
    ap.add_argument("--only", choices=LOADERS, help="cases of this kind alone (what --adapters-python is called with)")
    a = ap.parse_args()
    failed = checked = 0
    for folder in sorted(p for p in a.folder.iterdir() if (p / "case.json").exists()):
        kind = kind_of(folder)
        if (a.only and kind != a.only) or (not a.only and kind == "adapters"):
            continue
        checked += 1
        try:
            kind, worst = check(folder)
        except Exception as why:
            print(f"FAILED {folder.name}: {type(why).__name__}: {why}")
            failed += 1
            continue
        good = worst <= TOLERANCE
        failed += not good
        print(f"{'ok    ' if good else 'FAILED'} {folder.name} ({kind}): {worst:.1e}")
    if not a.only and any(kind_of(p) == "adapters" for p in a.folder.iterdir() if (p / "case.json").exists()):
        if a.adapters_python:
            done = subprocess.run([a.adapters_python, __file__, a.folder, "--only", "adapters"])
            failed += done.returncode != 0
        else:
            print("SKIPPED: AdapterHub's folders; no --adapters-python was given")
    if not checked:
        print("there was nothing to check")
    return 1 if failed or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
