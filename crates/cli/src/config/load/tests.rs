use super::*;

fn parse_text(text: &str) -> anyhow::Result<Config> {
    parse(&Source { name: Some("mixse.toml".into()), text }, None, |_| {})
}

#[test]
fn a_file_changes_what_it_names() {
    let config =
        parse_text("seed = 7\nthreads = 3\n[router]\ntop_k = 2\n[router.training]\nepochs = 4").unwrap();
    let mut expected = Config::preset(Preset::Quick);
    expected.seed = 7;
    expected.threads = "3".parse().unwrap();
    expected.router.router.gate.top_k = 2;
    expected.router.training.epochs = 4;
    assert_eq!(config, expected);
}

#[test]
fn every_preset_is_valid_and_survives_writing() {
    for preset in [Preset::Quick, Preset::Tuned, Preset::Paper] {
        let config = Config::preset(preset);
        let text = toml::to_string(&config).unwrap();
        assert_eq!(parse_text(&text).unwrap(), config);
    }
    assert_eq!(parse_text("preset = \"paper\"").unwrap(), Config::preset(Preset::Paper));
}

#[test]
fn faults_name_line_and_key() {
    let check = |text: &str, expected: &[&str]| {
        let message = parse_text(text).unwrap_err().to_string();
        for part in expected {
            assert!(message.contains(part), "{part:?} is not in:\n{message}");
        }
    };
    check("seed = = 1", &["mixse.toml", "line 1"]);
    check("\nsede = 1", &["mixse.toml, line 2, sede", "there is no key", "seed"]);
    check("[router]\ninput = \"blok\"", &["line 2, router.input", "block", "base_last"]);
    check("preset = \"fast\"", &["line 1, preset", "quick", "tuned", "paper"]);
    check("[nope]\na = 1", &["nope"]);
    check("router = 3", &["line 1, router"]);
    check("threads = 0", &["line 1, threads", "`all`"]);
    check("[router]\ntop_k = 9", &["line 1, router: router.top_k = 9 must lie between 1 and 4"]);
    check("domains = [\"math\", \"math\"]", &["line 1, domains", "twice"]);
    check("[expert]\ndropout = 1.0", &["line 1, expert: dropout"]);
    check("[expert.domains.math]\nrank = 0", &["line 1, expert.domains.math: rank"]);
    check("[expert.domains.math]\nranc = 4", &["line 2, expert.domains.math.ranc", "rank"]);
    check("[expert.training]\npatience = 2", &["expert.training: patience"]);
    check("[expert.training]\nvalidation = 1.5", &["expert.training: validation"]);
    check(
        "methods = [\"joint\"]\n[expert.domains.math]\ndropout = 0.1",
        &["joint: experts that are trained together have one dropout"],
    );
    check(
        "methods = [\"linear(form=factors)\"]\n[expert.domains.math]\nrank = 4",
        &["factors of different ranks"],
    );
    check("[generation]\ntop_p = nan", &["generation", "top_p"]);
}

#[test]
fn single_domains_can_differ() {
    let text = "[expert]\nrank = 8\n[expert.training]\nvalidation = 0.1\npatience = 2\n[expert.domains.math]\nrank = 32\n\
                alpha = 64\ntargets = [\"q_proj\", \"v_proj\"]\nlearning_rate = 1e-3\n[expert.domains.coding]\ndropout = 0.1";
    let config = parse_text(text).unwrap();
    let (math, coding, other) =
        (config.expert.of("math"), config.expert.of("coding"), config.expert.of("knowledge"));
    assert_eq!((math.lora.rank, math.lora.alpha, math.lora.targets.len()), (32, 64.0, 2));
    assert_eq!((math.training.learning_rate, math.training.patience), (1e-3, 2));
    assert_eq!((coding.lora.rank, coding.lora.dropout), (8, 0.1));
    assert_eq!(other, config.expert.common());
    assert_eq!(parse_text(&toml::to_string(&config).unwrap()).unwrap(), config);
    let differences = compare(&Config::preset(Preset::Quick), &config).unwrap();
    assert!(
        differences.contains(&"expert.domains.math.rank: nothing there, 32 wanted".to_owned()),
        "{differences:?}"
    );
}

#[test]
fn all_faults_are_reported_at_once() {
    let message = parse_text("sede = 1\n[expert]\nrank = \"a\"\nfoo = 1").unwrap_err().to_string();
    assert_eq!(message.matches("mixse.toml, line").count(), 3, "{message}");
    let message =
        parse_text("[expert]\nrank = 0\n[expert.training]\nbatch_size = 0\n[router]\ntemperature = 0")
            .unwrap_err()
            .to_string();
    assert_eq!(message.matches("mixse.toml, line").count(), 3, "{message}");
}

#[test]
fn differences_are_listed_by_key() {
    let quick = Config::preset(Preset::Quick);
    let mut other = Config { seed: 9, threads: "2".parse().unwrap(), ..quick.clone() };
    other.router.router.gate.top_k = 2;
    assert_eq!(
        compare(&quick, &other).unwrap(),
        ["router.top_k: 1 there, 2 wanted", "seed: 0 there, 9 wanted"]
    );
    assert!(compare(&quick, &quick).unwrap().is_empty());
}
