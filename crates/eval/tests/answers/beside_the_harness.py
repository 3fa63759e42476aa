"""The cases of cases.jsonl whose source is lm-evaluation-harness or Minerva, read by the harness itself (0.4.13).

    pip install 'lm_eval[math]==0.4.13'
    python beside_the_harness.py

Prints every case that it judges otherwise, and how many it judges alike.
"""
import json
import re
from pathlib import Path

from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import MultiChoiceRegexFilter, RegexFilter
from lm_eval.tasks.minerva_math import utils as minerva
from math_verify import parse, verify


def gsm8k(case):
    """flexible-extract and exact_match of gsm8k_cot."""
    flexible = RegexFilter(regex_pattern=r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
    found = flexible.apply([[case["response"]]], [{}])[0][0]
    ignored = [",", "\\$", "(?s).*#### ", "\\.$"]
    score = exact_match_hf_evaluate(
        predictions=[found], references=[case["gold"]], regexes_to_ignore=ignored, ignore_case=True)
    return score["exact_match"] == 1


def choice(case):
    """The multiple-choice pattern of bbh's and mmlu's flexible-extract."""
    document = {"choices": re.findall(r"^[A-D]\. (.*)$", case["input"], re.MULTILINE)}
    pattern = MultiChoiceRegexFilter(
        regex_pattern=r"(\([A-Z]\))", group_select=0, ignore_case=True, ignore_punctuation=True)
    return pattern.apply([[case["response"]]], [document])[0][0].strip("()") == case["gold"]


def math(case):
    """exact_match of minerva_math on what is announced or boxed."""
    announced = re.search(r"[Tt]he answer is (.*)", case["response"], re.DOTALL)
    try:
        if announced:
            answer = announced.group(1).strip().removesuffix(".")
            found = minerva.get_unnormalized_answer(f"Final Answer: The final answer is {answer}. I hope it is correct.")
        else:
            found = minerva.remove_boxed(minerva.last_boxed_only_string(case["response"]))
    except (AssertionError, TypeError):
        return False
    found, gold = minerva.normalize_final_answer(found), minerva.normalize_final_answer(case["gold"])
    return found == gold or bool(minerva.is_equiv(found, gold))


def math_verify(case):
    """math_verify of minerva_math."""
    return bool(verify(parse(case["gold"]), parse(case["response"])))


READINGS = [("GSM8K", gsm8k), ("the harness's multi_choice_regex", choice), ("Minerva", math), ("MATH", math),
            ("math_verify", math_verify)]
alike, otherwise = 0, 0
for line in (Path(__file__).parent / "cases.jsonl").read_text(encoding="utf-8").splitlines():
    case = json.loads(line)
    for source, reading in READINGS:
        if case["source"].startswith(source) and (case["kind"] != "choice" or reading is choice):
            if reading(case) == case["right"]:
                alike += 1
            else:
                otherwise += 1
                print(f"{case['response']!r} for {case['gold']!r}: {source} says {not case['right']}")
print(f"{alike} alike, {otherwise} otherwise")
