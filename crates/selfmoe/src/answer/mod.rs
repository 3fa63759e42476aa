//! What a response answers. The filters of self-made rows, votes and the judging of check items all read it here.
//!
//! First the response is cut where it stops answering what was asked ([`own`]), then the *final answer* is cut out of it, then
//! that is compared; how depends on the kind of answer and is described in [`number`], [`choice`], [`text`] and [`code`].
//! What can be read in more than one way ("4 or 5", "B or C") is no answer.

pub mod choice;
pub mod code;
pub mod number;
pub mod python;
pub mod text;

/// Raised when the same response may be judged otherwise than before; kept verdicts name it.
pub const VERSION: u32 = 2;

/// Words that, with a colon behind them at the start of a line, begin another task: the stop strings of lm-evaluation-harness
/// 0.4.13 (`Q:`, `Question:`, `Problem:`) and what prompts of instruction sets begin with.
const HEADINGS: [&str; 8] = ["question", "q", "problem", "instruction", "task", "exercise", "user", "human"];

/// Texts behind which nothing of a response is left: marks of the end or of another turn, which a model may spell out.
const ENDS: [&str; 12] = [
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end|>",
    "<|user|>",
    "<|end_of_text|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "</s>",
    "[INST]",
    "I hope it is correct",
];

/// The part of a response that answers what was asked. Models run on: they write the next question, and its answer. What
/// follows is cut off where
///
/// - a line begins with "Question:", "Q:", "Problem:", "### Instruction" and the like, and something stands before it;
/// - the model spells out the end of a turn, or Minerva's "I hope it is correct";
/// - behind an announced answer and an empty line a paragraph asks something, unless it begins with a doubt ("Wait, …").
pub fn own(response: &str) -> &str {
    let mut end = ENDS.iter().filter_map(|mark| response.find(mark)).min().unwrap_or(response.len());
    let (mut start, mut announced, mut after_blank) = (0, false, false);
    for line in response[..end].split_inclusive('\n') {
        let before = response[..start].trim();
        let asks = announced && after_blank && asks_anew(&response[start..end]);
        if !before.is_empty() && (is_heading(line) || asks) {
            end = start;
            break;
        }
        announced |= last_announcement(line).is_some();
        after_blank = line.trim().is_empty();
        start += line.len();
    }
    &response[..end]
}

/// `Question 2:`, `**Q:**`, `### Instruction`.
fn is_heading(line: &str) -> bool {
    let bare = line.trim_start_matches([' ', '\t', '*', '_', '>']);
    let (section, bare) = match bare.strip_prefix("##") {
        Some(rest) => (true, rest.trim_start_matches(['#', ' ', '*', '_'])),
        None => (false, bare),
    };
    let lower = bare.to_ascii_lowercase();
    let headings = HEADINGS.iter().copied().chain(section.then_some("input"));
    headings.filter_map(|word| lower.strip_prefix(word)).any(|rest| {
        let rest = rest.trim_start_matches(['*', '_', ' ', '#', '.']);
        let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches(['*', '_', ' ']);
        rest.starts_with(':') || (section && rest.trim().is_empty())
    })
}

/// Whether the paragraph at the start of `text` is a question to be answered, not a doubt about the answer before it.
fn asks_anew(text: &str) -> bool {
    const DOUBTS: [&str; 11] =
        ["wait", "hmm", "hm", "but", "let", "is that", "is this", "is it", "did i", "check", "right"];
    let paragraph = text.trim_start();
    let paragraph = paragraph.split("\n\n").next().unwrap_or_default();
    let lower = paragraph.to_lowercase();
    let doubt = DOUBTS
        .iter()
        .any(|d| lower.strip_prefix(d).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric)));
    !doubt && paragraph.contains('?')
}

/// What stands behind the last announcement of a final answer in the response's own part: "The answer is …", "**Answer:** …",
/// "#### …" (GSM8K), `\boxed{…}` (MATH; as far as the brace), `<answer>…</answer>`. "The answer is not …" announces nothing.
pub fn announced(response: &str) -> Option<&str> {
    let whole = last_announcement(own(response))?;
    let rest = whole.trim_start_matches([':', ' ', '*', '_', '\n', '\r', '\t']);
    let own_line = whole[..whole.len() - rest.len()].contains('\n');
    // The hyphen of a list is no sign.
    Some(rest.strip_prefix("- ").filter(|_| own_line).unwrap_or(rest))
}

fn last_announcement(text: &str) -> Option<&str> {
    // ASCII only, so that positions stay those of the response.
    let lower = text.to_ascii_lowercase();
    let plain =
        ["answer", "####"].iter().flat_map(|word| lower.match_indices(word)).filter_map(|(at, word)| {
            let end = at + word.len();
            if word == "####" {
                // More signs are a heading.
                return (!lower[end..].starts_with('#') && !lower[..at].ends_with('#'))
                    .then_some((end, text.len()));
            }
            let inside_a_word = text[..at].ends_with(|c: char| c.is_alphanumeric());
            let behind = behind_the_word(&lower[end..])?;
            (!inside_a_word).then_some((end + behind, text.len()))
        });
    let tagged = lower.rfind("<answer>").map(|at| {
        let start = at + "<answer>".len();
        (start, lower[start..].find("</answer>").map_or(text.len(), |length| start + length))
    });
    let boxed = text.rfind("\\boxed").or_else(|| text.rfind("\\fbox")).and_then(|at| {
        let start = at + text[at + 1..].find(|c: char| !c.is_ascii_alphabetic())? + 1;
        let inside = braced(&text[start..]).map(|inside| (start + 1, start + 1 + inside.len()));
        // As the harness reads it: `\boxed 5` goes up to the formula's end.
        inside.or_else(|| {
            let rest = text[start..].strip_prefix(' ')?;
            let length = rest.find(['$', '\n']).unwrap_or(rest.len());
            Some((start + 1, start + 1 + length))
        })
    });
    let (start, end) = plain.chain(tagged).chain(boxed).max()?;
    Some(&text[start..end])
}

