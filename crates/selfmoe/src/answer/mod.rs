//! What a response answers. The filters of self-made rows, votes and the judging of check items all read it here.
//!
//! First the *final answer* is cut out of the response, then it is compared; how depends on the kind of answer and is described
//! in [`number`], [`choice`], [`text`] and [`code`].

pub mod choice;
pub mod code;
pub mod number;
pub mod python;
pub mod text;

/// Phrases that announce the final answer, in lower case; the longest that fits counts.
const MARKERS: [&str; 6] = ["the answer is", "answer is", "answer:", "answer =", "the answer:", "####"];

/// What stands behind the last announcement of a final answer ("The answer is …", "Answer: …", "#### …").
pub fn announced(response: &str) -> Option<&str> {
    // ASCII only, so that positions stay those of the response.
    let lower = response.to_ascii_lowercase();
    let end = MARKERS.iter().filter_map(|m| lower.rfind(m).map(|at| at + m.len())).max()?;
    Some(response[end..].trim_start_matches([':', ' ', '*', '_', '\n']))
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
        check("#### 12", Some("12"));
        check("THE ANSWER IS: x", Some("x"));
        check("the answer is", Some(""));
        check("four", None);
        check("Die Größe İ: the answer is ß", Some("ß"));
    }
}
