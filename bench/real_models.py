#!/usr/bin/env python3
"""Makes crates/model/tests/fixtures/real_NAME.json: what transformers computes in f32 with a GGUF file's own weights.

Needs torch, transformers and gguf:

  python bench/real_models.py MODEL.gguf STEP > crates/model/tests/fixtures/real_NAME.json     every STEP-th logit is kept
"""
import json, os, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = ("The lighthouse keeper counted 14 ships before noon, wrote their names into a blue book, and asked himself: "
        "why do three of them carry no flag? He climbed down the 212 steps, made tea, and waited for the evening boat.")
PROMPT, GREEDY = 24, 16


def main(path, step):
    folder, file = os.path.split(os.path.abspath(path))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, attn_implementation="eager").eval()
    ids = tokenizer(TEXT).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float()
        chosen = torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        all_ids = list(ids[:PROMPT])
        for _ in range(GREEDY):
            all_ids.append(int(model(torch.tensor([all_ids])).logits[0, -1].argmax()))
    rounded = lambda values: [round(float(v), 5) for v in values]
    print(json.dumps({
        "ids": ids, "step": step, "logits": [rounded(row[::step]) for row in logits[:PROMPT:4]], "every": 4,
        "log_probabilities": rounded(chosen), "prompt": PROMPT, "greedy": all_ids[PROMPT:]}))


main(sys.argv[1], int(sys.argv[2]))
