//! How a conversation becomes a prompt.

use mixse_model::tokenizer::{Bos, MarkedText, Message, Tokenizer};
use mixse_selfmoe::template::{InstructionTemplate, Style};

use crate::error::{Error, Result};

/// A prompt and where its answer ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Strings that end the answer, beside the model's own end.
    pub stop: Vec<String>,
    /// What was written, where it was written by somebody.
    pub text: Option<String>,
}

/// Where a conversation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The assistant's next turn begins.
    Answer,
    /// The assistant's last message is gone on with.
    Continue,
    /// After the last message.
    Nothing,
}

/// Writes conversations as the served model was trained to see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompter {
    /// The model's chat template, or the instruction template.
    pub style: Style,
    /// For [`Style::Completion`]: the template that experts are trained with.
    pub template: InstructionTemplate,
}

impl Prompter {
    /// The prompt of a conversation.
    ///
    /// In completion style every user's turn fills the template's instruction, and what the system says stands in front of
    /// the first one.
    ///
    /// # Errors
    /// No message, an unknown role, turns that do not alternate, or a conversation that the model's own template refuses.
    pub fn prompt(&self, tokenizer: &Tokenizer, messages: &[Message], ending: Ending) -> Result<Prompt> {
        check(messages, ending, self.style)?;
        match self.style {
            Style::Chat => {
                let mut text = tokenizer.chat(messages, ending == Ending::Answer)?;
                if let (Ending::Continue, Some(last)) = (ending, messages.last()) {
                    cut_behind(&mut text, &last.content)?;
                }
                Ok(Prompt { ids: tokenizer.encode_marked(&text, Bos::Never)?, stop: Vec::new(), text: None })
            }
            Style::Completion => {
                let mut text = self.transcript(messages);
                if ending == Ending::Continue {
                    text.truncate(text.as_str().trim_end().len());
                }
                let ids = tokenizer.encode_marked(&text, Bos::Model)?;
                Ok(Prompt { ids, stop: self.template.stop.clone(), text: None })
            }
        }
    }

    fn transcript(&self, messages: &[Message]) -> MarkedText {
        let mut text = MarkedText::default();
        let mut system = String::new();
        for message in messages {
            match message.role.as_str() {
                "system" => system = format!("{}\n\n", message.content.trim()),
                "assistant" => {
                    text.push_content(message.content.trim());
                    text.push_template("\n\n");
                }
                _ => {
                    let instruction = std::mem::take(&mut system) + &message.content;
                    text.push(&self.template.text(&instruction, ""));
                }
            }
        }
        text
    }
}

/// Cuts a rendered conversation behind its last message, as transformers' `continue_final_message` does: white space around the
/// message counts where the template kept it.
fn cut_behind(text: &mut MarkedText, last: &str) -> Result<()> {
    let found = text.as_str().rfind(last.trim()).filter(|_| !last.trim().is_empty());
    let Some(at) = found else {
        return Err(Error::Conversation(
            "the last message is empty, or the chat template does not show it: it cannot be gone on with"
                .into(),
        ));
    };
    let whole = last.trim_start();
    let kept = if text.as_str()[at..].starts_with(whole) { whole } else { last.trim() };
    text.truncate(at + kept.len());
    Ok(())
}

