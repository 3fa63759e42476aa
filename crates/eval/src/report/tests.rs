use super::*;

/// Made-up data with every part.
fn fixture() -> ReportData {
    serde_json::from_str(include_str!("fixture.json")).unwrap()
}

#[test]
fn every_part_is_on_the_page() {
    let page = render(&fixture()).unwrap();
    for part in [
        "<h1>runs&#x2f;quick</h1>",
        "<b>33.1&thinsp;%</b> mixture",
        "id=\"results\"",
        "id=\"routing\"",
        "id=\"losses\"",
        "id=\"data\"",
        "id=\"quality\"",
        "11.4 of 42",
        "math-check-004",
        "1.410 on held-out rows after step 24",
        "id=\"samples\"",
        "id=\"times\"",
        "id=\"files\"",
        "near duplicate",
        "href=\".&#x2f;data&#x2f;math.jsonl\"",
        "[generation]",
        "math 91 %, ",
    ] {
        assert!(page.contains(part), "{part:?} is missing");
    }
}

#[test]
fn an_unfinished_run_has_a_page() {
    let page = render(&ReportData { run: "r".into(), ..ReportData::default() }).unwrap();
    assert!(page.contains("<h1>r</h1>"));
    assert!(!page.contains("<section"));
}

/// Every text of the data replaced by one that tries to leave its place.
fn hostile(value: &mut serde_json::Value) {
    const ATTACK: &str = "</script></style><script>alert(1)</script><img src=x onerror=alert(2)>\" onmouseover=\"alert(3)\" '{{ 7*7 }}{% raw %}&lt;b&gt;\u{0}\u{202e}";
    match value {
        serde_json::Value::String(text) => text.insert_str(0, ATTACK),
        serde_json::Value::Array(items) => items.iter_mut().for_each(hostile),
        serde_json::Value::Object(map) => {
            map.iter_mut().filter(|(key, _)| *key != "kind").for_each(|(_, v)| hostile(v))
        }
        _ => {}
    }
}

#[test]
fn hostile_texts_stay_texts() {
    let mut value = serde_json::to_value(fixture()).unwrap();
    hostile(&mut value);
    let data: ReportData = serde_json::from_value(value).unwrap();
    let page = render(&data).unwrap();
    let plain = render(&fixture()).unwrap();
    for tag in [
        "<script",
        "</script",
        "<style",
        "</style",
        "<img",
        "<section",
        "<span class=\"t ",
        "<a href=\".&#x2f;",
    ] {
        assert_eq!(page.matches(tag).count(), plain.matches(tag).count(), "{tag}");
    }
    assert!(!page.contains("onmouseover=\"alert"));
    assert!(page.contains("{{ 7*7 }}"), "texts are not templates");
    assert!(page.contains("&lt;script&gt;alert(1)"));
}

#[test]
fn the_page_loads_nothing() {
    let page = render(&fixture()).unwrap();
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn data_that_does_not_fit_is_refused() {
    let check = |change: &dyn Fn(&mut ReportData), expected: &str| {
        let mut data = fixture();
        change(&mut data);
        let message = render(&data).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    };
    check(&|d| d.experts.truncate(1), "shares for 1 experts");
    check(&|d| d.routing.as_mut().unwrap().rows[0].shares[0] = f64::NAN, "not between 0 and 1");
    check(&|d| d.samples[0].tokens[0].probabilities.truncate(2), "one probability for each expert");
    check(&|d| d.methods[0].counts.values_mut().for_each(|c| c.correct = 1000), "1000 of");
}
