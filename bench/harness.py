#!/usr/bin/env python3
"""Holds mixse's evaluation against lm-evaluation-harness 0.4.13.

    python bench/harness.py write    --data DIR --out DIR
    python bench/harness.py requests --data DIR --ours FILE
    python bench/harness.py run      --data DIR --out DIR --model HF_DIR [--limit N] [--tasks a,b] [--dtype float32]
                                     [--batch-size N] [--num-fewshot N] [--chat [--fewshot-as-turns]] [--samples JSON]
                                     [--drafts OURS]
    python bench/harness.py compare  --ours DIR --theirs DIR [--differing FILE]

`write` makes task files that include the harness's own and read the rows of DIR (the directory of `mixse eval
--bench-data`); `requests` builds every prompt without a model and compares it with the output of
`cargo run -p mixse-eval --example requests`; `run` evaluates a model and says what time it took; `compare` goes through the samples
files of both, row by row. Padding a batch changes sums by rounding: give the rows that `compare` wrote to FILE to `run --samples FILE
--batch-size 1 --theirs DIR`, and compare again; the newest sample of a row counts.

It needs `pip install lm-eval==0.4.13` (and torch and transformers for `run`) and no network.
"""

import argparse
import ast
import glob
import json
import os
import re
import resource
import sys
import time
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


def chosen_rows(given):
    """`{"TASK": [ROW, …]}`, the text itself or the path of a file, as `mixse eval --samples` takes it."""
    text = given if given.lstrip().startswith("{") else Path(given).read_text(encoding="utf-8")
    # The harness numbers rows as if the list were sorted.
    return {task: sorted(set(of_task)) for task, of_task in json.loads(text).items()}


