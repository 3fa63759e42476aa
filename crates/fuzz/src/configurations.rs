//! TOML that people write.

use std::path::Path;

use mixse_selfmoe::{
    domain::Manifest,
    template::{BrainstormTemplate, InstructionTemplate, RespondTemplate},
};

use crate::files::with_folder;

/// The same text as a domain's manifest, an evaluation task and every kind of prompt.
pub(crate) fn toml(data: &[u8]) -> bool {
    let text = std::str::from_utf8(data);
    let mut accepted = text.is_ok_and(|text| Manifest::parse(Path::new("domain.toml"), text).is_ok());
    with_folder(|folder| {
        let path = folder.join("file.toml");
        std::fs::write(&path, data).unwrap();
        std::fs::write(folder.join("rows.jsonl"), "{\"question\": \"2 + 3?\", \"answer\": \"5\"}\n").unwrap();
        accepted |= mixse_eval::tasks::user::read(&path).is_ok();
        if let Ok(template) = InstructionTemplate::open(&path) {
            accepted = true;
            let _ = template.text("Add.", "2 and 3");
        }
        if let Ok(template) = BrainstormTemplate::open(&path) {
            accepted = true;
            let _ = (template.front("short"), template.task(3, "Add.", "2"), template.heading(1));
        }
        if let Ok(template) = RespondTemplate::open(&path) {
            accepted = true;
            let _ = (template.front("You add."), template.task("Add.", "2"));
        }
        accepted
    })
}

pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let built_in = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
    vec![
        built_in("brainstorm", include_str!("../../../prompts/brainstorm.toml")),
        built_in("respond", include_str!("../../../prompts/respond.toml")),
        built_in("instruction", include_str!("../../../prompts/instruction.toml")),
        built_in("manifest", include_str!("../../../domains/math/domain.toml")),
        built_in(
            "task",
            "name = \"sums\"\ndata = \"rows.jsonl\"\nfewshot = \"rows.jsonl\"\nnum_fewshot = 1\ndescription = \"Sums.\"\n\
             prompt = \"Question: {{ question }}\\nAnswer:\"\nanswer = \"{{ answer | upper }}\"\n\
             [generate]\nuntil = [\"\\n\"]\nmax_tokens = 8\nmetric = \"exact_match\"\nignore = [\",\"]\n\
             [[generate.filter]]\nname = \"first\"\nregex = \"(-?[0-9]+)\"\n",
        ),
    ]
}
