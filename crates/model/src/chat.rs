//! Chat templates: Jinja programs that write a conversation as the model was trained to see it.

mod content;
mod documentation;
mod python;
mod source;

use minijinja::{Environment, Error, ErrorKind, Value, syntax::SyntaxConfig, value::Serde};
use serde_json::{Map, Value as Json, json};

use crate::{
    Result,
    tokenizer::{MarkedText, Message},
};

/// No template of a real model needs a hundredth of these steps; a template that loops for ever ends here.
const MAX_STEPS: u64 = 10_000_000;

/// The most bytes of a conversation; the longest contexts have a tenth of it.
const MAX_TEXT: usize = 64 << 20;

/// A text that ends with an error when it grows too long. What was too much is kept as a sign of that.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = (MAX_TEXT + 1).saturating_sub(self.0.len());
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if bytes.len() >= room { Err(std::io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A compiled chat template with the special tokens that it may write.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// Name (`bos_token`) and spelling.
    tokens: Vec<(String, String)>,
}

impl ChatTemplate {
    /// Compiles `source` as Hugging Face's `apply_chat_template` does: block tags swallow their line's white space, loop
    /// controls are on, `{% generation %}` marks what an assistant wrote, and `raise_exception`, `strftime_now`, `tojson` and
    /// Python's string methods are there.
    ///
    /// # Errors
    /// What is wrong with the template.
    pub(crate) fn new(source: &str, tokens: Vec<(String, String)>) -> std::result::Result<Self, String> {
        let mut environment = environment()?;
        environment
            .add_template_owned("chat", source::without_generation(source))
            .map_err(|e| format!("the chat template is not valid: {e:#}"))?;
        Ok(Self { environment, source: source.to_owned(), tokens })
    }

    /// The template's text.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// A special token by its name, such as `bos_token`.
    pub(crate) fn token(&self, name: &str) -> Option<&str> {
        self.tokens.iter().find(|(known, _)| known == name).map(|(_, token)| token.as_str())
    }

    /// The conversation as text, in which roles and contents do not spell any of the tokens `special`.
    ///
    /// # Errors
    /// The template refuses the conversation (for example a role that the model does not know), or a message spells one of
    /// these tokens and the template looks at it.
    pub(crate) fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        special: &[&str],
    ) -> Result<MarkedText> {
        content::render(messages, special, &self.source, &|messages| {
            self.text(messages, add_generation_prompt)
        })
    }

    fn text(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let mut context = Map::new();
        context.extend(self.tokens.iter().map(|(name, token)| (name.clone(), json!(token))));
        context.insert("messages".into(), json!(messages));
        context.insert("add_generation_prompt".into(), json!(add_generation_prompt));
        context.insert("tools".into(), Json::Null);
        context.insert("documents".into(), Json::Null);
        let mut text = Bounded(Vec::new());
        let rendered = self
            .environment
            .get_template("chat")
            .and_then(|template| template.render_captured_to(Serde(context), &mut text));
        match rendered {
            Ok(_) => Ok(String::from_utf8_lossy(&text.0).into_owned()),
            Err(_) if text.0.len() > MAX_TEXT => Err(crate::Error::Unsupported(format!(
                "the chat template writes more than {} MiB for this conversation",
                MAX_TEXT >> 20
            ))),
            Err(e) => {
                Err(crate::Error::Unsupported(format!("the chat template refuses the conversation: {e}")))
            }
        }
    }
}

fn environment() -> std::result::Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|e| e.to_string())?);
    environment.set_fuel(Some(MAX_STEPS));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", python::strftime_now);
    environment.add_filter("tojson", python::tojson);
    Ok(environment)
}

/// What templates can use, as Markdown for `docs/compatibility.md`.
pub(crate) fn documentation() -> String {
    environment().as_ref().map_or_else(Clone::clone, documentation::documentation)
}

fn raise_exception(message: String) -> std::result::Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}
