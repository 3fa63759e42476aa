//! Agreement with Hugging Face's tokenizers and with llama.cpp's reading of weights on the real base models, where they are in
//! the cache.
//!
//! The expected ids, texts and chats are those of transformers 5.23 on the same GGUF files
//! (`AutoTokenizer.from_pretrained(gguf_file=…)`), the weights' hashes those of llama.cpp's `gguf` package; both made by
//! `bench/real_models.py`. A model that is not in the cache is skipped with a line that says so.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use mixse_model::{
    tokenizer::{Bos, MarkedText, Message, TextStream},
    weights::Checkpoint,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Fixture {
    texts: Vec<Text>,
    chat: Vec<Chat>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
    bos: Vec<u32>,
    decoded: String,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Message>,
    add_generation_prompt: bool,
    text: String,
}

/// The GGUF file that `mixse pull` put into the cache under `name`.
pub(crate) fn cached(name: &str) -> Option<PathBuf> {
    let from = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    let cache = from("MIXSE_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|home| home.join("mixse")))
        .or_else(|| from("HOME").map(|home| home.join(".cache/mixse")))?;
    let mut files = std::fs::read_dir(cache.join(name)).ok()?.flatten().map(|entry| entry.path());
    let found = files.find(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    if found.is_none() {
        eprintln!("{name} is not in the cache ({}): nothing compared", cache.display());
    }
    found
}

fn check(model: &Path, fixture: &str) {
    let Fixture { texts, chat } = serde_json::from_str(fixture).unwrap();
    let checkpoint = Checkpoint::open(model).unwrap();
    let tokenizer = &checkpoint.tokenizer;
    for Text { text, ids, bos, decoded } in texts {
        let marked = MarkedText::template(text.as_str());
        assert_eq!(tokenizer.encode_marked(&marked, Bos::Never).unwrap(), ids, "{text:?}");
        // The first token is not doubled where the text begins with it.
        let start = if ids.starts_with(&bos) { ids.clone() } else { [bos, ids.clone()].concat() };
        assert_eq!(tokenizer.encode_marked(&marked, Bos::Model).unwrap(), start, "{text:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), decoded, "{text:?}");
        let mut stream = TextStream::default();
        let pieces: String = ids.iter().map(|&id| stream.push(tokenizer, id).to_owned()).collect();
        assert_eq!(pieces, stream.text(), "{text:?}");
        assert_eq!(stream.finish(), decoded, "{text:?}");
    }
    for Chat { messages, add_generation_prompt, text } in chat {
        assert_eq!(tokenizer.chat(&messages, add_generation_prompt).unwrap().as_str(), text);
    }
}

#[test]
fn smollm2_tokenizes_as_transformers_does() {
    if let Some(model) = cached("smollm2-135m-instruct") {
        check(&model, include_str!("../fixtures/tokens_smollm2.json"));
    }
}

#[test]
fn gemma_3_tokenizes_as_transformers_does() {
    if let Some(model) = cached("gemma-3-270m") {
        check(&model, include_str!("../fixtures/tokens_gemma3.json"));
    }
}

#[test]
fn qwen_2_5_coder_tokenizes_as_transformers_does() {
    // The two sizes have the same vocabulary. Normalisation to NFC is that of transformers' class and of the model's own
    // tokenizer.json; transformers forgets it when it converts the GGUF file, which has no field for it.
    let fixture = include_str!("../fixtures/tokens_qwen2.5_coder.json");
    for name in ["qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"] {
        if let Some(model) = cached(name) {
            check(&model, fixture);
        }
    }
}

#[derive(Deserialize)]
struct Kind {
    /// The file's number formats of these tensors.
    types: Vec<String>,
    /// How many there are, one a block or one in all.
    tensors: usize,
    /// Of their values as little-endian f32, block after block.
    sha256: String,
}

/// Every bit of every weight is the one that llama.cpp's own reader gives.
fn check_weights(name: &str, fixture: &str) {
    let Some(model) = cached(name) else { return };
    let expected: BTreeMap<String, Kind> = serde_json::from_str(fixture).unwrap();
    let checkpoint = Checkpoint::open(&model).unwrap();
    let mut found: BTreeMap<String, (usize, Sha256)> = BTreeMap::new();
    for (tensor, _) in checkpoint.config.tensors() {
        let kind = match tensor.strip_prefix("model.layers.") {
            Some(rest) => rest.split_once('.').unwrap().1,
            None => &tensor,
        };
        let values = checkpoint.tensor(&tensor).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (count, hash) = found.entry(kind.to_owned()).or_default();
        *count += 1;
        for chunk in values.chunks(1 << 16) {
            hash.update(chunk.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
        }
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
    for (kind, (count, hash)) in found {
        let Kind { types, tensors, sha256 } = &expected[&kind];
        assert_eq!(count, *tensors, "{name}: {kind}");
        let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, *sha256, "{name}: {kind} ({})", types.join(", "));
    }
}

#[test]
fn qwen_2_5_coder_0_5b_is_read_as_llama_cpp_reads_it() {
    check_weights("qwen2.5-coder-0.5b-instruct", include_str!("../fixtures/weights_qwen2.5_coder_0.5b.json"));
}

#[test]
fn qwen_2_5_coder_1_5b_is_read_as_llama_cpp_reads_it() {
    check_weights("qwen2.5-coder-1.5b-instruct", include_str!("../fixtures/weights_qwen2.5_coder_1.5b.json"));
}
