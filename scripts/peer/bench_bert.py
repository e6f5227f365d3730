"""Training steps of a BERT sequence classifier (the real MiniLM) with transformers and PEFT. Prints one JSON line.

  python bench_bert.py METHOD --model FOLDER [--lengths lengths_sentences.json] [--steps 30] [--warm 3] [--threads 2]

METHOD: full, lora (r 8 on query and value), bitfit, adapter (bottleneck of 64, two a layer, written out here: AdapterHub's package wants an older
transformers), prompt (20 virtual tokens), prefix (20), ia3, dora, head. --lengths: {"batches": [[row lengths], ...]}, the first --warm not timed.
"""
import argparse, json, pathlib, time
from common import emit, rss_mib, run_steps, trainable

HERE = pathlib.Path(__file__).parent
METHODS = ["full", "lora", "dora", "ia3", "bitfit", "adapter", "prompt", "prefix", "head"]


def bottlenecks(model, size=64):
    """A bottleneck with GELU and skip behind the two dense layers of each block; its up-projection starts at zero."""
    import torch

    class Bottleneck(torch.nn.Module):
        def __init__(self, dense):
            super().__init__()
            self.dense = dense
            self.down, self.up = torch.nn.Linear(dense.out_features, size), torch.nn.Linear(size, dense.out_features)
            torch.nn.init.zeros_(self.up.weight), torch.nn.init.zeros_(self.up.bias)

        def forward(self, x):
            y = self.dense(x)
            return y + self.up(torch.nn.functional.gelu(self.down(y)))

    model.requires_grad_(False)
    for layer in model.bert.encoder.layer:
        layer.attention.output.dense, layer.output.dense = Bottleneck(layer.attention.output.dense), Bottleneck(layer.output.dense)
    model.classifier.requires_grad_(True)
    return model


def prepared(model, method):
    import peft
    task, qv = peft.TaskType.SEQ_CLS, ["query", "value"]
    configs = {
        "lora": lambda: peft.LoraConfig(task_type=task, r=8, lora_alpha=16, target_modules=qv),
        "dora": lambda: peft.LoraConfig(task_type=task, r=8, lora_alpha=16, target_modules=qv, use_dora=True),
        "ia3": lambda: peft.IA3Config(task_type=task, target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]),
        "prompt": lambda: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=20),
        "prefix": lambda: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=20),
    }
    if method in configs:
        return peft.get_peft_model(model, configs[method]())
    if method == "adapter":
        return bottlenecks(model)
    if method in ("bitfit", "head"):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("classifier") or (method == "bitfit" and name.endswith("bias")))
    return model


def batches_of(lengths, seed=1):
    import torch
    generator = torch.Generator().manual_seed(seed)
    for row_lengths in lengths:
        shape = (len(row_lengths), max(row_lengths))
        ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for i, n in enumerate(row_lengths):
            ids[i, :n] = torch.randint(1996, 29000, (n,), generator=generator)
            ids[i, 0], ids[i, n - 1], mask[i, :n] = 101, 102, 1
        labels = torch.randint(0, 2, (shape[0],), generator=generator)
        yield dict(input_ids=ids, attention_mask=mask, token_type_ids=torch.zeros_like(ids), labels=labels)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("method", choices=METHODS)
    ap.add_argument("--model", required=True, help="MiniLM's folder (`retune fetch minilm --print-path`)")
    ap.add_argument("--lengths", type=pathlib.Path, default=HERE / "lengths_sentences.json")
    ap.add_argument("--steps", type=int, default=30)
    ap.add_argument("--warm", type=int, default=3)
    ap.add_argument("--threads", type=int, default=2)
    a = ap.parse_args()
    import torch
    from transformers import AutoModelForSequenceClassification
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    before = rss_mib()
    model = prepared(AutoModelForSequenceClassification.from_pretrained(a.model, num_labels=2, dtype=torch.float32), a.method)
    lengths = json.loads(a.lengths.read_text())["batches"][: a.steps + a.warm]
    cpu, clock = time.process_time(), time.perf_counter()
    result = run_steps(model, list(batches_of(lengths)), warm=a.warm)
    busy = (time.process_time() - cpu) / (time.perf_counter() - clock) / a.threads
    emit(result, bench="bert", method=a.method, trainable=trainable(model), rss_before_model_mib=round(before, 1), cpu_util=round(busy, 3))


if __name__ == "__main__":
    main()
