#!/usr/bin/env python3
"""Retune beside its peers on this machine: speed, memory, start. What `docs/benchmarks.md` reports.

  scripts/bench.py                                   # every case, three rounds, ours and the peer in turn
  scripts/bench.py --cases full4x512,instr --rounds 5
  scripts/bench.py --no-peer                         # ours alone
  scripts/bench.py --isa avx2                        # both sides limited to AVX2
  scripts/bench.py --smoke                           # does it run at all? (tiny model, one round; no figure means anything)

Builds ours with cargo first. The peer needs the environment that scripts/reference/setup.sh makes ($RETUNE_REFERENCE_VENV, or
--peer-python). Waits for a quiet machine (load below 0.5) up to --wait minutes; where that fails every figure is marked as busy.
Prints tables and writes --out. Medians over the rounds; a ratio is the median of the rounds' own ratios.
"""
import argparse, datetime, json, os, pathlib, platform, statistics, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parents[1]
PEER = ROOT / "scripts" / "peer"
LENGTHS = PEER / "lengths_instruction.json"
AVX2 = {"RETUNE_KERNEL": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
BERT_METHODS = ["full", "lora", "bitfit", "adapter", "prompt", "prefix", "head"]
# 17 tokens of SmolLM2; four times 16 words and an end make about a row of 64.
WORDS = "The robot walked along the river and told everybody about the machines that it had seen. "

# The targets of the project: (what, at least or at most, value).
TARGETS = {
    "full4x512": [("speed_ratio", ">=", 1.35), ("peak_rss_mib", "<=", 2560), ("step_over_floor", "<=", 1.25)],
    "full4x512-gc": [("peak_rss_mib", "<=", 1228.8)],
    "instr": [("speed_ratio", ">=", 3.5), ("peak_rss_mib", "<=", 2560)],
    "storage-bf16": [("time_against_f32", "<=", 1.10), ("base_weights_mb", "<=", 271)],
    "storage-q4_1": [("time_against_f32", "<=", 1.20), ("base_weights_mb", "<=", 97)],
    "qlora": [("speed_ratio", ">=", 1.3), ("time_against_f32", "<=", 1.15)],
    "qlora-tinyllama": [("speed_ratio", ">=", 1.35), ("peak_rss_mib", "<=", 2252.8)],
    "qlora-tinyllama-gc": [("peak_rss_mib", "<=", 1331.2)],
    "generate": [("prompt_tok_s", ">=", 400), ("generate_tok_s", ">=", 100)],
    "first-loss": [("seconds", "<=", 1.0)],
    "help": [("seconds", "<=", 0.05)],
    "quickstart": [("seconds", "<=", 240), ("peak_rss_mib", "<=", 1536)],
    "bert-full": [("speed_ratio", ">=", 2.2), ("memory_ratio", ">=", 2)],
    "bert-head": [("later_speed_ratio", ">=", 20), ("memory_ratio", ">=", 5)],
} | {f"bert-{method}": [("speed_ratio", ">=", 2.2), ("memory_ratio", ">=", 5)] for method in ("lora", "bitfit", "adapter", "prompt", "prefix")}
CASES = ["full4x512", "full4x512-gc", "instr", "storage", "qlora", "generate", "start", "bert"]
ALL_CASES = CASES + ["qlora-tinyllama", "quickstart"]


def parse():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(ALL_CASES)} (default: all but qlora-tinyllama, which needs 8 GiB of disk, and quickstart, which needs the network)")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--steps", type=int, default=5, help="timed steps a round")
    ap.add_argument("--warm", type=int, default=2)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--isa", choices=["native", "avx2"], default="native", help="instruction set of both sides")
    ap.add_argument("--no-peer", action="store_true")
    ap.add_argument("--peer-python", type=pathlib.Path, help="python with torch, transformers and peft")
    ap.add_argument("--gguf", type=pathlib.Path, help="SmolLM2's GGUF (default: $RETUNE_SMOLLM2_GGUF, else the cache of `retune fetch smollm2`)")
    ap.add_argument("--minilm", type=pathlib.Path, help="MiniLM's folder (default: $RETUNE_TEST_MINILM, else the cache of `retune fetch minilm`)")
    ap.add_argument("--wait", type=float, default=10, help="minutes to wait for a quiet machine")
    ap.add_argument("--smoke", action="store_true", help="tiny shapes, one round, no waiting")
    ap.add_argument("--out", type=pathlib.Path, default=ROOT / "target" / "bench.json")
    a = ap.parse_args()
    a.cases = [c for c in a.cases.split(",") if c]
    if unknown := [c for c in a.cases if c not in ALL_CASES]:
        ap.error(f"no case {', '.join(unknown)}; there are {', '.join(ALL_CASES)}")
    if a.smoke:
        a.rounds, a.steps, a.warm, a.wait = 1, 2, 1, 0
    a.gguf = a.gguf or smollm2()
    a.minilm = a.minilm or minilm()
    a.python = None if a.no_peer else peer_python(a)
    return a


