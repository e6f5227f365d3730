"""Writes what scikit-learn, SciPy and seqeval say of small sets of predictions to tests/data/metrics.json.

  python -m venv ENV; ENV/bin/pip install scikit-learn==1.9.1 scipy==1.17.1 seqeval==1.2.2 numpy==2.4.6
  ENV/bin/python scripts/reference/make_metrics_cases.py [--out tests/data/metrics.json]

Apart from the other scripts' environment: it needs none of torch. No file but the one named is written.
"""
import argparse, importlib.metadata, json, pathlib, warnings
import numpy as np
import scipy.stats as st
import sklearn.metrics as sk
import seqeval.metrics as se

ROOT = pathlib.Path(__file__).resolve().parents[2]
AVERAGES = ("micro", "macro", "weighted")


def prf(truth, predicted, average, **more):
    p, r, f, _ = sk.precision_recall_fscore_support(truth, predicted, average=average, zero_division=0, **more)
    return dict(precision=float(p), recall=float(r), f1=float(f))


def per_class(truth, predicted, labels):
    p, r, f, s = sk.precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
    return [dict(precision=float(a), recall=float(b), f1=float(c), support=int(d)) for a, b, c, d in zip(p, r, f, s)]


def classes(name, k, truth, predicted):
    labels = list(range(k))
    return dict(name=name, classes=k, truth=truth, predicted=predicted, accuracy=float(sk.accuracy_score(truth, predicted)),
                matthews=float(sk.matthews_corrcoef(truth, predicted)), confusion=sk.confusion_matrix(truth, predicted, labels=labels).tolist(),
                per_class=per_class(truth, predicted, labels), **{a: prf(truth, predicted, a) for a in AVERAGES})


def label_sets(name, k, truth, predicted):
    hot = lambda rows: np.array([[int(i in row) for i in range(k)] for row in rows])
    t, p = hot(truth), hot(predicted)
    return dict(name=name, classes=k, truth=truth, predicted=predicted, accuracy=float(sk.accuracy_score(t, p)),
                per_class=per_class(t, p, list(range(k))), **{a: prf(t, p, a) for a in AVERAGES})


def numbers(name, truth, predicted):
    finite = lambda x: None if not np.isfinite(x) else float(x)
    t, p = (np.array(x, dtype=np.float32).astype(float) for x in (truth, predicted))
    return dict(name=name, truth=truth, predicted=predicted, mse=float(sk.mean_squared_error(t, p)), mae=float(sk.mean_absolute_error(t, p)),
                r2=float(sk.r2_score(t, p)), pearson=finite(st.pearsonr(t, p)[0]), spearman=finite(st.spearmanr(t, p)[0]))


def tags(name, truth, predicted):
    scores = lambda a: dict(precision=float(se.precision_score(truth, predicted, average=a, zero_division=0)),
                            recall=float(se.recall_score(truth, predicted, average=a, zero_division=0)),
                            f1=float(se.f1_score(truth, predicted, average=a, zero_division=0)))
    report = se.classification_report(truth, predicted, output_dict=True, zero_division=0)
    kinds = {k: dict(precision=float(v["precision"]), recall=float(v["recall"]), f1=float(v["f1-score"]), support=int(v["support"]))
             for k, v in report.items() if not k.endswith(" avg")}
    return dict(name=name, truth=truth, predicted=predicted, accuracy=float(se.accuracy_score(truth, predicted)), kinds=kinds,
                **{a: scores(a) for a in AVERAGES})


def interval(hits, n):
    r = st.binomtest(hits, n).proportion_ci(0.95, "wilson")
    return dict(hits=hits, n=n, low=float(r.low), high=float(r.high))


def folds(values):
    m, s = np.mean(values), st.sem(values)
    low, high = st.t.interval(0.95, len(values) - 1, m, s)
    return dict(values=list(map(float, values)), mean=float(m), low=float(low), high=float(high))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default=ROOT / "tests" / "data" / "metrics.json", type=pathlib.Path)
    args = ap.parse_args()
    warnings.filterwarnings("ignore")
    rng = np.random.default_rng(5)
    draw = lambda k, n: rng.integers(0, k, n).tolist()
    sets = lambda k, n: [sorted(np.flatnonzero(rng.random(k) < 0.35).tolist()) for _ in range(n)]
    five = draw(5, 60)
    noisy = [t if rng.random() < 0.6 else int(rng.integers(0, 5)) for t in five]
    x = rng.normal(size=25).round(2).tolist()
    y = [round(a * 0.7 + float(rng.normal()) * 0.4, 1) for a in x]
    bio = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
    rows = [[bio[i] for i in draw(7, n)] for n in (9, 14, 6, 1, 12)]
    guess = [[t if rng.random() < 0.8 else bio[int(rng.integers(0, 7))] for t in row] for row in rows]
    odd = [["O", "I-PER", "E-PER", "S-LOC", "B-PER", "E-PER", "I-LOC", "I-PER", "E-PER", "E-PER", "O"]]
    odd_guess = [["O", "B-PER", "E-PER", "S-LOC", "B-PER", "I-PER", "I-LOC", "I-PER", "I-PER", "E-PER", "S-PER"]]
    cases = dict(
        versions={n: importlib.metadata.version(n) for n in ("scikit-learn", "scipy", "seqeval", "numpy")},
        classes=[classes("two", 2, [0, 1, 1, 0, 1, 1, 0, 0, 1, 1], [0, 1, 0, 0, 1, 1, 1, 0, 1, 0]), classes("five", 5, five, noisy),
                 classes("one of them absent, one only predicted", 4, [0, 0, 1, 1, 1], [0, 3, 1, 1, 0]),
                 classes("all the same", 2, [1, 1, 1], [1, 1, 1]), classes("always the first", 3, [0, 1, 2, 1], [0, 0, 0, 0])],
        label_sets=[label_sets("random", 4, sets(4, 30), sets(4, 30)), label_sets("a label never true", 3, [[0], [], [0, 1]], [[0, 2], [], [1]])],
        numbers=[numbers("ties", x, y), numbers("constant prediction", [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]),
                 numbers("constant truth", [2.0, 2.0, 2.0], [2.0, 2.5, 2.0]), numbers("falling", [1.0, 2.0, 3.0, 4.0], [9.5, 3.0, 2.0, -1.0])],
        tags=[tags("random IOB2", rows, guess), tags("IOBES with breaks", odd, odd_guess), tags("nothing marked", [["O", "O"]], [["O", "B-PER"]])],
        wilson=[interval(564, 600), interval(0, 20), interval(20, 20), interval(1, 3)],
        folds=[folds([0.938, 0.942, 0.93, 0.945, 0.933]), folds([0.5, 0.7]), folds(np.linspace(0.8, 0.9, 40).round(4).tolist())],
    )
    args.out.write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
