#!/usr/bin/env python3
"""Makes crates/model/tests/fixtures/{real,tokens,weights}_NAME.json: what transformers and gguf make of a real GGUF file.

Needs torch, transformers and gguf:

  python bench/real_models.py logits MODEL.gguf STEP > real_NAME.json          f32; every STEP-th logit is kept
  python bench/real_models.py tokens MODEL.gguf OTHER.json > tokens_NAME.json  the texts and chats of another such file
  python bench/real_models.py weights MODEL.gguf > weights_NAME.json           hashes of all weights as f32, by kind
"""
import hashlib, json, os, re, sys

TEXT = ("The lighthouse keeper counted 14 ships before noon, wrote their names into a blue book, and asked himself: "
        "why do three of them carry no flag? He climbed down the 212 steps, made tea, and waited for the evening boat.")
PROMPT, GREEDY = 24, 24
# Names of llama.cpp and of Hugging Face, for the architectures whose tensors are stored as they are (no permutation).
NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def parts(path):
    return os.path.split(os.path.abspath(path))


def logits(path, step):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    step = int(step)
    folder, file = parts(path)
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


def tokens(path, other):
    from transformers import AutoTokenizer
    folder, file = parts(path)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    if type(tokenizer).__name__ == "Qwen2Tokenizer":
        # The class and the model's own tokenizer.json normalise to NFC; a GGUF file cannot say so, and its conversion forgets it.
        from tokenizers import normalizers
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    with open(other) as f:
        other = json.load(f)
    texts = []
    for text in (row["text"] for row in other["texts"]):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        with_bos = tokenizer(text).input_ids
        bos = with_bos[:len(with_bos) - len(ids)]
        assert bos + ids == with_bos
        decoded = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        texts.append({"text": text, "ids": ids, "bos": bos, "decoded": decoded})
    chat = [{**row, "text": tokenizer.apply_chat_template(
        row["messages"], add_generation_prompt=row["add_generation_prompt"], tokenize=False)} for row in other["chat"]]
    line = lambda value: json.dumps(value, ensure_ascii=False)
    print('{"chat":' + line(chat) + ',\n"texts":[\n' + ",\n".join(map(line, texts)) + "\n]}")


def weights(path):
    import numpy as np
    from gguf import GGUFReader, dequantize
    reader = GGUFReader(path)
    by_kind = {}
    for tensor in reader.tensors:
        block, stem, kind = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", tensor.name).groups()
        by_kind.setdefault(f"{NAMES[stem]}.{kind}", []).append((int(block or 0), tensor))
    result = {}
    for kind, tensors in sorted(by_kind.items()):
        tensors.sort(key=lambda pair: pair[0])
        sha256 = hashlib.sha256()
        for _, tensor in tensors:
            sha256.update(np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), "<f4"))
        types = sorted({tensor.tensor_type.name for _, tensor in tensors})
        result[kind] = {"types": types, "tensors": len(tensors), "sha256": sha256.hexdigest()}
    print(json.dumps(result, indent=1))


{"logits": logits, "tokens": tokens, "weights": weights}[sys.argv[1]](*sys.argv[2:])
