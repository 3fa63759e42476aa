//! GGUF files: tensors in Hugging Face's convention, the configuration, and what is refused.

use std::path::Path;

use mixse_model::{
    config::{Architecture, ModelConfig, RopeScaling},
    weights::Checkpoint,
};

use mixse_testing::{
    gguf::{GgufFile, Meta, Stored},
    tiny,
};

pub(crate) fn open(file: &GgufFile) -> mixse_model::Result<Checkpoint> {
    open_bytes(&file.bytes())
}

/// The file is read again for every tensor, so it is kept for as long as the test runs.
pub(crate) fn open_bytes(bytes: &[u8]) -> mixse_model::Result<Checkpoint> {
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let (_, path) = file.keep().unwrap();
    let opened = Checkpoint::open(&path);
    if let Ok(checkpoint) = &opened {
        for (name, _) in checkpoint.config.tensors() {
            let _ = checkpoint.tensor(&name);
        }
    }
    std::fs::remove_file(&path).unwrap();
    opened
}

/// A file in a directory of its own, which goes when the test ends.
pub(crate) fn saved(file: &GgufFile) -> (tempfile::TempDir, Checkpoint) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    (directory, checkpoint)
}

pub(crate) fn values(checkpoint: &Checkpoint, name: &str) -> (Vec<usize>, Vec<f32>) {
    let tensor = checkpoint.tensor(name).unwrap();
    (tensor.dims().to_vec(), tensor.flatten_all().unwrap().to_vec1().unwrap())
}

fn config(file: &GgufFile) -> ModelConfig {
    open(file).unwrap().config
}

#[test]
fn every_architecture_gives_hugging_faces_tensors() {
    for architecture in tiny::ARCHITECTURES {
        let (_directory, checkpoint) = saved(&tiny::gguf(architecture));
        let expected = tiny::tensors(architecture);
        let mut asked: Vec<String> = checkpoint.config.tensors().into_iter().map(|(name, _)| name).collect();
        asked.sort();
        assert_eq!(asked, expected.keys().cloned().collect::<Vec<_>>(), "{architecture}");
        for (name, (_, shape, expected)) in expected {
            assert_eq!(values(&checkpoint, &name), (shape, expected), "{architecture} {name}");
        }
        assert!(checkpoint.tensor("model.layers.0.nothing.weight").is_err());
    }
}

/// The same model as a directory and as a GGUF file has the same configuration.
#[test]
fn a_gguf_file_and_a_directory_configure_the_same() {
    for architecture in tiny::ARCHITECTURES {
        let directory = tempfile::tempdir().unwrap();
        tiny::write_directory(directory.path(), architecture, tiny::Number::F32);
        let mut from_gguf = config(&tiny::gguf(architecture));
        let from_directory = Checkpoint::open(directory.path()).unwrap().config;
        from_gguf.norm_eps = from_directory.norm_eps; // f32 in the one, f64 in the other
        assert_eq!(from_gguf, from_directory, "{architecture}");
    }
}

#[test]
fn blocks_take_windows_and_rope_from_the_metadata() {
    let mut gemma3 = tiny::gguf("gemma3");
    gemma3.set("gemma3.rope.freq_base", Meta::F32(1e6));
    gemma3.set("gemma3.attention.sliding_window_pattern", Meta::U32(2));
    gemma3.set("gemma3.rope.scaling.type", Meta::Str("linear".into()));
    gemma3.set("gemma3.rope.scaling.factor", Meta::F32(8.0));
    let blocks = config(&gemma3).blocks;
    assert_eq!(
        (blocks[0].window, blocks[0].rope.base, blocks[0].rope.scaling),
        (Some(16), 1e4, RopeScaling::None)
    );
    assert_eq!((blocks[1].window, blocks[1].rope.base), (None, 1e6));
    assert_eq!(blocks[1].rope.scaling, RopeScaling::Linear { factor: 8.0 });

    let windows = |architecture: &str| -> Vec<_> {
        config(&tiny::gguf(architecture)).blocks.iter().map(|block| block.window).collect()
    };
    assert_eq!(windows("gemma2"), [Some(16), None]);
    assert_eq!(windows("mistral"), [Some(16), Some(16)]);
    assert_eq!(windows("llama"), [None, None]);
    assert_eq!(config(&tiny::gguf("mistral")).architecture, Architecture::Mistral);
}