/// Where the answer begins behind the word "answer", in lower case: behind "is", "would be", a colon and the like, for which
/// some words may stand in between ("answer to the question is", "answer (in dollars):").
fn behind_the_word(text: &str) -> Option<usize> {
    const VERBS: [&str; 8] =
        ["is", "would be", "will be", "should be", "must be", "was", "equals", "comes out to"];
    let bare = text.trim_start_matches([' ', '*', '_']);
    let skipped = text.len() - bare.len();
    if bare.starts_with([':', '=']) {
        return Some(skipped + 1);
    }
    if let Some(rest) = bare.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
        let (inside, rest) = rest;
        let colon = rest.trim_start_matches(['*', '_', ' ']);
        return (!inside.contains('\n') && colon.starts_with(':')).then(|| text.len() - colon.len() + 1);
    }
    let verb = |at: usize| {
        let rest = bare.get(at..)?;
        let verb = VERBS.iter().find(|verb| {
            rest.strip_prefix(**verb).is_some_and(|r| !r.starts_with(|c: char| c.is_alphanumeric()))
        })?;
        let end = at + verb.len();
        let negated = bare[end..].trim_start().strip_prefix("not");
        let negated = negated.is_some_and(|r| !r.starts_with(|c: char| c.is_alphanumeric()));
        (!negated && !bare[end..].starts_with("n't")).then_some(skipped + end)
    };
    if ["to ", "for ", "of "].iter().any(|word| bare.starts_with(word)) {
        // Up to the end of the sentence, which is no long one.
        let mut ends =
            bare.char_indices().filter(|(at, c)| *at > 120 || matches!(c, '.' | '\n' | '?' | '!' | ':'));
        let sentence = ends.next().map_or(bare.len(), |(at, _)| at);
        return bare[..sentence].match_indices(' ').find_map(|(at, _)| verb(at + 1));
    }
    verb(0)
}

/// What stands between the brace at the start of `text` and its partner.
fn braced(text: &str) -> Option<&str> {
    let mut depth = 0_usize;
    for (at, c) in text.strip_prefix('{').map(|_| text)?.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return Some(&text[1..at]),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_announcement_counts() {
        let check = |response, expected| assert_eq!(announced(response), expected, "{response}");
        check("The answer is 3. No, the answer is 4.", Some("4."));
        check("Answer: 4", Some("4"));
        check("**Answer:** 4", Some("4"));
        check("**Answer**: 4", Some("4"));
        check("#### 12", Some("12"));
        check("THE ANSWER IS: x", Some("x"));
        check("the answer is", Some(""));
        check("four", None);
        check("Die Größe İ: the answer is ß", Some("ß"));
        check("The answer to the question is 4.", Some("4."));
        check("Answer (in dollars): 4", Some("4"));
        check("The answer would be 4", Some("4"));
        check("The answer is 4. The answer is not 5.", Some("4. The answer is not 5."));
        check("The answer isn't 4", None);
        check("The answer is notable", Some("notable"));
        check("so \\boxed{\\frac{1}{2}}.", Some("\\frac{1}{2}"));
        check("$\\boxed 5$ it is", Some("5"));
        check("<answer>5</answer> done", Some("5"));
        check("##### Answers", None);
    }

    #[test]
    fn what_follows_a_new_question_is_cut() {
        let check =
            |response: &str, expected: &str| assert_eq!(own(response).trim_end(), expected, "{response}");
        check("The answer is 4.\n\nQuestion: 3 + 6?\nThe answer is 9.", "The answer is 4.");
        check("The answer is 4.\nQ: 3 + 6?\nA: 9", "The answer is 4.");
        check("4\n**Question 2:** x", "4");
        check("4\n### Instruction:\nx", "4");
        check("4\n### Input\nx", "4");
        check("Question: 2 + 2?\nThe answer is 4.", "Question: 2 + 2?\nThe answer is 4.");
        check("Question: 2 + 2?\nThe answer is 4.\nQuestion: 3 + 6?", "Question: 2 + 2?\nThe answer is 4.");
        check("The answer is 4.<|im_end|>\n<|im_start|>user\n9", "The answer is 4.");
        check("The answer is 4.\n\nTom has 5. How many?\nThe answer is 9.", "The answer is 4.");
        check(
            "The answer is 4.\n\nWait, is it?\nThe answer is 5.",
            "The answer is 4.\n\nWait, is it?\nThe answer is 5.",
        );
        check("How many?\n\nIs it 4? The answer is 4.", "How many?\n\nIs it 4? The answer is 4.");
        check("Quality: good", "Quality: good");
        check("x\nQueue: y", "x\nQueue: y");
        check("", "");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_cut_without_panic(
            text in "(\\PC|\n|answer|is|not|to|\\(|\\)|:|####|\\\\boxed|\\{|\\}|<answer>|Question|Q:|\\?|İ| ){0,30}",
        ) {
            let _ = (own(&text), announced(&text));
        }
    }
}
