//! The text of an answer while it is written.

use mixse_model::tokenizer::{TextStream, Tokenizer};

/// Hands out text as soon as it is certain: whole characters, and nothing that may turn out to be the beginning of a stop
/// string.
pub(crate) struct Writer {
    stream: TextStream,
    stops: Vec<String>,
    /// Bytes handed out.
    sent: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// A stop string was found; nothing follows.
    Stopped,
}

impl Writer {
    pub(crate) fn new(tokenizer: &Tokenizer, stops: Vec<String>) -> Self {
        let stops: Vec<String> = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        let stream = match stops.iter().any(|stop| tokenizer.spells_special(stop)) {
            true => TextStream::spelling_special(),
            false => TextStream::default(),
        };
        Self { stream, stops, sent: 0, state: State::Open }
    }

    /// Adds a token; returns what became certain, which may be nothing.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        self.stream.push(tokenizer, id);
        let text = self.stream.text();
        let (end, state) = certain(text, self.sent, &self.stops, self.state);
        let piece = self.stream.visible(self.sent..end);
        (self.sent, self.state) = (end, state);
        piece
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.state == State::Stopped
    }

    /// What was held back, after the last token.
    pub(crate) fn finish(self) -> String {
        if self.is_stopped() {
            return String::new();
        }
        self.stream.finish_visible(self.sent)
    }
}

/// How far `text`, of which `sent` bytes were handed out, can be handed out.
fn certain(text: &str, sent: usize, stops: &[String], state: State) -> (usize, State) {
    if state == State::Stopped {
        return (sent, state);
    }
    let rest = &text[sent..];
    if let Some(at) = stops.iter().filter_map(|stop| rest.find(stop.as_str())).min() {
        return (sent + at, State::Stopped);
    }
    let begins_stop = |at: &usize| stops.iter().any(|stop| stop.starts_with(&rest[*at..]));
    let end = rest.char_indices().map(|(at, _)| at).find(begins_stop).unwrap_or(rest.len());
    (sent + end, State::Open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_begin_a_stop_string_is_held_back() {
        let check = |text: &str, sent: usize, stops: &[&str], expected: &str, stopped: bool| {
            let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
            let state = if stopped { State::Stopped } else { State::Open };
            let (end, reached) = certain(text, sent, &stops, State::Open);
            assert_eq!((&text[sent..end], reached), (expected, state), "{text:?}");
        };
        check("abc", 0, &[], "abc", false);
        check("abc", 2, &[], "c", false);
        check("abc\n", 0, &["\n### "], "abc", false);
        check("abc\n#", 3, &["\n### "], "", false);
        check("abc\n# x", 3, &["\n### "], "\n# x", false);
        check("abc\n### D", 1, &["\n### "], "bc", true);
        check("héllo", 0, &["lo"], "hél", true);
        check("héll", 0, &["lo", "l"], "hé", true);
        check("aab", 0, &["aabc", "b!"], "", false);
    }
}
