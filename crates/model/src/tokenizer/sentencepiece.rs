//! SentencePiece vocabularies with byte fallback (Llama 2's and Gemma's kind).

use std::cmp::Ordering;

use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper,
    decoders::{byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as Decoders, strip::Strip},
    models::bpe::{BPE, Merges, Vocab},
    normalizers::{Prepend, Replace, Sequence as Normalizers},
};

use super::gguf::{Entry, Kind};

/// Stands for a space.
const SPACE: &str = "▁";

/// Bytes of the longest piece: known ones stay below 200. All ways to cut a piece in two are tried, which takes the square of
/// its length.
const MAX_PIECE: usize = 1024;

/// What decides which of two possible merges comes first.
#[derive(Debug, Clone, Copy)]
pub(super) enum MergeOrder<'a> {
    /// The higher score (Llama 2: scores are the negative ranks of the merges).
    Scores(&'a [f64]),
    /// The lower id: Gemma's scores do not follow its merges, its ids do.
    Ids,
}

/// The tokenizer of a SentencePiece vocabulary.
pub(super) fn build(
    entries: &[Entry<'_>],
    order: MergeOrder<'_>,
    unknown: Option<u32>,
    add_space_prefix: bool,
) -> tokenizers::Result<tokenizers::Tokenizer> {
    if let Some(long) = entries.iter().find(|entry| entry.text.len() > MAX_PIECE) {
        return Err(format!("token {} has {} bytes (at most {MAX_PIECE})", long.id, long.text.len()).into());
    }
    let spelled: Vec<Entry<'_>> = entries.iter().map(Entry::clone).map(respell_spaces).collect();
    let vocabulary: Vocab = spelled.iter().map(|entry| (entry.text.to_string(), entry.id)).collect();
    let merges = merges(&spelled, &vocabulary, order);
    let mut model = BPE::builder().byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = unknown.and_then(|id| spelled.get(id as usize)) {
        model = model.unk_token(unknown.text.to_string());
    }
    let mut tokenizer = tokenizers::Tokenizer::new(model.vocab_and_merges(vocabulary, merges).build()?);
    let mut normalizers: Vec<NormalizerWrapper> = vec![Replace::new(" ", SPACE)?.into()];
    let mut decoders: Vec<DecoderWrapper> =
        vec![Replace::new(SPACE, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if add_space_prefix {
        normalizers.insert(0, Prepend::new(SPACE.to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers)))?;
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    // Runs of spaces are spelled for the time after normalisation, where the merges build them.
    let added = spelled.iter().filter(|entry| {
        entry.kind == Kind::Control || (entry.kind == Kind::UserDefined && !entry.text.starts_with(SPACE))
    });
    tokenizer.add_tokens(added.map(|entry| {
        AddedToken::from(entry.text.to_string(), entry.kind == Kind::Control).normalized(false)
    }))?;
    Ok(tokenizer)
}

/// Runs of spaces, which converters write as they are, in the vocabulary's own spelling.
fn respell_spaces(mut entry: Entry<'_>) -> Entry<'_> {
    if !entry.text.is_empty() && entry.text.bytes().all(|byte| byte == b' ') {
        entry.text = SPACE.repeat(entry.text.len()).into();
    }
    entry
}

/// Every way to put a token together from two others, in the order in which they are to be tried. SentencePiece files
/// keep no merges: any two neighbours that form a token may be joined.
fn merges(entries: &[Entry<'_>], vocabulary: &Vocab, order: MergeOrder<'_>) -> Merges {
    struct Candidate<'a> {
        id: u32,
        left: &'a str,
        right: &'a str,
    }
    let joinable = |part: &str| {
        let entry = vocabulary.get(part).and_then(|&id| entries.get(id as usize));
        entry.is_some_and(|entry| matches!(entry.kind, Kind::Normal | Kind::UserDefined))
    };
    let mut candidates = Vec::new();
    for entry in entries.iter().filter(|entry| matches!(entry.kind, Kind::Normal | Kind::UserDefined)) {
        for (at, _) in entry.text.char_indices().skip(1).collect::<Vec<_>>().into_iter().rev() {
            let (left, right) = entry.text.split_at(at);
            if joinable(left) && joinable(right) {
                candidates.push(Candidate { id: entry.id, left, right });
            }
        }
    }
    // Ids ascend already, and within an id longer left parts come first.
    if let MergeOrder::Scores(scores) = order {
        let score =
            |candidate: &Candidate<'_>| scores.get(candidate.id as usize).copied().unwrap_or(f64::MIN);
        let lengths = |c: &Candidate<'_>| (c.left.chars().count(), c.right.chars().count());
        candidates.sort_by(|a, b| match score(b).total_cmp(&score(a)) {
            Ordering::Equal => lengths(b).cmp(&lengths(a)),
            unequal => unequal,
        });
    }
    candidates.into_iter().map(|c| (c.left.to_owned(), c.right.to_owned())).collect()
}

/// The bytes that a token of such a vocabulary stands for.
pub(super) fn bytes(token: &str) -> Vec<u8> {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    match hex.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => vec![byte],
        None => token.replace(SPACE, " ").into_bytes(),
    }
}
