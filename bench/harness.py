#!/usr/bin/env python3
"""Holds mixse's evaluation against lm-evaluation-harness 0.4.13.

    python bench/harness.py write    --data DIR --out DIR
    python bench/harness.py requests --data DIR --ours FILE
    python bench/harness.py run      --data DIR --out DIR --model HF_DIR [--limit N] [--tasks a,b] [--dtype float32]
    python bench/harness.py compare  --ours DIR --theirs DIR

`write` makes task files that include the harness's own and read the rows of DIR (the directory of `mixse eval
--bench-data`); `requests` builds every prompt without a model and compares it with the output of
`cargo run -p mixse-eval --example requests`; `run` evaluates a model; `compare` goes through the samples files of both, row by row.

It needs `pip install lm-eval==0.4.13` (and torch and transformers for `run`) and no network.
"""

import argparse
import ast
import glob
import json
import os
import re
import sys
import types
from pathlib import Path

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Our name, the harness's, and the worked examples that are compared.
TASKS = [
    ("mmlu", "mmlu", [0, 5]),
    ("bbh", "bbh_cot_fewshot", [3]),
    ("gsm8k_cot", "gsm8k_cot", [8]),
    ("humaneval", "humaneval", [0]),
    ("mbpp", "mbpp", [3]),
    ("hellaswag", "hellaswag", [0, 5]),
    ("piqa", "piqa", [0, 4]),
    ("truthfulqa_mc1", "truthfulqa_mc1", [0]),
    ("truthfulqa_mc2", "truthfulqa_mc2", [0]),
    ("triviaqa", "triviaqa", [0, 4]),
    ("nq_open", "nq_open", [0, 4]),
]


def rows(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def labelled(targets):
    return {"choices": list(targets), "labels": list(targets.values())}


def official(task, row):
    """A row of our directory in the fields of the official data set."""
    if task == "truthfulqa":
        return {**row, "mc1_targets": labelled(row["mc1_targets"]), "mc2_targets": labelled(row["mc2_targets"])}
    if task == "triviaqa":
        return {"question": row["question"], "answer": {"aliases": row["golden_answers"]}}
    if task == "hellaswag":
        return {"query": row["query"], "choices": row["choices"], "label": str(row["answer"])}
    return row


def stub_code_eval():
    """The metric of humaneval and mbpp is fetched from the network on import; prompts and completions do not need it."""
    import evaluate

    def compute(references, predictions, k):
        return {f"pass@{n}": 0.0 for n in k}, {}

    evaluate.load = lambda name: types.SimpleNamespace(compute=compute)


def harness_file(pattern):
    import lm_eval.tasks

    found = glob.glob(str(Path(lm_eval.tasks.__file__).parent / pattern))
    assert len(found) == 1, (pattern, found)
    return found[0]


def write(data, out):
    """One folder of task files; each includes the harness's definition and changes nothing but the data."""
    data, out = Path(data), Path(out)
    data = data / "eval" if (data / "eval").is_dir() else data
    out.mkdir(parents=True, exist_ok=True)

    def dump(name, content):
        path = (out / f"{name}.jsonl").resolve()
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in content), encoding="utf-8")
        return str(path)

    def task(name, include, files, **changes):
        # JSON is YAML. Names get a suffix, so that they do not clash with the harness's own.
        config = {
            "include": harness_file(include),
            "task": f"{name}_local",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files},
            **changes,
        }
        text = "\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in config.items())
        (out / f"{name}.yaml").write_text(text + "\n", encoding="utf-8")

    shots = rows(data / "fewshot/mmlu_dev_5shot.jsonl")
    questions = rows(data / "mmlu.jsonl")
    for subject in sorted({r["subject"] for r in questions}):
        of = lambda all_rows: [r for r in all_rows if r["subject"] == subject]
        files = {"test": dump(f"mmlu_{subject}", of(questions)), "dev": dump(f"mmlu_{subject}_dev", of(shots))}
        task(f"mmlu_{subject}", f"mmlu/default/mmlu_{subject}.yaml", files, tag=None)
    problems = rows(data / "bbh.jsonl")
    for kind in sorted({r["task"] for r in problems}):
        files = {"test": dump(f"bbh_{kind}", [r for r in problems if r["task"] == kind])}
        task(f"bbh_cot_fewshot_{kind}", f"bbh/cot_fewshot/{kind}.yaml", files)
    plain = [
        ("gsm8k_cot", "gsm8k/gsm8k-cot.yaml", "gsm8k", None, {"tag": None}),
        ("humaneval", "humaneval/humaneval.yaml", "humaneval", None, {}),
        ("mbpp", "mbpp/mbpp.yaml", "mbpp", None, {}),
        # The rows are prepared already.
        ("hellaswag", "hellaswag/hellaswag.yaml", "hellaswag", "hellaswag_10shot", {"tag": None, "process_docs": None}),
        ("piqa", "piqa/piqa.yaml", "piqa", "piqa_5shot", {}),
        ("truthfulqa_mc1", "truthfulqa/truthfulqa_mc1.yaml", "truthfulqa", None, {"tag": None}),
        ("truthfulqa_mc2", "truthfulqa/truthfulqa_mc2.yaml", "truthfulqa", None, {"tag": None}),
        ("triviaqa", "triviaqa/default.yaml", "triviaqa", "triviaqa_5shot", {}),
        ("nq_open", "nq_open/nq_open.yaml", "nq_open", "nq_open_5shot", {}),
    ]
    for name, include, file, fewshot, changes in plain:
        split = "validation" if fewshot or name.startswith("truthfulqa") else "test"
        files = {split: dump(name, [official(file, r) for r in rows(data / f"{file}.jsonl")])}
        if fewshot:
            pool = rows(data / f"fewshot/{fewshot}.jsonl")
            files["train"] = dump(f"{name}_train", [official(file, r) for r in pool])
        task(name, include, files, **changes)


