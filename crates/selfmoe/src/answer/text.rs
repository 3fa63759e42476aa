//! Short texts. The final answer is what stands behind the last announcement ("The answer is …") up to the end of the
//! line; without one, the last line that is not empty. It is compared in lower case, without punctuation, without the articles
//! a, an and the, and with single blanks; a first sentence that is followed by others counts alone as well ("Paris. It lies
//! on the Seine.").

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

/// The final text of a response, as it is written there.
pub fn extract(response: &str) -> Option<&str> {
    let line = match super::announced(response) {
        Some(rest) => rest.lines().next().unwrap_or_default(),
        None => response.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default(),
    };
    Some(line.trim()).filter(|line| !line.is_empty())
}

/// What a response states after its last announcement, up to the end of the line and without the full stop.
pub fn stated(response: &str) -> Option<&str> {
    let line = super::announced(response)?.lines().next()?.trim();
    Some(line.trim_end_matches('.').trim_end()).filter(|line| !line.is_empty())
}

/// Whether `found` is the text `expected`. Never for a text without letters and digits.
pub fn equal(found: &str, expected: &str) -> bool {
    let expected = normalise(expected);
    let same = |text: &str| !expected.is_empty() && normalise(text) == expected;
    same(found) || found.split_once(". ").is_some_and(|(first, _)| same(first))
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
    fn the_final_text_is_found() {
        let check = |response: &str, expected: Option<&str>, expected_stated: Option<&str>| {
            assert_eq!((extract(response), stated(response)), (expected, expected_stated), "{response}");
        };
        check("The answer is Greta.", Some("Greta."), Some("Greta"));
        check("The answer is the Nile", Some("the Nile"), Some("the Nile"));
        check("Greta", Some("Greta"), None);
        check("It flows north.\nNile\n\n", Some("Nile"), None);
        check("The answer is:\nParis\nmore", Some("Paris"), Some("Paris"));
        check("The answer is **Paris**\nmore", Some("Paris**"), Some("Paris**"));
        check("The answer is .", Some("."), None);
        check("The answer is", None, None);
        check("The answer is that the answer: is 4", Some("is 4"), Some("is 4"));
        check("", None, None);
    }

    #[test]
    fn texts_are_compared() {
        let check = |found: &str, expected: &str, same: bool| {
            assert_eq!(equal(found, expected), same, "{found} {expected}");
        };
        check("Greta.", "Greta", true);
        check("the Nile", "Nile", true);
        check("Nile", "The Nile", true);
        check("Paris. It lies on the Seine.", "Paris", true);
        check("Paris**", "Paris", true);
        check("Greta or Finn", "Greta", false);
        check("no", "yes", false);
        check(".", ".", false);
        check("", "", false);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "(\\PC|\n|answer is|[.:*]){0,30}") {
            let _ = (extract(&text), stated(&text), equal(&text, &text));
        }
    }
}