def cache():
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(os.environ.get("RETUNE_CACHE") or pathlib.Path(base) / "retune")


def smollm2():
    named = os.environ.get("RETUNE_SMOLLM2_GGUF")
    return pathlib.Path(named) if named else next(iter(sorted(cache().glob("*/SmolLM2-135M-Instruct.Q4_1.gguf"))), None)


def minilm():
    named = os.environ.get("RETUNE_TEST_MINILM")
    return pathlib.Path(named) if named else next(iter(sorted(cache().glob("minilm-*"))), None)


def peer_python(a):
    venv = os.environ.get("RETUNE_REFERENCE_VENV")
    python = a.peer_python or (pathlib.Path(venv) if venv else pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "retune/reference-venv") / "bin/python"
    if not python.exists():
        sys.exit(f"bench.py: no peer at {python}: run scripts/reference/setup.sh, name one with --peer-python, or use --no-peer")
    return python


def environment(a):
    """Environment of both sides. Some machines pin an OpenBLAS kernel for old builds; nobody here is to be held back by that."""
    env = {k: v for k, v in os.environ.items() if k not in AVX2 and not k.startswith("OPENBLAS_")}
    return env | {"OMP_NUM_THREADS": str(a.threads), "MKL_NUM_THREADS": str(a.threads), "RAYON_NUM_THREADS": str(a.threads)} | (AVX2 if a.isa == "avx2" else {})


class Missed(Exception):
    """A program that could not be measured: says why."""


