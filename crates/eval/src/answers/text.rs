//! Short texts. The final answer is what stands behind the last announcement ("The answer is …") up to the end of the
//! line; without one, the last line that is not empty. It is right if it equals an accepted answer when both are in lower case,
//! without punctuation, without the articles a, an and the, and with single blanks; a first sentence that is
//! followed by others is tried alone as well ("Paris. It lies on the Seine.").

use super::Verdict;

/// Lower case, letters and digits only, no articles, single blanks. Hyphens and slashes separate words; apostrophes and
/// points within a word vanish ("U.S." is "us").
pub fn normalise(text: &str) -> String {
    let kept: String = text
        .chars()
        .flat_map(char::to_lowercase)
        .filter_map(|c| match c {
            c if c.is_alphanumeric() => Some(c),
            '\'' | '’' | '.' | ',' => None,
            // Signs that change what a number means.
            '%' | '+' => Some(c),
            _ => Some(' '),
        })
        .collect();
    let words = kept.split_whitespace().filter(|w| !matches!(*w, "a" | "an" | "the"));
    words.collect::<Vec<_>>().join(" ")
}

pub(super) fn judge(response: &str, accept: &[String]) -> Verdict {
    let line = match super::after_marker(response) {
        Some(rest) => rest.lines().next().unwrap_or_default(),
        None => response.lines().rfind(|l| !l.trim().is_empty()).unwrap_or_default(),
    };
    let line = line.trim();
    let sentence = line.split_once(". ").map(|(first, _)| first);
    let right = |text: &str| {
        let text = normalise(text);
        !text.is_empty() && accept.iter().any(|a| normalise(a) == text)
    };
    let correct = right(line) || sentence.is_some_and(right);
    Verdict::decided((!line.is_empty()).then(|| line.to_string()), |_| correct)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_normalised() {
        let check = |text, expected| assert_eq!(normalise(text), expected, "{text}");
        check("The  Nile!", "nile");
        check("U.S.A.", "usa");
        check("Jack-o'-lantern", "jack o lantern");
        check("a an the", "");
        check("ÉCOLE", "école");
        check("50%", "50%");
        check("1,000", "1000");
    }

    #[test]
    fn the_final_text_is_compared() {
        let check = |response: &str, accept: &[&str], extracted: Option<&str>, correct: bool| {
            let accept: Vec<String> = accept.iter().map(ToString::to_string).collect();
            let expected = Verdict::Decided { extracted: extracted.map(Into::into), correct };
            assert_eq!(judge(response, &accept), expected, "{response}");
        };
        check("The answer is Greta.", &["Greta"], Some("Greta."), true);
        check("The answer is the Nile", &["Nile"], Some("the Nile"), true);
        check("Greta", &["Greta"], Some("Greta"), true);
        check("It flows north.\nNile\n\n", &["The Nile"], Some("Nile"), true);
        check(
            "The answer is Paris. It lies on the Seine.",
            &["Paris"],
            Some("Paris. It lies on the Seine."),
            true,
        );
        check("The answer is **Paris**\nmore", &["Paris"], Some("Paris**"), true);
        check("Greta or Finn", &["Greta"], Some("Greta or Finn"), false);
        check("The answer is no", &["yes", "true"], Some("no"), false);
        check("", &["Greta"], None, false);
        check("The answer is .", &["."], Some("."), false);
    }
}
