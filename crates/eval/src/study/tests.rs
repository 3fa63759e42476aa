use super::*;

fn answers(method: &str, kind: MethodKind, seed: u64, right: &[u8]) -> Answers {
    let items = right.iter().enumerate().map(|(i, &r)| (format!("i{i}"), r == 1)).collect();
    let files = vec![format!("runs/s{seed}/eval/{method}/math.0.jsonl")];
    let domain = DomainAnswers { domain: "math".into(), files, items };
    Answers { group: String::new(), method: method.into(), kind, seed, domains: vec![domain] }
}

fn findings() -> Findings {
    let few: Vec<u8> = (0..60).map(|i| u8::from(i % 6 == 0)).collect();
    let many: Vec<u8> = (0..60).map(|i| u8::from(i % 3 != 1)).collect();
    let other: Vec<u8> = (0..60).map(|i| u8::from(i % 3 != 2)).collect();
    Findings {
        title: "A <test>".into(),
        about: "50 % & more".into(),
        domains: vec!["math".into(), "coding".into()],
        runs: (2, 3),
        answers: vec![
            answers("base", MethodKind::Base, 0, &few),
            answers("mixture", MethodKind::Mixture, 0, &many),
            answers("base", MethodKind::Base, 1, &few),
            answers("mixture", MethodKind::Mixture, 1, &other),
            answers("oracle", MethodKind::Baseline, 0, &[1; 60]),
        ],
        routing: vec![RunRouting {
            group: String::new(),
            seed: 0,
            experts: vec!["math".into(), "coding".into()],
            rows: vec![crate::report::RoutingRow {
                domain: "math".into(),
                tokens: 10,
                shares: vec![0.9, 0.1],
            }],
        }],
        data: vec![RunData { group: String::new(), seed: 0, rows: vec![("math".into(), 40)] }],
        notes: vec![],
    }
}

#[test]
fn seeds_are_averaged_and_compared_item_by_item() {
    let summary = summarise(&findings());
    let [base, mixture, oracle] = &summary.rows[..] else { panic!("{summary:?}") };
    assert_eq!((base.seeds.as_slice(), mixture.seeds.as_slice()), (&[0, 1][..], &[0, 1][..]));
    assert_eq!((base.overall.items, base.overall.correct.as_slice()), (60, &[10, 10][..]));
    assert_eq!(base.overall.seed_deviation, Some(0.0));
    assert!((mixture.overall.share - 40.0 / 60.0).abs() < 1e-12);
    assert!(mixture.overall.interval.low > 0.5 && mixture.overall.interval.high < 0.8);
    assert_eq!(mixture.domains[1], None);
    let contrast = mixture.to_base.as_ref().unwrap();
    assert!((contrast.difference.difference - 0.5).abs() < 1e-12 && contrast.difference.p < 0.01);
    assert!(contrast.p_holm >= contrast.difference.p);
    assert!(base.to_base.is_none() && mixture.mixture_to_this.is_none());
    assert!(base.mixture_to_this.as_ref().unwrap().difference.difference > 0.4);
    assert!(mixture.overall.best && !base.overall.best && !oracle.overall.best);
}

#[test]
fn rows_of_different_groups_are_not_compared() {
    let mut findings = findings();
    for answers in &mut findings.answers {
        if answers.method == "mixture" {
            answers.group = "other".into();
        }
    }
    let summary = summarise(&findings);
    let mixture = summary.rows.iter().find(|row| row.method == "mixture").unwrap();
    assert!(mixture.to_base.is_none() && mixture.overall.best);
}

#[test]
fn everything_is_written_and_escaped() {
    let findings = findings();
    let summary = summarise(&findings);
    let figures = figures(&findings, &summary);
    let names: Vec<&str> = figures.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["overall", "domain-math", "routing"]);
    assert!(figures.iter().all(|f| f.svg.starts_with("<svg") && f.svg.trim_end().ends_with("</svg>")));
    for figure in &figures {
        let png = figure.png().unwrap();
        let size = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
        assert!(png.starts_with(b"\x89PNG") && size(16) > 400 && size(20) > 100, "{}", figure.name);
        // Letters are there: without any, the image of the same figure is another one.
        let bare = Figure { svg: without_text(&figure.svg), ..figure.clone() };
        assert_ne!(bare.png().unwrap(), png, "{}", figure.name);
    }
    let html = page(&findings, &summary, &figures, "seeds = [0]").unwrap();
    for part in ["A &lt;test&gt;", "2 of 3 runs", "66.7", "paper 54.3", "<svg", "+50.0"] {
        assert!(html.contains(part), "{part} is not in the page");
    }
    assert!(!html.contains("<test>"));
    let tex = latex(&findings, &summary);
    assert!(tex.contains("\\textbf{66.7}") && tex.ends_with("\\end{tabular}\n"), "{tex}");
    let csv = csv(&findings, &summary);
    assert!(csv.contains("\n,mixture,all,2,60,0.666667,"), "{csv}");
    let items = items_csv(&findings);
    assert_eq!(items.lines().count(), 1 + 5 * 60);
    assert!(items.contains(",base,0,math,i0,1,runs/s0/eval/base/math.0.jsonl\n"));
}

#[test]
fn long_labels_are_not_cut_off() {
    let mut findings = findings();
    findings.routing[0].rows[0].domain = "questions about the law of the sea".into();
    for (i, answers) in findings.answers.iter_mut().enumerate() {
        answers.group = format!("setting {}", i % 2);
        answers.method = format!("mixture(fit=ridge, top_k={i}, scale=renormalized, temperature=0.5)");
    }
    let figures = figures(&findings, &summarise(&findings));
    assert!(["overall", "settings", "routing"].iter().all(|name| figures.iter().any(|f| f.name == *name)));
    for figure in figures {
        let attribute = |element: &str, name: &str| {
            let (_, rest) = element.split_once(&format!(" {name}=\"")).unwrap();
            rest.split('"').next().unwrap().to_owned()
        };
        let width: f64 = attribute(&figure.svg, "width").parse().unwrap();
        for element in figure.svg.split("<text").skip(1) {
            let words = element.split_once('>').unwrap().1.split('<').next().unwrap();
            let x: f64 = attribute(element, "x").parse().unwrap();
            let long = 6.0 * words.chars().count() as f64;
            match attribute(element, "text-anchor").as_str() {
                "end" => assert!(x >= long, "{}: {words}", figure.name),
                "start" => assert!(x + long <= width, "{}: {words}", figure.name),
                _ => assert!(x >= long / 2.0 && x + long / 2.0 <= width, "{}: {words}", figure.name),
            }
        }
    }
}

#[test]
fn a_study_without_answers_is_a_page_too() {
    let empty = Findings { answers: vec![], routing: vec![], data: vec![], ..findings() };
    let summary = summarise(&empty);
    assert!(figures(&empty, &summary).is_empty());
    assert!(page(&empty, &summary, &[], "").unwrap().contains("Tables"));
    assert!(!latex(&empty, &summary).contains("tabular"));
}

/// A drawing without its text elements.
fn without_text(svg: &str) -> String {
    let mut left = String::new();
    for (i, part) in svg.split("<text").enumerate() {
        left += if i == 0 { part } else { part.split_once("</text>").map_or("", |(_, rest)| rest) };
    }
    left
}