def load(out, names, num_fewshot=None):
    """The harness's task objects, by our names."""
    from lm_eval.tasks import TaskManager

    stub_code_eval()
    manager = TaskManager(include_path=str(out))
    loaded = manager.load([f"{name}_local" for name in names])["tasks"]
    found = {}
    for name, task in loaded.items():
        if num_fewshot is not None:
            task.set_config(key="num_fewshot", value=num_fewshot)
        task.set_fewshot_seed(seed=1234)
        found[name.removesuffix("_local")] = task
    return found


def requests(out, ours):
    wanted = {}
    for row in rows(ours):
        wanted.setdefault((row["task"], row["num_fewshot"]), {})[row["doc_id"]] = row["arguments"]
    failed = 0
    totals = {}
    for shots in sorted({shots for _, shots in wanted}):
        names = [task for task, s in wanted if s == shots]
        for name, task in load(out, names, shots).items():
            task.build_all_requests()
            theirs = {}
            for instance in task.instances:
                context, second = instance.args[:2]
                if isinstance(second, dict):
                    second = {"until": second["until"], "max_gen_toks": second.get("max_gen_toks", 256)}
                theirs.setdefault(instance.doc_id, []).append([context, second])
            mine = wanted[name, shots]
            group = re.sub(r"^(mmlu|bbh_cot_fewshot)_.*", r"\1", name)
            total = totals.setdefault((group, shots), [0, 0])
            for doc_id in sorted(set(theirs) | set(mine)):
                total[0] += 1
                if mine.get(doc_id) == theirs.get(doc_id):
                    total[1] += 1
                    continue
                failed += 1
                if failed <= 5:
                    show_difference(f"{name} ({shots}-shot) row {doc_id}", mine.get(doc_id), theirs.get(doc_id))
    for (group, shots), (total, same) in sorted(totals.items()):
        print(f"{group:20} {shots}-shot  {same:5} of {total:5} rows have the same requests")
    return failed


def show_difference(where, ours, theirs):
    print(f"--- {where}")
    ours, theirs = json.dumps(ours), json.dumps(theirs)
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    print("ours:  ", ours[max(0, at - 80) : at + 80])
    print("theirs:", theirs[max(0, at - 80) : at + 80])