#[test]
fn rope_factors_come_from_their_tensor() {
    let mut file = tiny::gguf("llama");
    file.tensors.push(Stored::f32("rope_freqs.weight", &[tiny::HEAD / 2], &[1.0, 1.0, 4.0, 8.0]));
    let read = config(&file);
    assert_eq!(read.rope_factors, [1.0, 1.0, 4.0, 8.0]);
    assert!(read.blocks.iter().all(|block| block.rope.scaling == RopeScaling::Factors { len: 4 }));
}

/// A change to a good file and a part of the message that refuses it.
fn refused(change: impl FnOnce(&mut GgufFile), expected: &str) {
    let mut file = tiny::gguf("llama");
    change(&mut file);
    let message = open(&file).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(message.contains(expected), "{message:?} does not say {expected:?}");
}

#[test]
fn wrong_files_are_refused_with_the_reason() {
    refused(
        |file| file.set("general.architecture", Meta::Str("mamba".into())),
        "architecture mamba is not supported",
    );
    refused(|file| file.unset("llama.block_count"), "has no metadata key llama.block_count");
    refused(
        |file| file.set("llama.block_count", Meta::U32(3)),
        "has no tensor model.layers.2.input_layernorm.weight",
    );
    refused(|file| file.set("llama.block_count", Meta::U32(u32::MAX)), "blocks; at most");
    refused(
        |file| file.set("llama.attention.head_count_kv", Meta::U32(3)),
        "cannot share 3 key and value heads",
    );
    refused(|file| file.set("llama.attention.head_count", Meta::U32(0)), "number of heads is 0");
    refused(|file| file.set("llama.embedding_length", Meta::Str("x".into())), "should be a whole number");
    refused(|file| file.set("llama.feed_forward_length", Meta::U32(128)), "the configuration asks for");
    refused(
        |file| file.set("llama.rope.dimension_count", Meta::U32(4)),
        "rotary embedding on part of the head",
    );
    refused(|file| file.set("llama.rope.scaling.type", Meta::Str("yarn".into())), "rope scaling yarn");
    refused(|file| file.set("llama.expert_count", Meta::U32(8)), "expert_count is 8");
    refused(|file| file.set("tokenizer.ggml.pre", Meta::Str("mystery".into())), "pre-tokenizer mystery");
    refused(|file| file.set("tokenizer.ggml.model", Meta::Str("bert".into())), "tokenizer model bert");
    refused(|file| file.set("tokenizer.ggml.eos_token_id", Meta::U32(9999)), "eos_token_id is 9999");
    refused(|file| file.set("general.alignment", Meta::U32(0)), "power of two");
    refused(|file| file.tensor("blk.0.attn_q.weight").kind = 20, "type IQ4_NL (20), which is not supported");
    refused(|file| file.tensor("blk.0.attn_q.weight").kind = 12, "not a multiple of 256");
    refused(|file| file.tensor("blk.0.attn_q.weight").shape[0] = 1 << 61, "is too large");
    refused(|file| file.tensor("token_embd.weight").shape[0] = 1 << 40, "lies outside the file");
    refused(|file| file.tensors.push(file.tensors[0].clone()), "appears twice");
    refused(
        |file| file.metadata.push(("llama.rope.freq_base".into(), Meta::F32(5e5))),
        "metadata key llama.rope.freq_base appears twice",
    );
    // The tensors stand at multiples of 32.
    refused(|file| file.set("general.alignment", Meta::U32(4096)), "not at a multiple of 4096");
    refused(
        |file| file.tensors.retain(|tensor| tensor.name != "output_norm.weight"),
        "has no tensor model.norm.weight",
    );
}

#[test]
fn tensors_in_the_same_bytes_are_refused() {
    let file = tiny::gguf("llama");
    let (mut bytes, header) = (file.bytes(), file.header().len());
    // The last number of the directory is where the last tensor begins; the first one begins at 0.
    bytes[header - 8..header].copy_from_slice(&0_u64.to_le_bytes());
    let message = open_bytes(&bytes).unwrap_err().to_string();
    assert!(message.contains("lie in the same bytes"), "{message}");
}

