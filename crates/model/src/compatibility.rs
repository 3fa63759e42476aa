//! What of other programs' files is implemented, refused or ignored, as Markdown for `docs/compatibility.md`.

/// The name and the text of each section, from the lists that the readers check against.
pub fn sections() -> Vec<(&'static str, String)> {
    vec![
        ("peft", crate::peft::documentation()),
        ("x-lora", crate::router_files::documentation()),
        ("hugging-face", crate::config::hugging_face_documentation()),
        ("gguf", crate::config::gguf_documentation()),
        ("chat-templates", crate::chat::documentation()),
    ]
}

/// A paragraph `title: a, b, c.` in lines of a readable length; nothing without names.
pub fn list<N: AsRef<str>>(title: &str, names: &[N]) -> String {
    const WIDTH: usize = 118;
    let Some((last, others)) = names.split_last() else { return String::new() };
    let words = others.iter().map(|name| format!("{},", name.as_ref()));
    let (mut text, mut width) = (format!("{title}:"), title.len() + 1);
    for word in words.chain([format!("{}.", last.as_ref())]) {
        let fits = width + word.len() < WIDTH;
        text += if fits { " " } else { "\n" };
        width = word.len() + if fits { width + 1 } else { 0 };
        text += &word;
    }
    text + "\n\n"
}