def run(out, model, names, limit, dtype, target, batch, num_fewshot, chat):
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    stub_code_eval()
    available = sorted(p.stem for p in Path(out).glob("*.yaml"))
    prefixes = [{"mmlu": "mmlu_", "bbh": "bbh_cot_fewshot_"}.get(n, n) for n in names]
    chosen = [n for n in available if any(n == p or (p.endswith("_") and n.startswith(p)) for p in prefixes)]
    lm = HFLM(pretrained=model, dtype=dtype, device="cpu", batch_size=batch)
    tracker = EvaluationTracker(output_path=target)
    results = lm_eval.simple_evaluate(
        model=lm,
        tasks=[f"{n}_local" for n in chosen],
        task_manager=TaskManager(include_path=str(out)),
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        log_samples=True,
        bootstrap_iters=0,
        confirm_run_unsafe_code=True,
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name, content in samples.items():
        tracker.save_results_samples(task_name=name, samples=content)


def samples(directory):
    """Samples by (task, filter), then by row. The newest file of a task counts."""
    found = {}
    for path in sorted(Path(directory).rglob("samples_*.jsonl")):
        name = re.match(r"samples_(.*)_\d{4}-\d\d-\d\dT.*\.jsonl", path.name).group(1).removesuffix("_local")
        by_filter = {}
        for row in rows(path):
            by_filter.setdefault((name, row["filter"]), {})[row["doc_id"]] = row
        found.update(by_filter)
    return found


def log_likelihoods(row):
    return [float(r[0]) for r in row["filtered_resps"]]


def same(ours, theirs, tolerance):
    """What differs between two samples of one row."""
    differences = []
    mine = [a["arg_0"] for a in ours["arguments"].values()]
    if mine != [a["arg_0"] for a in theirs["arguments"].values()]:
        differences.append("prompt")
    if isinstance(theirs["filtered_resps"][0], list) and theirs["output"] == "choice":
        largest = max(abs(a - b) for a, b in zip(log_likelihoods(ours), log_likelihoods(theirs)))
        if largest > tolerance:
            differences.append(f"log-likelihood by {largest:.4f}")
    else:
        if ours["resps"] != theirs["resps"]:
            differences.append("response")
        if ours["filtered_resps"] != theirs["filtered_resps"]:
            differences.append("answer")
    for metric in theirs["metrics"]:
        if metric.startswith("pass"):
            continue
        if abs(float(ours.get(metric, "nan")) - float(theirs[metric])) > 1e-3:
            differences.append(metric)
    return differences


def margin(row):
    """How close the two best choices are: a tie broken by rounding is no difference."""
    best = sorted(log_likelihoods(row))[-2:]
    return best[1] - best[0]


def compare(ours, theirs, tolerance):
    ours, theirs = samples(ours), samples(theirs)
    table, failed = {}, 0
    for key, of_task in sorted(theirs.items()):
        group = (re.sub(r"^(mmlu|bbh_cot_fewshot)_.*", r"\1", key[0]), key[1])
        counts = table.setdefault(group, {"rows": 0, "same": 0, "missing": 0, "score": [0, 0]})
        for doc_id, row in of_task.items():
            mine = ours.get(key, {}).get(doc_id)
            counts["rows"] += 1
            if mine is None:
                counts["missing"] += 1
                continue
            choice = row["metrics"] and row["metrics"][0] == "acc"
            row["output"] = "choice" if choice else "text"
            counts["score"][0] += float(mine[row["metrics"][0]])
            counts["score"][1] += float(row[row["metrics"][0]])
            found = same(mine, row, tolerance)
            if not found:
                counts["same"] += 1
                continue
            failed += 1
            close = f", best two within {margin(row):.5f}" if choice else ""
            print(f"{key[0]} {key[1]} row {doc_id}: {', '.join(found)}{close}")
            if not choice:
                show_difference("responses", mine["resps"], row["resps"])
    print("| task | filter | rows | same | missing | ours | theirs |\n|---|---|---|---|---|---|---|")
    for (task, name), c in table.items():
        n = max(c["rows"] - c["missing"], 1)
        mine, other = (s / n for s in c["score"])
        print(f"| {task} | {name} | {c['rows']} | {c['same']} | {c['missing']} | {mine:.4f} | {other:.4f} |")
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["write", "requests", "run", "compare"])
    parser.add_argument("--data")
    parser.add_argument("--out", default="harness-tasks", help="folder of the task files")
    parser.add_argument("--ours")
    parser.add_argument("--theirs", default="harness-results")
    parser.add_argument("--model")
    parser.add_argument("--tasks", default=",".join(ours for ours, _, _ in TASKS))
    parser.add_argument("--limit", type=int, help="rows of each task (of each subject of mmlu, each kind of bbh)")
    parser.add_argument("--num-fewshot", type=int, help="worked examples, where not the task's own number")
    parser.add_argument("--chat", action="store_true", help="as `mixse eval --chat --fewshot-as-turns`")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tolerance", type=float, default=2e-3, help="of log-likelihoods")
    args = parser.parse_args()
    if args.command in ("write", "requests", "run") and args.data:
        write(args.data, args.out)
    if args.command == "requests":
        sys.exit(bool(requests(args.out, args.ours)))
    if args.command == "run":
        run(args.out, args.model, args.tasks.split(","), args.limit, args.dtype, args.theirs, args.batch, args.num_fewshot, args.chat)
    if args.command == "compare":
        sys.exit(bool(compare(args.ours, args.theirs, args.tolerance)))


if __name__ == "__main__":
    main()
