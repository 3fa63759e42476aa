#!/usr/bin/env python3
"""Makes crates/model/tests/fixtures/agreement.json: what transformers and PEFT compute on tiny models.

The models are not stored: every weight is a formula of its name and index (SplitMix64, as in crates/model/src/random.rs), so
that the test builds the same ones. Needs torch, transformers, peft, safetensors and numpy:

  python bench/fixtures.py REFERENCE.py OUT.json      REFERENCE.py prints reference results (logits, generate, lora-train, xlora)
"""
import json, os, subprocess, sys, tempfile
import numpy as np
from safetensors.numpy import load_file, save_file

SIZES = dict(vocab_size=320, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=16, max_position_embeddings=512)
WINDOWS = dict(sliding_window=8, layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=24)
CASES = {
    "llama": ("llama", {}),
    "llama3-rope": ("llama", dict(tie_word_embeddings=True, rope_parameters=dict(
        rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=16))),
    "llama-linear-rope": ("llama", dict(rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0))),
    "mistral": ("mistral", dict(sliding_window=8)),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", WINDOWS),
    "gemma3": ("gemma3_text", WINDOWS),
}
IDS = [3, 17, 250, 9, 9, 101, 44, 7, 300, 12, 61, 5, 88, 140, 2, 19, 33, 270, 8, 77]
MODULES = {"self_attn": ["q_proj", "k_proj", "v_proj", "o_proj"], "mlp": ["gate_proj", "up_proj", "down_proj"]}
U64 = np.uint64


def mix(x):
    with np.errstate(over="ignore"):
        x = x + U64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
        return x ^ (x >> U64(31))


def stream(word):
    value = 0xCBF29CE484222325
    for byte in word.encode() + b"\xff":
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def values(name, shape, scale):
    """Uniform in +-scale; element i of the tensor is draw i of the stream named like the tensor."""
    with np.errstate(over="ignore"):
        first = mix(mix(np.full(1, 7 ^ 0x9E3779B97F4A7C15, U64)) + U64(stream(name)))
        bits = mix(first + np.arange(np.prod(shape), dtype=U64))
    unit = (bits >> U64(40)).astype(np.float32) / np.float32(2**24)
    return ((unit * np.float32(2) - np.float32(1)) * np.float32(scale)).reshape(shape)


def tiny(name, architecture, extra, out):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **{**SIZES, **extra}), dtype=torch.float32)
    shapes = {}
    tensors = {}
    for key, parameter in model.named_parameters():
        shape = list(parameter.shape)
        shapes[key] = shape
        tensors[key] = values(key, shape, 0.1 if len(shape) > 1 else 0.5)
        parameter.data.copy_(torch.from_numpy(tensors[key]))
    model.tie_weights()
    model.save_pretrained(out)
    with open(f"{out}/config.json") as f:
        return json.load(f), shapes


def adapter(out, tag, rank, alpha):
    tensors = {}
    for layer in range(SIZES["num_hidden_layers"]):
        for parent, names in MODULES.items():
            for name in names:
                d, m = SIZES["hidden_size"], SIZES["intermediate_size"]
                kv = SIZES["num_key_value_heads"] * SIZES["head_dim"]
                k, n = {"k_proj": (d, kv), "v_proj": (d, kv), "gate_proj": (d, m), "up_proj": (d, m), "down_proj": (m, d)}.get(name, (d, d))
                path = f"base_model.model.model.layers.{layer}.{parent}.{name}"
                tensors[f"{path}.lora_A.weight"] = values(f"{tag}:{path}.A", [rank, k], 0.2)
                tensors[f"{path}.lora_B.weight"] = values(f"{tag}:{path}.B", [n, rank], 0.05)
    os.makedirs(out, exist_ok=True)
    save_file(tensors, f"{out}/adapter_model.safetensors")
    with open(f"{out}/adapter_config.json", "w") as f:
        json.dump(dict(peft_type="LORA", task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, bias="none", lora_dropout=0.0,
                       target_modules=sum(MODULES.values(), []), base_model_name_or_path="tiny"), f)


def main(reference, out):
    def ask(*args):
        run = subprocess.run([sys.executable, reference, *map(str, args)], capture_output=True, text=True, check=True)
        return json.loads(run.stdout)

    def short(rows):
        """Every 5th logit of every position, to 8 digits."""
        return [[float(f"{v:.8g}") for v in row[::5]] for row in rows]

    result = {"ids": IDS, "cases": {}}
    ids = ",".join(map(str, IDS))
    for name, (architecture, extra) in CASES.items():
        with tempfile.TemporaryDirectory() as work:
            config, shapes = tiny(name, architecture, extra, f"{work}/model")
            for i, (rank, alpha) in enumerate([(4, 8), (4, 8), (3, 5)]):
                adapter(f"{work}/e{i}", f"e{i}", rank, alpha)
            rows = [{"prompt_ids": [int(v) for v in values(f"prompt{i}", [4 + i % 5], 150) + 155],
                     "target_ids": [int(v) for v in values(f"target{i}", [3 + i % 4], 150) + 155]} for i in range(12)]
            with open(f"{work}/rows.jsonl", "w") as f:
                f.writelines(json.dumps(row) + "\n" for row in rows)
            trained = ask("lora-train", f"{work}/model", f"{work}/e0", f"{work}/rows.jsonl", f"{work}/out", 20, 4, 1e-2)
            tensors = load_file(f"{work}/out/adapter_model.safetensors")
            save_file({"last.weight": values("router", [3, SIZES["hidden_size"]], 0.5), "last.bias": values("bias", [3], 0.5)},
                      f"{work}/router.safetensors")
            experts = [f"{work}/e{i}" for i in range(3)]
            mixed = ask("xlora", f"{work}/model", f"{work}/router.safetensors", 2, ids, *experts)
            result["cases"][name] = {
                "config": config, "shapes": shapes, "rows": rows,
                "logits": short(ask("logits", f"{work}/model", ids)["logits"]),
                "greedy": ask("generate", f"{work}/model", ids, 16)["ids"],
                "losses": trained["losses"],
                "trained": {key: [float(f"{v:.8g}") for v in tensors[key].flatten()[::97]] for key in sorted(tensors)},
                "xlora_alpha": mixed["alpha"], "xlora_logits": short(mixed["logits"]),
            }
            print(name, "done", file=sys.stderr)
    with open(out, "w") as f:
        json.dump(result, f, separators=(",", ":"))


main(*sys.argv[1:])
