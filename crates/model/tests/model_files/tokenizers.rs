//! Tokenizers rebuilt from GGUF vocabularies, streams of text, and chat templates.

use mixse_model::tokenizer::{Bos, MarkedText, Message, TextStream, Tokenizer};

use super::gguf::open;
use mixse_testing::{
    gguf::{GgufFile, Meta},
    tiny, vocabulary,
};

fn tokenizer(change: impl FnOnce(&mut GgufFile)) -> Tokenizer {
    let mut file = tiny::gguf("llama");
    change(&mut file);
    open(&file).unwrap().tokenizer
}

/// Texts and the tokens, as they are spelled in the vocabulary, that they are made of.
fn check(tokenizer: &Tokenizer, cases: &[(&str, &[&str])]) {
    for (text, expected) in cases {
        let expected: Vec<u32> = expected.iter().map(|token| tokenizer.token_id(token).unwrap()).collect();
        let ids = tokenizer.encode(text, Bos::Never).unwrap();
        let spelled: Vec<String> = ids.iter().map(|&id| tokenizer.token_text(id)).collect();
        assert_eq!(ids, expected, "{text:?} became {spelled:?}");
    }
}

#[test]
fn byte_level_vocabularies_merge_within_words() {
    check(
        &tokenizer(|_| ()),
        &[
            ("", &[]),
            ("the the", &["t", "he", "Ġthe"]),
            ("hell", &["he", "ll"]),
            ("12 12", &["12", "Ġ1", "2"]),
            ("é\n", &["Ã", "©", "Ċ"]),
            ("a<|end|>", &["a", "<", "|", "e", "n", "d", "|", ">"]),
        ],
    );
}

#[test]
fn the_pre_tokenizer_decides_where_words_end() {
    for (pre, expected) in [
        ("gpt-2", &["Ġ1", "2", "3", "4"][..]),
        ("smollm", &["Ġ", "1", "2", "3", "4"]),
        ("llama-bpe", &["Ġ", "12", "3", "4"]),
        ("qwen2", &["Ġ", "1", "2", "3", "4"]),
        ("tekken", &["Ġ", "1", "2", "3", "4"]),
        ("gpt-4o", &["Ġ", "12", "3", "4"]),
    ] {
        let tokenizer = tokenizer(|file| vocabulary::byte_level(file, pre));
        check(&tokenizer, &[(" 1234", expected)]);
    }
}

#[test]
fn sentencepiece_vocabularies_merge_by_score_and_fall_back_to_bytes() {
    let with_prefix = tokenizer(vocabulary::sentencepiece);
    check(
        &with_prefix,
        &[
            ("", &[]),
            ("hello", &["▁hello"]),
            ("hello hello", &["▁hello", "▁hello"]),
            (" he", &["▁", "▁he"]),
            ("é", &["▁", "<0xC3>", "<0xA9>"]),
            ("he</s>", &["▁he", "<0x3C>", "<0x2F>", "<0x73>", "<0x3E>"]),
        ],
    );
    assert_eq!(with_prefix.decode(&with_prefix.encode("hello é", Bos::Model).unwrap()).unwrap(), "hello é");
    let without = tokenizer(|file| {
        vocabulary::sentencepiece(file);
        file.set("tokenizer.ggml.add_space_prefix", Meta::Bool(false));
    });
    check(&without, &[("hello", &["he", "llo"]), ("  hello", &["▁", "▁hello"])]);
}

/// Gemma's merges follow its ids, whatever its scores say.
#[test]
fn gemma_merges_by_id() {
    let mut file = tiny::gguf("gemma");
    vocabulary::sentencepiece(&mut file);
    file.set("tokenizer.ggml.scores", Meta::F32s(vec![0.0; 259 + vocabulary::PIECES.len()]));
    check(&open(&file).unwrap().tokenizer, &[("hello", &["he", "llo"]), (" hello", &["▁hello"])]);
}

#[test]
fn the_start_token_follows_the_files_policy() {
    let bos = |change: &dyn Fn(&mut GgufFile)| tokenizer(change).bos();
    let end = 256 + vocabulary::MERGES.len() as u32;
    assert_eq!(bos(&|_| ()), None);
    assert_eq!(bos(&|file| file.set("tokenizer.ggml.add_bos_token", Meta::Bool(true))), Some(end));
    assert_eq!(bos(&|file| vocabulary::byte_level(file, "llama-bpe")), Some(end));
    assert_eq!(bos(&|file| vocabulary::sentencepiece(file)), Some(1));
    let with_start = tokenizer(vocabulary::sentencepiece);
    assert_eq!(with_start.encode("he", Bos::Model).unwrap()[0], 1);
    assert_ne!(with_start.encode("he", Bos::Never).unwrap()[0], 1);
    assert_eq!(with_start.eos(), [2]);
    assert!(with_start.is_special(2) && !with_start.is_special(259));
}

