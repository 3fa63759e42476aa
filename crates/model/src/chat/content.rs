//! Conversations in which nobody can write a special token.
//!
//! A template is a program: it may trim a message, cut it, look for words in it. So it is run twice, once with the messages
//! as they are and once with every character with which a special token could begin exchanged for a stand-in that occurs
//! nowhere else. Where both texts are the same but for the stand-ins, the stand-ins say which of these characters came from
//! a message, and no special token begins there.

use crate::{
    Error, Result,
    tokenizer::{MarkedText, Message},
};

use super::source;

/// Characters that no text has, for stand-ins (a plane for private use).
const STAND_INS: std::ops::RangeInclusive<char> = '\u{F0000}'..='\u{FFFFD}';

/// What `run` makes of `messages`, marked. `source` is the template's.
pub(super) fn render(
    messages: &[Message],
    special: &[&str],
    source: &str,
    run: &dyn Fn(&[Message]) -> Result<String>,
) -> Result<MarkedText> {
    let plain = run(messages)?;
    let mut beginnings: Vec<char> = special.iter().filter_map(|token| token.chars().next()).collect();
    beginnings.sort_unstable();
    beginnings.dedup();
    let texts = || messages.iter().flat_map(|message| [message.role.as_str(), message.content.as_str()]);
    beginnings.retain(|&c| texts().any(|text| text.contains(c)));
    if beginnings.is_empty() {
        return Ok(MarkedText::template(plain));
    }
    let free = STAND_INS.filter(|&c| !source.contains(c) && !texts().any(|text| text.contains(c)));
    let stand_ins: Vec<(char, char)> = beginnings.into_iter().zip(free).collect();
    // Where the template looks for a word that begins like a special token, as for `</think>`, that word is left to it.
    for words in [Vec::new(), source::literals(source)] {
        let masked: Vec<Message> = messages
            .iter()
            .map(|message| Message {
                role: mask(&message.role, &stand_ins, special, &words),
                content: mask(&message.content, &stand_ins, special, &words),
            })
            .collect();
        let Ok(text) = run(&masked) else { continue };
        let marked = unmask(&text, &stand_ins);
        if marked.as_str() == plain {
            return Ok(marked);
        }
    }
    match special.iter().find(|token| texts().any(|text| text.contains(**token))) {
        None => Ok(MarkedText::template(plain)),
        Some(token) => Err(Error::Unsupported(format!(
            "a message spells the special token {token}, at which the model's chat template looks: leave it out, or let special \
             tokens in messages count (--parse-special)"
        ))),
    }
}

/// `text` with stand-ins, but for the words that no special token begins with.
fn mask(text: &str, stand_ins: &[(char, char)], special: &[&str], words: &[&str]) -> String {
    let mut left_alone = 0;
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        let rest = &text[at..];
        let is_special = special.iter().any(|token| rest.starts_with(token));
        let word =
            words.iter().filter(|word| word.len() > 1 && rest.starts_with(**word)).map(|word| word.len());
        left_alone = left_alone.max(at + word.max().unwrap_or(0));
        let stand_in = stand_ins.iter().find(|(own, _)| *own == c).filter(|_| is_special || at >= left_alone);
        out.push(stand_in.map_or(c, |(_, stand_in)| *stand_in));
    }
    out
}

/// `text` without stand-ins; where they stood it is content.
fn unmask(text: &str, stand_ins: &[(char, char)]) -> MarkedText {
    let mut marked = MarkedText::default();
    let mut rest = text;
    while let Some(at) = rest.find(|c| stand_ins.iter().any(|(_, stand_in)| *stand_in == c)) {
        marked.push_template(&rest[..at]);
        let mut chars = rest[at..].chars();
        let own = chars.next().and_then(|c| stand_ins.iter().find(|(_, stand_in)| *stand_in == c));
        if let Some((own, _)) = own {
            marked.push_content(own.encode_utf8(&mut [0; 4]));
        }
        rest = chars.as_str();
    }
    marked.push_template(rest);
    marked
}