def run(command, a):
    """(standard output, seconds, highest resident MiB) of a program, which must succeed."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen([str(c) for c in command], stdout=out, stderr=err, env=environment(a), cwd=ROOT)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        if child.returncode:
            tail = err.read().decode(errors="replace").strip().splitlines()[-3:]
            raise Missed(f"{pathlib.Path(command[0]).name} ended with {child.returncode}: {' | '.join(tail)}")
        return out.read().decode(), seconds, usage.ru_maxrss / 1024


def json_line(command, a):
    text, _, peak = run(command, a)
    line = json.loads(text.strip().splitlines()[-1])
    return line | {"peak_rss_mib": max(line["peak_rss_mib"], peak) if line.get("engine") != "retune" else line["peak_rss_mib"]}


def build(cases):
    """Paths of the benchmarks and the program, freshly built."""
    found = {}
    wanted = [["bench", "-p", "retune", "--bench", "train", "--bench", "generate", "--bench", "classify", "--no-run"]]
    if {"start", "quickstart"} & set(cases):
        wanted.append(["build", "--release", "-p", "retune-cli"])
    for arguments in wanted:
        done = subprocess.run(["cargo", *arguments, "--message-format=json-render-diagnostics"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit("bench.py: cargo could not build the benchmarks")
        for line in done.stdout.splitlines():
            message = json.loads(line)
            if message.get("executable"):
                found[message["target"]["name"]] = message["executable"]
    return found


def wait_for_quiet(minutes):
    """Whether the machine is quiet; waits for it."""
    end = time.monotonic() + 60 * minutes
    told = False
    while (load := os.getloadavg()[0]) >= 0.5:
        if time.monotonic() > end:
            return False
        if not told:
            print(f"waiting for a quiet machine (load {load:.1f}, wanted below 0.5, at most {minutes:g} minutes) ...", file=sys.stderr)
            told = True
        time.sleep(5)
    return True


class Bench:
    def __init__(self, a):
        self.a, self.programs = a, build(a.cases)
        self.model = "tiny" if a.smoke else "smol"
        self.results, self.busy = {}, False

    def ours(self, *arguments):
        a = self.a
        return json_line([self.programs["train"], "--model", self.model, "--steps", a.steps, "--warm", a.warm, "--threads", a.threads, "--json", *arguments], a)

    def peer(self, *arguments, method="lora"):
        a = self.a
        return json_line([a.python, PEER / "bench_llama.py", method, "--model", self.model, "--steps", a.steps, "--warm", a.warm,
                          "--threads", a.threads, "--budget", 600, *arguments], a)

    def in_turn(self, what, sides, wait=True):
        """Runs every side once a round; {side: [a line a round]}. A run that failed is named, and its line empty."""
        lines = {side: [] for side in sides}
        if wait:
            self.busy |= not wait_for_quiet(self.a.wait)
        for number in range(self.a.rounds):
            for side, measure in sides.items():
                try:
                    line = measure()
                except Missed as why:
                    print(f"{what}, {side}: {why}", file=sys.stderr)
                    lines[side].append({})
                    continue
                lines[side].append(line)
                speed = line.get("tok_s_real") or line.get("generate_tok_s") or line.get("seconds")
                print(f"{what}, round {number + 1}, {side}: {speed}", file=sys.stderr)
        return {side: runs for side, runs in lines.items() if any(runs)}

    def training(self, case, ours, peer):
        sides = {"retune": lambda: self.ours(*ours)} | ({"peft": lambda: self.peer(*peer)} if self.a.python else {})
        runs = self.in_turn(case, sides)
        if "retune" not in runs:
            return
        result = {key: middle(runs["retune"], key) for key in ("tok_s_real", "s_per_step_median", "peak_rss_mib", "peak_tensor_mib", "step_over_floor")}
        if "peft" in runs:
            result |= {f"peer_{key}": middle(runs["peft"], key) for key in ("tok_s_real", "s_per_step_median", "peak_rss_mib")}
            result["speed_ratio"] = ratio(runs["retune"], runs["peft"], "tok_s_real")
            result["memory_ratio"] = ratio(runs["peft"], runs["retune"], "peak_rss_mib")
        self.results[case] = {"figures": result, "runs": runs}

    def bert(self):
        a = self.a
        if not a.minilm:
            print("bert: no model: `retune fetch minilm` gets it, or name it with --minilm", file=sys.stderr)
            return
        size = ["--steps", 4, "--warm", 1] if a.smoke else []
        for method in BERT_METHODS:
            later = ["--epochs", 4] if method == "head" else []
            ours = [self.programs["classify"], "--method", method, "--model", a.minilm, "--threads", a.threads, "--json", *size, *later]
            sides = {"retune": lambda: json_line(ours, a)}
            if a.python:
                sides["peft"] = lambda: json_line([a.python, PEER / "bench_bert.py", method, "--model", a.minilm, "--threads", a.threads, *size], a)
            # These take seconds: the load is that of the method before.
            runs = self.in_turn(f"bert-{method}", sides, wait=method == BERT_METHODS[0])
            if "retune" not in runs:
                continue
            keys = ("tok_s_real", "tok_s_real_later_epochs", "s_per_step_median", "peak_rss_mib", "trainable")
            result = {key: middle(runs["retune"], key) for key in keys}
            if "peft" in runs:
                result |= {f"peer_{key}": middle(runs["peft"], key) for key in ("tok_s_real", "s_per_step_median", "peak_rss_mib", "trainable")}
                result["speed_ratio"] = ratio(runs["retune"], runs["peft"], "tok_s_real")
                result["memory_ratio"] = ratio(runs["peft"], runs["retune"], "peak_rss_mib")
                if result["tok_s_real_later_epochs"]:
                    result["later_speed_ratio"] = round(result["tok_s_real_later_epochs"] / result["peer_tok_s_real"], 1)
            self.results[f"bert-{method}"] = {"figures": result, "runs": runs}

    def qlora(self, model, case, ours, peer, f32):
        """NF4 with double quantisation on both sides; `f32`: also against our own f32."""
        self.model, before = "tiny" if self.a.smoke else model, self.model
        sides = {"retune": lambda: self.ours("--storage", "nf4+dq", "--no-floor", *ours)}
        if f32:
            sides["retune-f32"] = lambda: self.ours("--storage", "f32", "--no-floor", *ours)
        if self.a.python and peer is not None:
            sides["peft"] = lambda: self.peer(*peer, method="qlora")
        runs = self.in_turn(case, sides)
        self.model = before
        if "retune" not in runs:
            return
        keys = ("tok_s_real", "s_per_step_median", "base_weights_mb", "peak_rss_mib", "peak_tensor_mib")
        result = {key: middle(runs["retune"], key) for key in keys}
        if "retune-f32" in runs:
            result["time_against_f32"] = ratio(runs["retune"], runs["retune-f32"], "s_per_step_median")
        if "peft" in runs:
            result |= {f"peer_{key}": middle(runs["peft"], key) for key in ("tok_s_real", "s_per_step_median", "peak_rss_mib")}
            result["speed_ratio"] = ratio(runs["retune"], runs["peft"], "tok_s_real")
            result["memory_ratio"] = ratio(runs["peft"], runs["retune"], "peak_rss_mib")
        self.results[case] = {"figures": result, "runs": runs}

    def storage(self):
        storages = ["f32", "bf16", "q4_1", "q4_0", "q8_0", "nf4", "nf4+dq", "int8"]
        runs = self.in_turn("storage", {s: lambda s=s: self.ours("--storage", s, "--no-floor") for s in storages})
        for storage, lines in runs.items():
            figures = {key: middle(lines, key) for key in ("tok_s_real", "s_per_step_median", "base_weights_mb", "peak_rss_mib")}
            figures["time_against_f32"] = ratio(lines, runs.get("f32", []), "s_per_step_median")
            self.results[f"storage-{storage}"] = {"figures": figures, "runs": {"retune": lines}}

    def generate(self):
        a = self.a
        if not a.gguf:
            print("generate: no GGUF: `retune fetch smollm2` gets it, or name it with --gguf", file=sys.stderr)
            return
        size = ["--prompt", 64, "--tokens", 8, "--repeat", 1] if a.smoke else []
        sides = {"retune": lambda: json_line([self.programs["generate"], "--model", a.gguf, "--threads", a.threads, "--json", *size], a)}
        for engine in ["llama.cpp", "transformers"] if a.python else []:
            sides[engine] = lambda e=engine: json_line([a.python, PEER / "bench_generate.py", e, "--gguf", a.gguf, "--threads", a.threads, *size], a)
        runs = self.in_turn("generate", sides)
        for engine, lines in runs.items():
            keys = ("prompt_tok_s", "generate_tok_s", "generate_after_prompt_tok_s", "peak_rss_mib")
            name = "generate" if engine == "retune" else f"generate-{engine}"
            self.results[name] = {"figures": {key: middle(lines, key) for key in keys}, "runs": {engine: lines}}

    def program(self, *arguments):
        text, seconds, peak = run([self.programs["retune"], *arguments], self.a)
        return {"seconds": round(seconds, 4), "peak_rss_mib": round(peak, 1), "said": text[-200:]}

    def start(self):
        with tempfile.TemporaryDirectory() as folder:
            row = pathlib.Path(folder) / "row.jsonl"
            row.write_text(json.dumps({"text": WORDS * 4}) + "\n")
            sides = {"help": lambda: self.program("--help")}
            if self.a.gguf:
                sides["first-loss"] = lambda: self.program("eval", "--model", self.a.gguf, "--data", row, "--train-on", "all", "--max-length", 64)
            self.keep(self.in_turn("start", sides))

    def quickstart(self):
        self.keep(self.in_turn("quickstart", {"quickstart": lambda: self.program("quickstart")}))

    def keep(self, runs):
        for what, lines in runs.items():
            self.results[what] = {"figures": {key: middle(lines, key) for key in ("seconds", "peak_rss_mib")}, "runs": {"retune": lines}}

    def all(self):
        tiny = ["--seq", 64] if self.a.smoke else []
        for case in self.a.cases:
            if case == "full4x512":
                self.training(case, ["--case", "full4x512", *tiny], tiny)
            elif case == "full4x512-gc":
                self.training(case, ["--case", "full4x512", "--checkpoint", "--no-floor", *tiny], ["--gc", *tiny])
            elif case == "instr":
                self.training(case, ["--lengths", LENGTHS], ["--lengths", LENGTHS])
            elif case == "qlora":
                self.qlora("smol", case, tiny, tiny, f32=True)
            elif case == "qlora-tinyllama":
                shape = ["--bs", 1, *(tiny or ["--seq", 512])]
                self.qlora("tinyllama", case, shape, shape, f32=False)
                self.qlora("tinyllama", f"{case}-gc", ["--checkpoint", *shape], None, f32=False)
            else:
                getattr(self, case)()


def middle(lines, key):
    values = [line[key] for line in lines if line.get(key) is not None]
    return round(statistics.median(values), 4) if values else None


def ratio(over, under, key):
    """Median of the rounds' ratios."""
    values = [o[key] / u[key] for o, u in zip(over, under) if o and u]
    return round(statistics.median(values), 4) if values else None