#[test]
fn a_stream_holds_back_unfinished_characters() {
    let bytes = tokenizer(|_| ());
    let mut stream = TextStream::default();
    let pushed: Vec<String> = bytes
        .encode_marked(&MarkedText::template("a😀<|end|>b"), Bos::Never)
        .unwrap()
        .iter()
        .map(|&id| stream.push(&bytes, id).to_owned())
        .collect();
    assert_eq!(pushed, ["a", "", "", "", "😀", "", "b"]);
    assert_eq!(stream.text(), "a😀b");
    // A byte that no character begins with is replaced at once, an unfinished one at the end.
    assert_eq!(stream.push(&bytes, 0xFF), "\u{FFFD}");
    assert_eq!(stream.push(&bytes, 0xC3), "");
    assert_eq!(stream.clone().finish(), "a😀b\u{FFFD}\u{FFFD}");
    assert_eq!(stream.push(&bytes, u32::from(b'x')), "\u{FFFD}x");
}

#[test]
fn a_stream_keeps_the_space_that_joins_it_to_the_prompt() {
    let pieces = tokenizer(vocabulary::sentencepiece);
    let ids = pieces.encode("hello", Bos::Never).unwrap();
    let mut stream = TextStream::default();
    assert_eq!(stream.push(&pieces, ids[0]), " hello");
    assert_eq!(pieces.decode(&ids).unwrap(), "hello");
    assert_eq!(pieces.token_bytes(3 + 0xC3), [0xC3]);
}

fn render(template: &str) -> mixse_model::Result<String> {
    let turn = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    tokenizer(|file| file.set("tokenizer.chat_template", Meta::Str(template.into())))
        .chat(&[turn("user", " <b>Hi</b> "), turn("assistant", "Bye")], true)
        .map(|text| text.as_str().to_owned())
}

#[test]
fn chat_templates_have_what_hugging_faces_have() {
    for (template, expected) in [
        ("{{ bos_token }}{{ messages[0]['content'].strip() }}{{ eos_token }}", "<|begin|><b>Hi</b><|end|>"),
        ("{% for m in messages %}\n  {%- if loop.first %}{{ m.role }}{% endif %}\n{% endfor %}\n", "user"),
        ("{% for m in messages %}\n  {{- m.role }}\n{% endfor %}\nend\n", "user\nassistant\nend"),
        ("  {% if add_generation_prompt %}\nyes\n  {% endif %}\n", "yes\n"),
        (
            "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
            "user",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        ),
        ("{{ messages[1] | tojson }}", r#"{"role": "assistant", "content": "Bye"}"#),
        ("{{ ['<', 1] | tojson(indent=2) }}", "[\n  \"<\",\n  1\n]"),
        ("{{ 'a,b'.split(',') | join('+') }}{{ 'x'.upper() }}{{ 'ab'.startswith('a') }}", "a+bXTrue"),
        ("{{ messages[1:] | length }}{{ messages[::-1][0].role }}", "1assistant"),
        (
            "{{ strftime_now('%%') }}{{ tools is none }}{{ messages | map(attribute='role') | list | length }}",
            "%True2",
        ),
        ("{% macro turn(m) %}[{{ m.role }}]{% endmacro %}{{ turn(messages[0]) }}", "[user]"),
    ] {
        assert_eq!(
            render(template).unwrap_or_else(|error| panic!("{template}: {error}")),
            expected,
            "{template}"
        );
    }
}

#[test]
fn chat_templates_refuse_with_their_own_words() {
    let refused = |template: &str| render(template).unwrap_err().to_string();
    assert!(refused("{{ raise_exception('roles must alternate') }}").contains("roles must alternate"));
    assert!(
        refused("{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}")
            .contains("fuel")
    );
    let mut file = tiny::gguf("llama");
    file.set("tokenizer.chat_template", Meta::Str("{% if %}".into()));
    let broken = open(&file).unwrap().tokenizer.chat(&[], true).unwrap_err().to_string();
    assert!(broken.contains("chat template is not valid"), "{broken}");
    file.unset("tokenizer.chat_template");
    assert!(
        open(&file).unwrap().tokenizer.chat(&[], true).unwrap_err().to_string().contains("no chat template")
    );
}

/// All ways to cut a piece in two are tried: a long one would take for ever.
#[test]
fn a_piece_of_a_megabyte_is_refused() {
    let mut file = tiny::gguf("gemma3");
    vocabulary::sentencepiece(&mut file);
    for (_, value) in &mut file.metadata {
        if let Meta::Strings(tokens) = value
            && let Some(last) = tokens.last_mut().filter(|token| *token == "▁hello")
        {
            *last = "l".repeat(1 << 20);
        }
    }
    let start = std::time::Instant::now();
    let message = open(&file).unwrap_err().to_string();
    assert!(message.contains("has 1048576 bytes (at most 1024)"), "{message}");
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}
