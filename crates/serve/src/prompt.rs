//! How a conversation becomes a prompt.

use mixse_model::tokenizer::{Bos, Message, Tokenizer};
use mixse_selfmoe::template::{InstructionTemplate, Style};

use crate::error::{Error, Result};

/// A prompt and where its answer ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Strings that end the answer, beside the model's own end.
    pub stop: Vec<String>,
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
    /// The prompt whose continuation is the assistant's next turn.
    ///
    /// In completion style every user's turn fills the template's instruction, and what the system says stands in front of
    /// the first one.
    ///
    /// # Errors
    /// No message, an unknown role, turns that do not alternate, or a conversation that the model's own template refuses.
    pub fn prompt(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<Prompt> {
        check(messages)?;
        match self.style {
            Style::Chat => {
                let text = tokenizer.chat(messages, true)?;
                Ok(Prompt { ids: tokenizer.encode(&text, Bos::Never)?, stop: Vec::new() })
            }
            Style::Completion => Ok(Prompt {
                ids: tokenizer.encode(&self.transcript(messages), Bos::Model)?,
                stop: self.template.stop.clone(),
            }),
        }
    }

    fn transcript(&self, messages: &[Message]) -> String {
        let mut text = String::new();
        let mut system = String::new();
        for message in messages {
            match message.role.as_str() {
                "system" => system = format!("{}\n\n", message.content.trim()),
                "assistant" => text += &format!("{}\n\n", message.content.trim()),
                _ => {
                    let instruction = std::mem::take(&mut system) + &message.content;
                    text += &self.template.text(&instruction, "");
                }
            }
        }
        text
    }
}

/// An optional system message, then user and assistant in turn, the user last.
fn check(messages: &[Message]) -> Result<()> {
    let refuse = |what: String| Err(Error::Conversation(what));
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
    if turns.len() % 2 == 0 {
        return refuse("the last message must be the user's".into());
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
        assert_eq!(text, format!("{first}4\n\n{second}"));
    }

    #[test]
    fn only_conversations_that_wait_for_an_answer_are_taken() {
        let accepted = |turns: &[(&str, &str)]| check(&conversation(turns)).map_err(|e| e.to_string());
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
    }
}
