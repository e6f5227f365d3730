"""The peers at generating: llama.cpp or transformers on SmolLM2's GGUF, on the CPU, greedy.

  python scripts/peer/bench_generate.py llama.cpp [--gguf FILE]
  python scripts/peer/bench_generate.py transformers               # the same weights expanded to f32

Prints one JSON line: `prompt_tok_s` (a prompt of --prompt tokens), `generate_tok_s` (--tokens after a short prompt), `peak_rss_mib`.
Each figure is the median of --repeat runs. The GGUF is RETUNE_SMOLLM2_GGUF, or fetched with pip as scripts/reference does.
"""
import argparse, json, os, pathlib, statistics, sys, time
from common import peak_rss_mib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "reference"))
WORDS = "The robot walked along the river and told everybody about the machines that it had seen. "


def llama_cpp(gguf, a):
    from llama_cpp import LlamaCpp
    import importlib.metadata
    engine = LlamaCpp(gguf, context=max(1024, a.prompt + a.tokens + 64), threads=a.threads)
    ids = engine.tokenize(WORDS * (a.prompt // 8))[:a.prompt]

    def once(prompt, count):
        body = {"prompt": prompt, "n_predict": count, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
        return engine.post("/completion", body)["timings"]
    once(ids[:16], 4)
    prompts = [once(ids, 1)["prompt_per_second"] for _ in range(a.repeat)]
    generated = [once(ids[:8], a.tokens)["predicted_per_second"] for _ in range(a.repeat)]
    return prompts, generated, {"xllamacpp": importlib.metadata.version("xllamacpp"), "cpu": engine.build.strip()}


def with_transformers(gguf, a):
    import torch, transformers
    from reference import load_base
    from make_tokenizer_cases import encode, tokenizers_of
    torch.set_num_threads(a.threads)
    model = load_base(gguf, attention="sdpa")
    model.config.use_cache = model.generation_config.use_cache = True
    ids = encode(tokenizers_of(gguf)[0], WORDS * (a.prompt // 8))[:a.prompt]

    def once(prompt, count):
        t0 = time.perf_counter()
        x = torch.tensor([prompt])
        model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=count, min_new_tokens=count, do_sample=False, use_cache=True, pad_token_id=2)
        return time.perf_counter() - t0
    with torch.no_grad():
        once(ids[:16], 4)
        prompts = [len(ids) / once(ids, 1) for _ in range(a.repeat)]
        generated = [a.tokens / once(ids[:8], a.tokens) for _ in range(a.repeat)]
    return prompts, generated, {"torch": torch.__version__, "transformers": transformers.__version__}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("engine", choices=["llama.cpp", "transformers"])
    ap.add_argument("--gguf")
    ap.add_argument("--prompt", type=int, default=512)
    ap.add_argument("--tokens", type=int, default=128)
    ap.add_argument("--repeat", type=int, default=3)
    ap.add_argument("--threads", type=int, default=2)
    a = ap.parse_args()
    from reference import smollm2_gguf
    gguf = smollm2_gguf(a.gguf)
    prompts, generated, versions = (llama_cpp if a.engine == "llama.cpp" else with_transformers)(gguf, a)
    print(json.dumps({"bench": "generate", "engine": a.engine, "model": gguf.name, "prompt_tokens": a.prompt, "generated_tokens": a.tokens,
                      "prompt_tok_s": round(statistics.median(prompts), 1), "generate_tok_s": round(statistics.median(generated), 1),
                      "prompt_tok_s_runs": [round(x, 1) for x in prompts], "generate_tok_s_runs": [round(x, 1) for x in generated],
                      "peak_rss_mib": round(peak_rss_mib(), 1), "threads": a.threads, "load1": round(os.getloadavg()[0], 2)} | versions), flush=True)


if __name__ == "__main__":
    main()
