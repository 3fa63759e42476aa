//! Agreement with Hugging Face's tokenizers on the real base models, where they are in the cache.
//!
//! The expected ids, texts and chats are those of transformers 5.23 on the same GGUF files
//! (`AutoTokenizer.from_pretrained(gguf_file=…)`). A model that is not in the cache is skipped with a line that says so.

use std::path::{Path, PathBuf};

use mixse_model::{
    tokenizer::{Bos, MarkedText, Message, TextStream},
    weights::Checkpoint,
};
use serde::Deserialize;

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