def verdicts(results):
    """[(case, what, measured, sign, target, pass)] for every target whose figure was measured."""
    out = []
    for case, targets in TARGETS.items():
        for what, sign, target in targets:
            value = results.get(case, {}).get("figures", {}).get(what)
            if value is not None:
                out.append((case, what, value, sign, target, value >= target if sign == ">=" else value <= target))
    return out


def cell(value):
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 0.2 else f"{value:.3f}"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(cell(v) if isinstance(v, (int, float)) or v is None else v for v in row) + " |" for row in rows])


def markdown(bench, about):
    """The tables of docs/benchmarks.md."""
    r = {case: result["figures"] for case, result in bench.results.items()}
    parts = [f"{about['date']}, {about['cpu']}, {about['threads']} threads, {about['isa']}, kernel {about['kernel']}, "
             + ("**machine busy: figures are for orientation only**" if bench.busy else "quiet machine") + f", {about['rounds']} rounds, commit {about['commit']}."]
    training = [c for c in ("full4x512", "full4x512-gc", "instr") if c in r]
    if training:
        rows = [[c, r[c]["tok_s_real"], r[c].get("peer_tok_s_real"), r[c].get("speed_ratio"), r[c]["peak_rss_mib"], r[c].get("peer_peak_rss_mib"), r[c].get("step_over_floor")] for c in training]
        parts.append(table(["case", "Retune tok/s", "PEFT tok/s", "ratio", "Retune MiB", "PEFT MiB", "step / floor"], rows))
    qlora = [c for c in r if c.startswith("qlora")]
    if qlora:
        keys = ("tok_s_real", "peer_tok_s_real", "speed_ratio", "time_against_f32", "base_weights_mb", "peak_rss_mib", "peer_peak_rss_mib")
        head = ["NF4, double quantisation", "Retune tok/s", "PEFT tok/s", "ratio", "time / our f32's", "base weights MB", "Retune MiB", "PEFT MiB"]
        parts.append(table(head, [[c, *(r[c].get(key) for key in keys)] for c in qlora]))
    bert = [c for c in r if c.startswith("bert-")]
    if bert:
        rows = [[c[5:], r[c]["tok_s_real"], r[c].get("tok_s_real_later_epochs"), r[c].get("peer_tok_s_real"), r[c].get("speed_ratio"), r[c]["peak_rss_mib"],
                 r[c].get("peer_peak_rss_mib"), r[c].get("memory_ratio")] for c in bert]
        parts.append(table(["MiniLM classifier", "Retune tok/s", "later epochs", "PEFT tok/s", "ratio", "Retune MiB", "PEFT MiB", "ratio"], rows))
    storages = [c for c in r if c.startswith("storage-")]
    if storages:
        rows = [[c[8:], r[c]["tok_s_real"], r[c]["time_against_f32"], r[c]["base_weights_mb"], r[c]["peak_rss_mib"]] for c in storages]
        parts.append(table(["storage", "Retune tok/s", "time / f32's", "base weights MB", "MiB"], rows))
    engines = [c for c in r if c.startswith("generate")]
    if engines:
        rows = [[c[9:] or "Retune", r[c]["prompt_tok_s"], r[c]["generate_tok_s"], r[c]["generate_after_prompt_tok_s"], r[c]["peak_rss_mib"]] for c in engines]
        parts.append(table(["engine", "prompt tok/s", "generate tok/s", "after 512 tokens", "MiB"], rows))
    starts = [c for c in ("help", "first-loss", "quickstart") if c in r]
    if starts:
        parts.append(table(["program", "seconds", "MiB"], [[c, r[c]["seconds"], r[c]["peak_rss_mib"]] for c in starts]))
    if bench.a.smoke:
        return "\n\n".join(parts + ["A smoke test: no figure means anything."])
    rows = [[case, what, value, f"{sign} {target:g}", "pass" if good else "**miss**"] for case, what, value, sign, target, good in verdicts(bench.results)]
    parts.append(table(["case", "figure", "measured", "target", ""], rows))
    return "\n\n".join(parts)


def about(bench):
    cpu = next((l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    lines = [line for result in bench.results.values() for line in result["runs"].get("retune", [])]
    return {"date": datetime.date.today().isoformat(), "cpu": cpu, "threads": bench.a.threads, "isa": bench.a.isa, "rounds": bench.a.rounds,
            "kernel": next((line["kernel"] for line in lines if "kernel" in line), "unknown"), "commit": commit or "unknown"}


def main():
    a = parse()
    bench = Bench(a)
    try:
        bench.all()
    except KeyboardInterrupt:
        print("interrupted: what was measured so far follows", file=sys.stderr)
    facts = about(bench)
    a.out.parent.mkdir(parents=True, exist_ok=True)
    a.out.write_text(json.dumps({"about": facts, "busy": bench.busy, "results": bench.results}, indent=1) + "\n")
    print(markdown(bench, facts))
    print(f"\nwritten to {a.out}" + ("; THE MACHINE WAS BUSY" if bench.busy else ""), file=sys.stderr)


if __name__ == "__main__":
    main()