#[test]
fn what_a_file_asks_for_and_is_not_implemented_is_refused() {
    let set =
        |key: &'static str, value: Meta| move |file: &mut GgufFile| file.set(&format!("llama.{key}"), value);
    refused(set("attention.scale", Meta::F32(0.1)), "attention.scale is");
    refused(set("attention.causal", Meta::Bool(false)), "attention.causal is false");
    refused(set("logit_scale", Meta::F32(2.0)), "logit_scale");
    refused(set("residual_scale", Meta::F32(0.5)), "residual_scale");
    refused(set("embedding_scale", Meta::F32(12.0)), "embedding_scale");
    refused(set("use_parallel_residual", Meta::Bool(true)), "use_parallel_residual");
    refused(set("rope.scaling.attn_factor", Meta::F32(1.2)), "rope.scaling.attn_factor");
    refused(set("attention.clamp_kqv", Meta::F32(8.0)), "attention.clamp_kqv");
    refused(set("attention.key_length_mla", Meta::U32(8)), "attention.key_length_mla");
    refused(|file| file.set("general.type", Meta::Str("adapter".into())), "general.type is \"adapter\"");
    refused(|file| file.set("general.type", Meta::Str("mmproj".into())), "general.type");
    let extra = |name: &'static str| {
        move |file: &mut GgufFile| file.tensors.push(Stored::f32(name, &[tiny::HIDDEN], &[0.5; tiny::HIDDEN]))
    };
    for name in [
        "blk.0.attn_k.bias",
        "blk.0.attn_sub_norm.weight",
        "blk.2.attn_norm.weight",
        "rope_factors_long.weight",
    ] {
        refused(
            extra(name),
            &format!(
                "has 1 tensors that nothing reads, so that the model may be another one than its configuration says: {name}"
            ),
        );
    }
    // What another architecture has, and llama.cpp does not apply here.
    let mut file = tiny::gguf("llama");
    file.set("llama.final_logit_softcapping", Meta::F32(5.0));
    file.set("llama.attention.scale", Meta::F32(0.0));
    file.set("llama.some.new.key", Meta::F32(5.0));
    file.set("general.type", Meta::Str("model".into()));
    assert_eq!(config(&file), config(&tiny::gguf("llama")));
}

/// A model in several files, as llama.cpp's gguf-split writes it.
#[test]
fn parts_of_a_split_model_are_read_together() {
    let whole = tiny::gguf("qwen3");
    let count = 3;
    let total = whole.tensors.len();
    let part = |number: usize| {
        let mut file =
            if number == 0 { GgufFile { tensors: Vec::new(), ..whole.clone() } } else { GgufFile::default() };
        file.set("split.no", Meta::U32(number as u32));
        file.set("split.count", Meta::U32(count as u32));
        file.set("split.tensors.count", Meta::U32(total as u32));
        file.tensors = whole.tensors.iter().skip(number).step_by(count).cloned().collect();
        file
    };
    let directory = tempfile::tempdir().unwrap();
    let path = |number: usize| directory.path().join(format!("m-{:05}-of-{count:05}.gguf", number + 1));
    let write = |number: usize, file: &GgufFile| std::fs::write(path(number), file.bytes()).unwrap();
    (0..count).for_each(|number| write(number, &part(number)));
    let (_whole_directory, expected) = saved(&whole);
    let opened = Checkpoint::open(&path(0)).unwrap();
    assert_eq!(opened.config, expected.config);
    for (name, _) in expected.config.tensors() {
        assert_eq!(values(&opened, &name), values(&expected, &name), "{name}");
    }
    let hash = opened.hash().unwrap();

    let message = |at: usize| Checkpoint::open(&path(at)).unwrap_err().to_string();
    assert!(message(1).contains("is part 2 of 3: give the first part"), "{}", message(1));
    // A part that changed, one of another split, one with a tensor of another part, one that is not there.
    let mut changed = part(2);
    *changed.tensors[0].bytes.last_mut().unwrap() ^= 1;
    write(2, &changed);
    assert_ne!(Checkpoint::open(&path(0)).unwrap().hash().unwrap(), hash);
    write(2, &part(1));
    assert!(message(0).contains("should be part 3 of 3"), "{}", message(0));
    let mut twice = part(2);
    twice.tensors[0] = part(1).tensors[0].clone();
    write(2, &twice);
    assert!(message(0).contains("is in another part as well"), "{}", message(0));
    let mut fewer = part(2);
    fewer.tensors.pop();
    write(2, &fewer);
    assert!(message(0).contains(&format!("have {total} tensors together")), "{}", message(0));
    std::fs::remove_file(path(2)).unwrap();
    assert!(message(0).contains("m-00003-of-00003.gguf is not beside it"), "{}", message(0));
    let renamed = directory.path().join("model.gguf");
    std::fs::rename(path(0), &renamed).unwrap();
    assert!(Checkpoint::open(&renamed).unwrap_err().to_string().contains("must keep their names"));
}