/// Known roles, and an end that suits what is asked. In completion style, which knows tasks and their responses only: an
/// optional system message, then user and assistant in turn. In chat style the template decides about the order.
fn check(messages: &[Message], ending: Ending, style: Style) -> Result<()> {
    let refuse = |what: String| Err(Error::Conversation(what));
    if let Some(message) = messages.iter().find(|m| !["system", "user", "assistant"].contains(&&m.role[..])) {
        return refuse(format!("there is no role {:?}: system, user and assistant are known", message.role));
    }
    let last = messages.last().map(|message| message.role.as_str());
    match (ending, last) {
        (_, None) => return refuse("there is no message".into()),
        (Ending::Answer, Some("user")) | (Ending::Continue, Some("assistant")) | (Ending::Nothing, _) => {}
        (Ending::Answer, _) => {
            return refuse(
                "the last message must be the user's (with continue_final_message: true the assistant's)"
                    .into(),
            );
        }
        (Ending::Continue, _) => {
            return refuse("continue_final_message needs a last message from the assistant".into());
        }
    }
    if style == Style::Chat {
        return Ok(());
    }
    let turns = match messages {
        [first, rest @ ..] if first.role == "system" => rest,
        all => all,
    };
    for (i, message) in turns.iter().enumerate() {
        let expected = if i % 2 == 0 { "user" } else { "assistant" };
        if message.role != expected {
            return refuse(format!(
                "message {} is from {:?} where {expected:?} is due: a system message may come first, then user and \
                 assistant in turn",
                i + 1 + messages.len() - turns.len(),
                message.role
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(turns: &[(&str, &str)]) -> Vec<Message> {
        turns
            .iter()
            .map(|(role, content)| Message { role: (*role).into(), content: (*content).into() })
            .collect()
    }

    #[test]
    fn turns_fill_the_template_one_after_another() {
        let prompter =
            Prompter { style: Style::Completion, template: InstructionTemplate::built_in().unwrap() };
        let turns = [("system", "Be brief."), ("user", "2 + 2?"), ("assistant", "4"), ("user", "3 + 3?")];
        let text = prompter.transcript(&conversation(&turns));
        let first = prompter.template.text("Be brief.\n\n2 + 2?", "");
        let second = prompter.template.text("3 + 3?", "");
        assert_eq!(text.as_str(), format!("{}4\n\n{}", first.as_str(), second.as_str()));
    }

    #[test]
    fn only_conversations_that_wait_for_an_answer_are_taken() {
        let accepted = |turns: &[(&str, &str)]| {
            check(&conversation(turns), Ending::Answer, Style::Completion).map_err(|e| e.to_string())
        };
        assert_eq!(accepted(&[("user", "a")]), Ok(()));
        assert_eq!(accepted(&[("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]), Ok(()));
        for turns in [
            &[][..],
            &[("system", "s")],
            &[("user", "a"), ("assistant", "b")],
            &[("assistant", "b")],
            &[("user", "a"), ("user", "b")],
            &[("user", "a"), ("system", "s"), ("user", "b")],
            &[("robot", "a")],
        ] {
            assert!(accepted(turns).is_err(), "{turns:?}");
        }
        let ends = |turns: &[(&str, &str)], ending| check(&conversation(turns), ending, Style::Chat).is_ok();
        assert!(ends(&[("user", "a"), ("user", "b")], Ending::Answer));
        assert!(ends(&[("user", "a"), ("assistant", "b")], Ending::Continue));
        assert!(ends(&[("system", "a")], Ending::Nothing));
        assert!(!ends(&[("user", "a"), ("assistant", "b")], Ending::Answer));
        assert!(!ends(&[("user", "a")], Ending::Continue));
        assert!(!ends(&[("robot<|im_end|>", "a")], Ending::Nothing));
        assert!(!ends(&[], Ending::Nothing));
    }

    #[test]
    fn a_last_message_is_gone_on_with() {
        let check = |rendered: &str, last: &str, expected: Option<&str>| {
            let mut text = MarkedText::template(rendered);
            let cut = cut_behind(&mut text, last).is_ok();
            assert_eq!(cut.then(|| text.as_str()), expected, "{rendered:?}, {last:?}");
        };
        check("A: The answer is<end>\n", "The answer is", Some("A: The answer is"));
        check("A: a <end>", "a ", Some("A: a "));
        check("A: a<end>", " a ", Some("A: a"));
        check("U: a A: a<end>", "a", Some("U: a A: a"));
        check("U: a", "b", None);
        check("U: a", " ", None);
    }
}
