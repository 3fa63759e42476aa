"""lm-evaluation-harness, unmodified, against a running server, and `mixse eval` on the same rows: the same scores.

    python lm_eval_agrees.py URL MIXSE [ARGUMENTS OF mixse eval]

A multiple-choice task (log-likelihoods) and one that generates, made from the check items of the built-in domains.
"""
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROWS = 24
DOMAINS = Path(__file__).parent.parent / "domains"


def items(domain):
    with open(DOMAINS / domain / "check.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def choice_rows():
    for item in items("knowledge"):
        options = re.findall(r"^([A-D])\. (.*)$", item["input"], re.MULTILINE)
        if item["answer"]["kind"] == "choice" and len(options) == 4:
            gold = [letter for letter, _ in options].index(item["answer"]["letter"])
            yield {"question": item["instruction"], "choices": [text for _, text in options], "gold": gold}


def number_rows():
    for item in items("math"):
        if re.fullmatch(r"-?[0-9]+", item["answer"]["value"]):
            yield {"question": f"{item['instruction']} {item['input']}".strip(), "gold": item["answer"]["value"]}


def write(folder):
    for name, rows in (("choices", choice_rows()), ("numbers", number_rows())):
        rows = list(rows)[:ROWS]
        assert len(rows) == ROWS, name
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        common = {
            "task": f"mixse_{name}", "dataset_path": "json", "test_split": "test",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
            "doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_target": "{{gold}}", "num_fewshot": 0,
        }
        if name == "choices":
            own = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
                   "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}
        else:
            own = {"output_type": "generate_until",
                   "generation_kwargs": {"until": ["\n\n", "Question:"], "max_gen_toks": 24, "do_sample": False},
                   "filter_list": [{"name": "first", "filter": [
                       {"function": "regex", "regex_pattern": "(-?[0-9]+)"}, {"function": "take_first"}]}],
                   "metric_list": [{"metric": "exact_match"}]}
        # JSON is YAML as well.
        (folder / f"{name}.yaml").write_text(json.dumps({**common, **own}))
    (folder / "choices.toml").write_text(
        'name = "mixse_choices"\ndata = "choices.jsonl"\nprompt = "Question: {{ question }}\\nAnswer:"\n'
        'answer = "{{ gold }}"\nchoices = "{{ choices }}"\n')
    (folder / "numbers.toml").write_text(
        'name = "mixse_numbers"\ndata = "numbers.jsonl"\nprompt = "Question: {{ question }}\\nAnswer:"\n'
        'answer = "{{ gold }}"\n[generate]\nuntil = ["\\n\\n", "Question:"]\nmax_tokens = 24\nmetric = "exact_match"\n'
        '[[generate.filter]]\nname = "first"\nregex = "(-?[0-9]+)"\n')


def results(folder):
    (file,) = folder.rglob("results_*.json")
    return json.loads(file.read_text())["results"]


def samples(folder):
    """The responses of every task, in the order of the rows."""
    found = {}
    for file in folder.rglob("samples_mixse_*.jsonl"):
        name = re.match(r"samples_(mixse_[a-z]+)_", file.name).group(1)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found[name] = [row["resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
    return found


def harness(folder, out, url, kind, tasks, *more):
    model = f"model=base,base_url={url},num_concurrent=4,max_retries=1,{more[0]}"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    subprocess.run(
        [sys.executable, "-m", "lm_eval", "--model", kind, "--model_args", model, "--include_path", folder, "--tasks",
         ",".join(f"mixse_{task}" for task in tasks), "--output_path", out, "--log_samples", *more[1:]],
        check=True, env=environment, stderr=subprocess.DEVNULL)


def own(folder, out, mixse, arguments, tasks, *more):
    files = ",".join(str(folder / f"{task}.toml") for task in tasks)
    subprocess.run([mixse, "eval", *arguments, "--tasks", files, "--out", out, "--log-samples", *more], check=True)


def compare(theirs, ours, tasks):
    scores = results(theirs), results(ours)
    for task in tasks:
        for name, value in scores[0][f"mixse_{task}"].items():
            if name.split(",")[0] in ("acc", "acc_norm", "exact_match"):
                other = scores[1][f"mixse_{task}"][name]
                print(f"{task} {name}: harness {value:.4f}, mixse {other:.4f}")
                assert abs(value - other) < 1e-9, (task, name)
    theirs, ours = samples(theirs), samples(ours)
    for task in tasks:
        a, b = theirs[f"mixse_{task}"], ours[f"mixse_{task}"]
        if task == "numbers":
            assert a == b, "generated texts differ"
            continue
        pairs = [(float(x[0][0]), float(y[0][0])) for r, s in zip(a, b, strict=True) for x, y in zip(r, s, strict=True)]
        largest = max(abs(x - y) for x, y in pairs)
        print(f"{len(pairs)} log-likelihoods differ by {largest:.1e} at most")
        assert largest < 1e-3


def main(url, mixse, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write(folder)
        both = ("choices", "numbers")
        harness(folder, folder / "a", f"{url}/v1/completions", "local-completions", both, "tokenizer_backend=remote")
        own(folder, folder / "b", mixse, arguments, both)
        compare(folder / "a", folder / "b", both)
        harness(folder, folder / "c", f"{url}/v1/chat/completions", "local-chat-completions", ("numbers",),
                "tokenizer_backend=none", "--apply_chat_template")
        own(folder, folder / "d", mixse, arguments, ("numbers",), "--chat")
        compare(folder / "c", folder / "d", ("numbers",))
        print("the harness gets from the server what mixse eval gets")


main(*sys.argv[1:])
