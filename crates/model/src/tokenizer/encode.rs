//! Text to ids, with a say in where special tokens are looked for.
//!
//! The tokenizers crate looks for special tokens everywhere in a text or nowhere (its `encode_special_tokens`). Here the
//! text says where ([`MarkedText`](super::MarkedText)); everything else is the crate's own pipeline, in its order: tokens
//! beside the vocabulary are cut out, the rest is normalised, tokens that are spelled after normalisation are cut out, what
//! remains is cut into words and given to the model.

use std::{collections::HashMap, ops::Range};

use aho_corasick::{AhoCorasick, Input, MatchKind};
use tokenizers::{
    Model, ModelWrapper, NormalizedString, Normalizer, OffsetType, PreTokenizedString, PreTokenizer, Token,
    tokenizer::normalizer::Range as Cut,
};

/// The tokens beside a vocabulary.
#[derive(Debug, Default)]
pub(super) struct AddedTokens {
    /// Those that are looked for in the text as it stands.
    literal: Matcher,
    /// Those that are looked for after normalisation, spelled as they are then.
    normalized: Matcher,
    /// Spelling of the special ones.
    special: HashMap<u32, String>,
}

#[derive(Debug, Default)]
struct Matcher {
    /// None where there are no tokens.
    automaton: Option<AhoCorasick>,
    /// By the number of the automaton's pattern.
    tokens: Vec<Added>,
}

#[derive(Debug, Clone, Copy)]
struct Added {
    id: u32,
    special: bool,
    /// Not inside a word.
    single_word: bool,
    /// Swallows the white space to its left, to its right.
    strip: (bool, bool),
}

impl AddedTokens {
    pub(super) fn of(vocabulary: &tokenizers::Tokenizer) -> tokenizers::Result<Self> {
        let (mut literal, mut normalized) = (Vec::new(), Vec::new());
        let mut special = HashMap::new();
        for (&id, token) in vocabulary.get_added_vocabulary().get_added_tokens_decoder() {
            if token.content.is_empty() {
                continue;
            }
            if token.special {
                special.insert(id, token.content.clone());
            }
            let added = Added {
                id,
                special: token.special,
                single_word: token.single_word,
                strip: (token.lstrip, token.rstrip),
            };
            match vocabulary.get_normalizer().filter(|_| token.normalized) {
                Some(normalizer) => {
                    let mut spelled = NormalizedString::from(token.content.as_str());
                    normalizer.normalize(&mut spelled)?;
                    normalized.push((spelled.get().to_owned(), added));
                }
                None if token.normalized => normalized.push((token.content.clone(), added)),
                None => literal.push((token.content.clone(), added)),
            }
        }
        Ok(Self { literal: Matcher::new(literal)?, normalized: Matcher::new(normalized)?, special })
    }

    /// Spelling of a special token.
    pub(super) fn spelling(&self, id: u32) -> Option<&str> {
        self.special.get(&id).map(String::as_str)
    }

    /// Spellings of the special tokens.
    pub(super) fn special(&self) -> impl Iterator<Item = &str> {
        self.special.values().map(String::as_str)
    }

    /// Token ids of `text`; no special token begins, ends or lies in the bytes `outside`.
    pub(super) fn encode(
        &self,
        vocabulary: &tokenizers::Tokenizer,
        text: &str,
        outside: &[Range<usize>],
    ) -> tokenizers::Result<Vec<u32>> {
        let mut pieces = PreTokenizedString::from(text);
        pieces.split(|_, piece| Ok(self.literal.cut(&piece, outside)))?;
        pieces.split(|_, mut piece| {
            if let Some(normalizer) = vocabulary.get_normalizer() {
                normalizer.normalize(&mut piece)?;
            }
            Ok(self.normalized.cut(&piece, outside))
        })?;
        if let Some(pre_tokenizer) = vocabulary.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|word| self.tokens(vocabulary.get_model(), word.get()))?;
        Ok(pieces.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
    }