def seconds():
    """Wall-clock and processor time so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), usage.ru_utime + usage.ru_stime


def drafted(parent, model, drafts):
    """The harness's model class with a quicker greedy generation: a response that the other side gave is a draft.

    One pass over prompt and draft says which token the model itself would have written at each place. From the first other one
    on it generates token by token, so that what comes out is its own in any case. Prompts share the cache of their common beginning.
    """
    import torch
    from lm_eval.models.utils_hf import stop_sequences_criteria
    from transformers import DynamicCache

    class Drafted(parent):
        pasts = []
        passes = tokens = 0

        def tok_batch_encode(self, strings, **kwargs):
            self.asked = strings
            return super().tok_batch_encode(strings, **kwargs)

        def predict(self, past, ids, keep):
            """Logits of the last `keep` places of `ids`; `past` holds the tokens before them that it knows."""
            known, cache = past
            with torch.no_grad():
                out = self.model(torch.tensor([ids[len(known) :]]), past_key_values=cache, use_cache=True, logits_to_keep=keep)
            known.extend(ids[len(known) :])
            self.passes += 1
            return out.logits[0].argmax(-1).tolist()

        def past(self, ids):
            common = lambda known: next((i for i, (a, b) in enumerate(zip(known, ids)) if a != b), min(len(known), len(ids)))
            best = max(self.pasts, key=lambda p: common(p[0]), default=None)
            if best is None or common(best[0]) < 64:
                best = ([], DynamicCache(config=self.model.config))
                self.pasts.append(best)
            return best, common(best[0])

        def _model_generate(self, context, max_length, stop, **kwargs):
            assert context.shape[0] == 1 and not kwargs.get("do_sample"), "drafts are for greedy generation with batch size 1"
            prompt = context[0].tolist()
            room = max_length - len(prompt)
            draft = self.tokenizer(drafts.get(self.asked[0], ""), add_special_tokens=False).input_ids[:room]
            past, common = self.past(prompt)
            self.crop(past, min(common, len(prompt) - 1))
            own = self.predict(past, prompt + draft, len(draft) + 1)
            right = next((i for i, (a, b) in enumerate(zip(draft, own)) if a != b), len(draft))
            ids = prompt + draft[:right]
            self.crop(past, len(ids))
            stops = stop_sequences_criteria(self.tokenizer, stop, len(prompt), 1)
            following = own[right]
            while len(ids) < max_length:
                ids.append(following)
                if following == self.eot_token_id or any(c(torch.tensor([ids]), None) for c in stops):
                    break
                if len(ids) < max_length:
                    following = self.predict(past, ids, 1)[0]
            self.tokens += len(ids) - len(prompt)
            return torch.tensor([ids])

        @staticmethod
        def crop(past, length):
            known, cache = past
            if length < len(known):
                cache.crop(length - len(known))
                del known[length:]

    return Drafted(**model)


def run(args):
    begun = seconds()
    import lm_eval
    import torch
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    stub_code_eval()
    if args.threads:
        torch.set_num_threads(args.threads)
    names = args.tasks.split(",")
    only = chosen_rows(args.samples) if args.samples else None
    available = sorted(p.stem for p in Path(args.out).glob("*.yaml"))
    prefixes = [{"mmlu": "mmlu_", "bbh": "bbh_cot_fewshot_"}.get(n, n) for n in names]
    chosen = [n for n in available if any(n == p or (p.endswith("_") and n.startswith(p)) for p in prefixes)]
    if only is not None:
        # Without rows of its own, the harness would take all of a task.
        chosen = [n for n in chosen if only.get(n)]
    model = {"pretrained": args.model, "dtype": args.dtype, "device": "cpu", "batch_size": args.batch_size}
    if args.drafts:
        of_rows = (row for of_task in samples(args.drafts).values() for row in of_task.values())
        texts = ((row["arguments"]["gen_args_0"]["arg_0"], row["resps"][0][0]) for row in of_rows)
        lm = drafted(HFLM, model, {prompt: text for prompt, text in texts if isinstance(text, str)})
    else:
        lm = HFLM(**model)
    tracker = EvaluationTracker(output_path=args.theirs)
    loaded = seconds()
    results = lm_eval.simple_evaluate(
        model=lm,
        tasks=[f"{n}_local" for n in chosen],
        task_manager=TaskManager(include_path=str(args.out)),
        limit=args.limit,
        samples=only and {f"{n}_local": only[n] for n in chosen},
        num_fewshot=args.num_fewshot,
        apply_chat_template=args.chat,
        fewshot_as_multiturn=args.fewshot_as_turns,
        system_instruction=args.system,
        log_samples=True,
        bootstrap_iters=0,
        confirm_run_unsafe_code=True,
    )
    ended = seconds()
    if args.drafts:
        print(f"{lm.tokens} tokens in {lm.passes} passes")
    of_task = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=of_task)
    for name, content in of_task.items():
        tracker.save_results_samples(task_name=name, samples=content)
    rows = sum(len({s["doc_id"] for s in content}) for content in of_task.values())
    (load_wall, load_cpu), (wall, cpu) = ([b - a for a, b in zip(*p)] for p in [(begun, loaded), (loaded, ended)])
    print(
        f"{args.tasks}: {rows} rows, {args.dtype}, batch size {args.batch_size}, {torch.get_num_threads()} threads: {wall:.1f} s "
        f"({cpu:.1f} s of processor time), {wall / rows:.2f} s a row; before that {load_wall:.1f} s ({load_cpu:.1f} s) of loading"
    )


def samples(directory):
    """Samples by (task, filter), then by row. The newest sample of a row counts."""
    found = {}
    name = re.compile(r"samples_(.*)_(\d{4}-\d\d-\d\dT.*)\.jsonl")
    paths = [(name.match(path.name), path) for path in Path(directory).rglob("samples_*.jsonl")]
    for match, path in sorted(paths, key=lambda p: p[0].group(2)):
        task = match.group(1).removesuffix("_local")
        for row in rows(path):
            found.setdefault((task, row["filter"]), {})[row["doc_id"]] = row
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


def compare(ours, theirs, tolerance, differing):
    ours, theirs = samples(ours), samples(theirs)
    table, failed, again = {}, 0, {}
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
            again.setdefault(key[0], set()).add(doc_id)
            close = f", best two within {margin(row):.5f}" if choice else ""
            print(f"{key[0]} {key[1]} row {doc_id}: {', '.join(found)}{close}")
            if not choice:
                show_difference("responses", mine["resps"], row["resps"])
    if differing:
        text = json.dumps({task: sorted(of_task) for task, of_task in again.items()})
        Path(differing).write_text(text + "\n", encoding="utf-8")
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
    parser.add_argument("--samples", help="only these rows: JSON or a file of it, {\"TASK\": [ROW, …]}")
    parser.add_argument("--num-fewshot", type=int, help="worked examples, where not the task's own number")
    parser.add_argument("--chat", action="store_true", help="the model's chat template")
    parser.add_argument("--fewshot-as-turns", action="store_true", help="with --chat: worked examples as turns of the conversation")
    parser.add_argument("--system", help="with --chat: the system message")
    parser.add_argument("--drafts", help="quicker generation: our directory, whose responses are drafts")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tolerance", type=float, default=2e-3, help="of log-likelihoods")
    parser.add_argument("--differing", help="file for the rows that differ, for `run --samples`")
    args = parser.parse_args()
    if args.command in ("write", "requests", "run") and args.data:
        write(args.data, args.out)
    if args.command == "requests":
        sys.exit(bool(requests(args.out, args.ours)))
    if args.command == "run":
        run(args)
    if args.command == "compare":
        sys.exit(bool(compare(args.ours, args.theirs, args.tolerance, args.differing)))


if __name__ == "__main__":
    main()
