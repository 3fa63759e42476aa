"""Tokens a second of llama.cpp for the rows of `mixse bench`, as JSON.

    python bench/llama_cpp.py MODEL.gguf [TYPE ...]

TYPE is one of Q4_0, Q4_1, Q8_0, BF16, or `file` for the file as it is (the default). For another type the file's matrices are
brought into it first (in a temporary directory; their values are of no matter to the speed). Every row is measured as
`reference.py speed` measures it: greedy, generated tokens over the whole time with the prompt, two threads.

Needs `pip install xllamacpp==2026.10.11549 gguf numpy`, a build of llama.cpp for x86-64 with AVX2 that carries its C API. The
places of fields in two structures are those of that version; the call refuses another.
"""

import ctypes, json, os, sys, tempfile, time

import numpy

VERSION = "2026.10.11549"
THREADS = 2


class ModelParams(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint8 * 0x50)]


class ContextParams(ctypes.Structure):
    _fields_ = [
        ("n_ctx", ctypes.c_uint32), ("n_batch", ctypes.c_uint32), ("n_ubatch", ctypes.c_uint32), ("n_seq_max", ctypes.c_uint32),
        ("between", ctypes.c_uint32 * 3), ("n_threads", ctypes.c_int32), ("n_threads_batch", ctypes.c_int32),
        ("rest", ctypes.c_uint8 * (0xA8 - 0x24)),
    ]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32), ("token", ctypes.POINTER(ctypes.c_int32)), ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)), ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))), ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


def library():
    import xllamacpp
    if xllamacpp.__version__ != VERSION:
        sys.exit(f"xllamacpp {xllamacpp.__version__} is installed; this script knows the structures of {VERSION} only")
    print(xllamacpp.get_system_info().strip(), file=sys.stderr)
    lib = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    pointer = ctypes.c_void_p
    for name, result, arguments in [
        ("llama_backend_init", None, []),
        ("llama_model_default_params", ModelParams, []),
        ("llama_context_default_params", ContextParams, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, ModelParams]),
        ("llama_model_free", None, [pointer]),
        ("llama_init_from_model", pointer, [pointer, ContextParams]),
        ("llama_free", None, [pointer]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", ctypes.c_int32, [pointer]),
        ("llama_batch_init", Batch, [ctypes.c_int32] * 3),
        ("llama_batch_free", None, [Batch]),
        ("llama_decode", ctypes.c_int32, [pointer, Batch]),
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), [pointer, ctypes.c_int32]),
        ("llama_get_memory", pointer, [pointer]),
        ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
    ]:
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, pointer)(lambda *_: None)
    lib.llama_log_set(quiet, None)
    lib.quiet = quiet  # lives as long as the library
    lib.llama_backend_init()
    return lib


class Rows:
    """`rows` sequences of up to `length` tokens in one context."""

    def __init__(self, lib, model, rows, length):
        self.lib = lib
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        params = lib.llama_context_default_params()
        if (params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads) != (512, 2048, 512, 4):
            sys.exit("the defaults of llama_context_params are not where this script looks for them")
        params.n_ctx, params.n_batch, params.n_seq_max = rows * length, rows * length, rows
        params.n_threads = params.n_threads_batch = THREADS
        self.context = lib.llama_init_from_model(model, params)
        if not self.context:
            sys.exit(f"llama.cpp made no context for {rows} x {length} tokens")
        self.batch = lib.llama_batch_init(rows * length, 0, 1)

    def close(self):
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.context)

    def forget(self):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), False)

    def step(self, ids, start):
        """Greedy next tokens of all rows after `ids` (rows x tokens) at positions from `start`."""
        batch, (rows, tokens) = self.batch, ids.shape
        batch.n_tokens = rows * tokens
        wanted = []
        for row in range(rows):
            for i in range(tokens):
                at = row * tokens + i
                batch.token[at], batch.pos[at], batch.n_seq_id[at] = int(ids[row, i]), start + i, 1
                batch.seq_id[at][0], batch.logits[at] = row, i + 1 == tokens
            wanted.append(row * tokens + tokens - 1)
        if self.lib.llama_decode(self.context, batch):
            sys.exit("llama_decode failed")
        logits = [self.lib.llama_get_logits_ith(self.context, at) for at in wanted]
        return numpy.array([[numpy.ctypeslib.as_array(row, (self.vocabulary,)).argmax()] for row in logits])


def tokens_per_s(tokens, work, repeat=3):
    work()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return round(tokens / sorted(times)[len(times) // 2], 1)


def measure(lib, path):
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp did not load {path}")
    random = numpy.random.default_rng(0)
    result = {}
    rows = Rows(lib, model, 8, 512)
    ids = random.integers(5, 4000, (8, 512))
    result["prefill_8x512"] = tokens_per_s(8 * 512, lambda: (rows.forget(), rows.step(ids, 0)))
    rows.close()
    for count in (1, 16, 64):
        rows = Rows(lib, model, count, 128)
        ids = random.integers(5, 4000, (count, 64))

        def generate():
            rows.forget()
            last = rows.step(ids, 0)
            for position in range(64, 127):
                last = rows.step(last, position)

        result[f"generate_{count}x64"] = tokens_per_s(count * 64, generate, 1)
        rows.close()
    lib.llama_model_free(model)
    return result


def convert(path, kind, out):
    """The same model with its matrices in another type; vectors stay as they are."""
    import gguf
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        main = field.types[0]
        writer.add_key_value(field.name, field.contents(), main, field.types[-1] if main == gguf.GGUFValueType.ARRAY else None)
    kind = gguf.GGMLQuantizationType[kind]
    for tensor in reader.tensors:
        if len(tensor.shape) < 2:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        else:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    path, kinds = sys.argv[1], sys.argv[2:] or ["file"]
    lib = library()
    report = {}
    with tempfile.TemporaryDirectory() as work:
        for kind in kinds:
            file = path
            if kind != "file":
                file = os.path.join(work, f"{kind}.gguf")
                convert(path, kind, file)
            report[kind] = measure(lib, file)
            print(kind, report[kind], file=sys.stderr)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
