//! What of other programs' files is implemented, refused or ignored, as Markdown for `docs/compatibility.md`.

/// The name and the text of each section, from the lists that the readers check against.
pub fn sections() -> Vec<(&'static str, String)> {
    vec![
        ("peft", crate::peft::documentation()),
        ("x-lora", crate::router_files::documentation()),
        ("hugging-face", crate::config::hugging_face_documentation()),
        ("gguf", crate::config::gguf_documentation()),
    ]
}