#[test]
fn numbers_must_be_finite() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let mut file = tiny::gguf("qwen2");
    let at = (7 * tiny::HIDDEN + 2) * 4;
    file.tensor("blk.1.ffn_up.weight").bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let (_directory, checkpoint) = saved(&file);
    let message = checkpoint.tensor(name).unwrap_err().to_string();
    assert!(message.contains(&format!("tensor {name} holds NaN at [7, 2]")), "{message}");

    // Blocks with a scale that is none: by type, bytes of a block of 32 or 256 and where its scales are.
    for (kind, block, size, scales) in [
        (2, 32, 18, &[0][..]),
        (3, 32, 20, &[0, 2]),
        (6, 32, 22, &[0]),
        (7, 32, 24, &[0, 2]),
        (8, 32, 34, &[0]),
        (10, 256, 84, &[80, 82]),
        (11, 256, 110, &[108]),
        (12, 256, 144, &[0, 2]),
        (13, 256, 176, &[0, 2]),
        (14, 256, 210, &[208]),
    ] {
        for &scale in scales {
            let mut file = tiny::gguf("qwen2");
            let tensor = file.tensor("blk.1.ffn_down.weight"); // rows of 256
            let blocks = tiny::HIDDEN * tiny::WIDTH / block;
            tensor.kind = kind;
            tensor.bytes = vec![0; blocks * size];
            let name = "model.layers.1.mlp.down_proj.weight";
            let (_directory, fine) = saved(&file);
            assert!(fine.tensor(name).is_ok() && fine.quantized(name).is_ok(), "type {kind}");
            let bad = 2 * tiny::WIDTH / block; // the third row's first block
            let at = bad * size + scale;
            file.tensor("blk.1.ffn_down.weight").bytes[at..at + 2].copy_from_slice(&0x7c00u16.to_le_bytes());
            let (_directory, checkpoint) = saved(&file);
            let message = checkpoint.quantized(name).unwrap_err().to_string();
            assert!(message.contains("whose scale is not finite, at [2, 0]"), "type {kind}: {message}");
            assert!(checkpoint.tensor(name).unwrap_err().to_string().contains("at [2, "), "type {kind}");
        }
    }
}

#[test]
fn other_files_are_refused() {
    let message = |bytes: &[u8]| open_bytes(bytes).unwrap_err().to_string();
    assert!(message(b"").contains("ends inside the magic number"));
    assert!(message(b"PK\x03\x04whatever").contains("not a GGUF file"));
    assert!(message(b"GGUF\x00\x00\x00\x03").contains("GGUF version 50331648"));
    assert!(message(b"GGUF\x01\x00\x00\x00").contains("GGUF version 1"));
    assert!(Checkpoint::open(Path::new("/nonexistent/model.gguf")).is_err());
}

#[test]
fn the_hash_is_the_files_own() {
    let file = tiny::gguf("llama");
    let (_directory, checkpoint) = saved(&file);
    let (_other_directory, same) = saved(&file);
    let (_changed_directory, other) = saved(&tiny::gguf("qwen3"));
    assert_eq!(checkpoint.hash().unwrap(), same.hash().unwrap());
    assert_ne!(checkpoint.hash().unwrap(), other.hash().unwrap());
    assert_eq!(checkpoint.hash().unwrap().len(), 64);
}