    /// The model's tokens of a word. Some models have special tokens in their vocabulary proper and would make them from
    /// plain text that spells them: such a token is spelled out a character at a time instead.
    fn tokens(&self, model: &ModelWrapper, word: &str) -> tokenizers::Result<Vec<Token>> {
        let tokens = model.tokenize(word)?;
        // A character that the model does not know becomes a special token that is not spelled like it.
        let spells_special = |token: &Token, word: &str| {
            let spelling = self.special.get(&token.id);
            spelling.is_some_and(|spelling| word.get(token.offsets.0..token.offsets.1) == Some(spelling))
        };
        if !tokens.iter().any(|token| spells_special(token, word)) {
            return Ok(tokens);
        }
        let mut out = Vec::new();
        for token in tokens {
            if !spells_special(&token, word) {
                out.push(token);
                continue;
            }
            for (at, c) in word[token.offsets.0..token.offsets.1].char_indices() {
                let at = token.offsets.0 + at;
                let character = &word[at..at + c.len_utf8()];
                let alone = model.tokenize(character)?;
                if alone.iter().any(|token| spells_special(token, character)) {
                    return Err(format!(
                        "{character:?} is a special token of this model and cannot be written as text"
                    )
                    .into());
                }
                out.extend(alone.into_iter().map(|mut token| {
                    token.offsets = (token.offsets.0 + at, token.offsets.1 + at);
                    token
                }));
            }
        }
        Ok(out)
    }
}

/// A part of a text, with its token if it is one.
type Piece = (NormalizedString, Option<Vec<Token>>);

impl Matcher {
    fn new(patterns: Vec<(String, Added)>) -> tokenizers::Result<Self> {
        if patterns.is_empty() {
            return Ok(Self::default());
        }
        let (spelled, tokens): (Vec<String>, Vec<Added>) = patterns.into_iter().unzip();
        let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(spelled)?;
        Ok(Self { automaton: Some(automaton), tokens })
    }

    /// `piece` cut at the tokens in it.
    fn cut(&self, piece: &NormalizedString, outside: &[Range<usize>]) -> Vec<Piece> {
        let text = piece.get();
        let part = |range: Range<usize>, id: Option<u32>| {
            let token = |id| vec![Token::new(id, text[range.clone()].to_owned(), (0, range.len()))];
            piece.slice(Cut::Normalized(range.clone())).map(|slice| (slice, id.map(token)))
        };
        let mut parts = Vec::new();
        let mut done = 0;
        for (id, range) in self.find(piece, outside) {
            if done < range.start {
                parts.extend(part(done..range.start, None));
            }
            done = range.end;
            parts.extend(part(range, Some(id)));
        }
        if done < text.len() || text.is_empty() {
            parts.extend(part(done..text.len(), None));
        }
        parts
    }

    /// The tokens in a piece and where they stand: from left to right, of those that begin at one place the longest.
    fn find(&self, piece: &NormalizedString, outside: &[Range<usize>]) -> Vec<(u32, Range<usize>)> {
        let mut found = Vec::new();
        let Some(automaton) = &self.automaton else { return found };
        let text = piece.get();
        let (mut from, mut done) = (0, 0);
        while let Some(hit) = automaton.find(Input::new(text).range(from..)) {
            let Added { id, special, single_word, strip } = self.tokens[hit.pattern().as_usize()];
            let (mut start, mut end) = (hit.start(), hit.end());
            from = end;
            if special {
                let original = piece
                    .slice(Cut::Normalized(start..end))
                    .map_or(start..end, |slice| slice.offsets_original().0..slice.offsets_original().1);
                match place(&original, outside) {
                    Place::Template => {}
                    Place::Content => continue,
                    // What begins in content may cover the beginning of a token that the template wrote.
                    Place::Both => {
                        from = start + text[start..].chars().next().map_or(1, char::len_utf8);
                        continue;
                    }
                }
            }
            if single_word && (text[..start].ends_with(is_word) || text[end..].starts_with(is_word)) {
                continue;
            }
            if strip.0 {
                start = text[..start].trim_end().len().max(done);
            }
            if strip.1 {
                end = text.len() - text[end..].trim_start().len();
            }
            found.push((id, start..end));
            done = end;
        }
        found
    }
}

/// Where a range lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Template,
    Content,
    Both,
}

fn place(range: &Range<usize>, outside: &[Range<usize>]) -> Place {
    let next = outside.partition_point(|content| content.end <= range.start);
    match outside.get(next) {
        Some(content) if content.start <= range.start && range.end <= content.end => Place::Content,
        Some(content) if content.start < range.end => Place::Both,
        _ => Place::Template,
    }
}

/// A character of a word in the sense of regular expressions, but for combining marks.
fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}
