//! What a study is: one TOML file, or one of the ready-made ones.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::Context;
use mixse_model::weights::Checkpoint;
use serde::{Deserialize, Serialize};
use toml::Table;

use super::growth::Growth;
use crate::{
    config::{Config, MAX_CONFIG, Method, Preset, resolve},
    output::usage_error,
    pipeline::{find_domains, misfits},
    pull::{Cache, resolve_base},
};

/// The ready-made studies: name and file.
pub(super) const READY_MADE: [(&str, &str); 12] = [
    ("main", include_str!("../../../../../studies/main.toml")),
    ("router", include_str!("../../../../../studies/router.toml")),
    ("verification", include_str!("../../../../../studies/verification.toml")),
    ("experts", include_str!("../../../../../studies/experts.toml")),
    ("data-size", include_str!("../../../../../studies/data-size.toml")),
    ("seed-only", include_str!("../../../../../studies/seed-only.toml")),
    ("router-variants", include_str!("../../../../../studies/router-variants.toml")),
    ("granularity", include_str!("../../../../../studies/granularity.toml")),
    ("generalization", include_str!("../../../../../studies/generalization.toml")),
    ("routing", include_str!("../../../../../studies/routing.toml")),
    ("few-shot-variance", include_str!("../../../../../studies/few-shot-variance.toml")),
    ("merging", include_str!("../../../../../studies/merging.toml")),
];

/// The names of [`READY_MADE`], in its order.
pub(super) fn ready_made_names() -> String {
    READY_MADE.map(|(name, _)| name).join(", ")
}

/// A study as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Study {
    /// What it is called.
    pub(super) title: String,
    /// What it asks.
    #[serde(default)]
    pub(super) about: String,
    /// Base models.
    pub(super) bases: Vec<String>,
    /// Each combination is run once with every seed.
    pub(super) seeds: Vec<u64>,
    /// Starting values of the configuration.
    #[serde(default)]
    pub(super) preset: Option<Preset>,
    /// What is evaluated, in the order of the table.
    pub(super) methods: Vec<String>,
    /// Mixtures of fewer experts; it stands in the place of `settings`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) growth: Option<Growth>,
    /// Keys of `mixse.toml` for every run.
    #[serde(default)]
    pub(super) config: Table,
    /// Variations of the configuration, each a table of its own; without any there is one table.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) settings: Vec<Setting>,
}

/// A variation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Setting {
    /// What it is called.
    pub(super) name: String,
    /// The table that its rows stand in, together with those of other settings of the same table: they are averaged as seeds
    /// are. Without it the setting has a table of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) table: Option<String>,
    /// Keys of `mixse.toml` over the study's.
    #[serde(default)]
    pub(super) config: Table,
    /// Methods instead of the study's.
    #[serde(default)]
    pub(super) methods: Option<Vec<String>>,
}

/// One run of a study.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    /// Rows with the same group stand in one table.
    pub(super) group: String,
    /// Its directory, relative to the study's.
    pub(super) path: PathBuf,
    pub(super) config: Config,
}

impl Study {
    /// A ready-made study by name, or a file by path.
    pub(super) fn find(name_or_path: &str) -> anyhow::Result<(Self, String)> {
        if let Some((name, text)) = READY_MADE.iter().find(|(name, _)| *name == name_or_path) {
            return Ok((Self::parse(text, name)?, (*text).to_owned()));
        }
        let path = Path::new(name_or_path);
        if !path.exists() {
            return Err(usage_error(format!(
                "there is no study {name_or_path:?}: neither a file of that name, nor one of the ready-made ones ({})",
                ready_made_names()
            )));
        }
        let text = mixse_files::read_text(path, MAX_CONFIG)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Ok((Self::parse(&text, name_or_path)?, text))
    }

    fn parse(text: &str, name: &str) -> anyhow::Result<Self> {
        toml::from_str(text)
            .map_err(|e| usage_error(format!("wrong study: {name}: {}", e.to_string().trim_end())))
    }

    /// Puts a value given as `key=value` (a key of `mixse.toml`) over the configuration of every run.
    ///
    /// # Errors
    /// It is not `key=value`.
    pub(super) fn set(&mut self, assignment: &str) -> Result<(), String> {
        let (key, value) = assignment.split_once('=').ok_or_else(|| {
            format!("--set {assignment}: it is not KEY=VALUE, such as generation.tasks=100")
        })?;
        let value = value.trim();
        let value = value.parse().unwrap_or_else(|_| toml::Value::String(value.to_owned()));
        let mut table = &mut self.config;
        let mut parts: Vec<&str> = key.trim().split('.').collect();
        let last = parts.pop().unwrap_or_default();
        for part in parts {
            let inner = table.entry(part).or_insert_with(|| toml::Value::Table(Table::new()));
            table =
                inner.as_table_mut().ok_or_else(|| format!("--set {assignment}: {part} is no section"))?;
        }
        table.insert(last.to_owned(), value);
        Ok(())
    }

    /// All runs, those of the first seed before those of the second, and everything that is wrong. With faults, the runs are
    /// only there to be checked further.
    pub(super) fn cells(&self) -> (Vec<Cell>, Vec<String>) {
        let mut faults = Vec::new();
        let mut need = |fine: bool, what: &str| {
            if !fine {
                faults.push(what.to_owned());
            }
        };
        need(!self.bases.is_empty(), "bases: names no model");
        need(!self.seeds.is_empty(), "seeds: names no seed");
        let distinct =
            |words: &[String]| words.iter().enumerate().all(|(i, word)| !words[..i].contains(word));
        need(distinct(&self.bases), "bases: a model is there twice");
        need(
            self.seeds.iter().enumerate().all(|(i, s)| !self.seeds[..i].contains(s)),
            "seeds: a seed is there twice",
        );
        need(
            self.growth.is_none() || self.settings.is_empty(),
            "growth: makes the settings; leave `settings` out, or `growth`",
        );
        let settings = self.all_settings().unwrap_or_else(|e| {
            need(false, &e);
            Vec::new()
        });
        let names: Vec<String> = settings.iter().map(|setting| path_word(&setting.name)).collect();
        need(distinct(&names), "settings: two have the same name");
        need(self.settings.is_empty() || !names.contains(&String::new()), "settings: one has no name");
        for key in ["base", "seed", "methods", "preset"] {
            let given =
                self.config.contains_key(key) || self.settings.iter().any(|s| s.config.contains_key(key));
            need(
                !given,
                &format!("config.{key}: is decided by the study's own `bases`, `seeds`, `methods`, `preset`"),
            );
        }
        let mut cells = Vec::new();
        for &seed in &self.seeds {
            for base in &self.bases {
                for setting in &settings {
                    let (cell, found) = self.cell(base, seed, setting);
                    cells.extend(cell);
                    faults.extend(found);
                }
            }
        }
        let mut seen = std::collections::HashSet::new();
        faults.retain(|fault| seen.insert(fault.clone()));
        (cells, faults)
    }

    fn all_settings(&self) -> Result<Vec<Setting>, String> {
        if !self.settings.is_empty() {
            return Ok(self.settings.clone());
        }
        match self.growth {
            None => {
                Ok(vec![Setting { name: String::new(), table: None, config: Table::new(), methods: None }])
            }
            Some(growth) => {
                // What is wrong with the values is said of the runs.
                let config = resolve(self.config.clone(), self.preset, |_| {}).0;
                let config = config.unwrap_or_else(|| Config::preset(Preset::Quick));
                growth.settings(&config.domains, &config.evaluation.unseen_domains)
            }
        }
    }

    fn cell(&self, base: &str, seed: u64, setting: &Setting) -> (Option<Cell>, Vec<String>) {
        let about = |what: String| match setting.name.as_str() {
            "" => what,
            name => format!("settings {name:?}: {what}"),
        };
        let mut faults = Vec::new();
        let mut methods = Vec::new();
        for name in setting.methods.as_ref().unwrap_or(&self.methods) {
            match name.parse::<Method>() {
                Ok(method) => methods.push(method),
                Err(e) => faults.push(about(format!("methods: {e}"))),
            }
        }
        let mut given = self.config.clone();
        lay_over(&mut given, &setting.config);
        let (config, found) = resolve(given, self.preset, |config| {
            config.base = base.to_owned();
            config.seed = seed;
            if !methods.is_empty() || faults.is_empty() {
                config.methods = methods;
            }
        });
        faults.extend(found.into_iter().map(|fault| about(format!("config.{}: {}", fault.key, fault.what))));
        let Some(config) = config else { return (None, faults) };
        faults.extend(domain_faults(&config).into_iter().map(about));
        let several = self.bases.len() > 1;
        let table = setting.table.as_ref().unwrap_or(&setting.name);
        let group = filled([if several { base } else { "" }, table]);
        let name = format!("{}-s{seed}", filled([base, &setting.name]).join("-"));
        let path = Path::new("runs").join(path_word(&name));
        (Some(Cell { group: group.join(", "), path, config }), faults)
    }
}

/// The words that are not empty.
fn filled(words: [&str; 2]) -> Vec<&str> {
    words.into_iter().filter(|word| !word.is_empty()).collect()
}

fn domain_faults(config: &Config) -> Vec<String> {
    match find_domains(config) {
        Err(faults) => faults.into_iter().map(|what| format!("domains: {what}")).collect(),
        // A run alone may do without; a comparison may not.
        Ok(domains) => domains
            .iter()
            .filter(|domain| domain.check.is_empty())
            .map(|domain| format!("domains: {} has no check items", domain.name()))
            .collect(),
    }
}

/// Puts every value of `over` into `table`, section by section.
fn lay_over(table: &mut Table, over: &Table) {
    for (key, value) in over {
        match (table.get_mut(key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(over)) => lay_over(inner, over),
            _ => {
                table.insert(key.clone(), value.clone());
            }
        }
    }
}

/// A word that is safe in a path.
fn path_word(text: &str) -> String {
    let word: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '_' })
        .collect();
    word.trim_matches(['.', '_']).to_owned()
}

/// What is wrong with the bases and with what is to be used with them: a base that is not there, or too narrow for a rank, an
/// adapter of another base. Known models are pulled.
pub(super) fn base_faults(cells: &[Cell], cache: &Cache) -> Vec<String> {
    let mut faults: Vec<String> = Vec::new();
    let mut opened: HashMap<&str, Option<Checkpoint>> = HashMap::new();
    for Cell { config, .. } in cells {
        let base = opened.entry(&config.base).or_insert_with(|| {
            resolve_base(&config.base, cache)
                .and_then(|path| Ok(Checkpoint::open_with(&path, config.unused())?))
                .map_err(|e| faults.push(format!("bases: {}: {e:#}", config.base)))
                .ok()
        });
        let Some(base) = base else { continue };
        for misfit in misfits(config, base) {
            let fault = format!("config.{misfit} (base {})", config.base);
            if !faults.contains(&fault) {
                faults.push(fault);
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "title = \"t\"\nbases = [\"b\"]\nseeds = [0, 1]\nmethods = [\"base\", \"ties\"]\n";

    fn study(more: &str) -> Study {
        Study::parse(&format!("{SMALL}{more}"), "test").unwrap()
    }

    #[test]
    fn settings_of_one_table_are_repetitions() {
        let settings =
            "[[settings]]\nname = \"x\"\ntable = \"both\"\n[[settings]]\nname = \"y\"\ntable = \"both\"\n";
        let (cells, faults) = study(settings).cells();
        assert!(faults.is_empty(), "{faults:?}");
        assert!(cells.iter().all(|cell| cell.group == "both"));
        let paths: Vec<_> = cells.iter().map(|cell| cell.path.display().to_string()).collect();
        assert_eq!(paths, ["runs/b-x-s0", "runs/b-y-s0", "runs/b-x-s1", "runs/b-y-s1"]);
    }

    #[test]
    fn every_ready_made_study_is_sound() {
        for (name, text) in READY_MADE {
            let (cells, faults) = Study::parse(text, name).unwrap().cells();
            assert!(faults.is_empty(), "{name}: {faults:?}");
            assert!(!cells.is_empty(), "{name}");
            let mut paths: Vec<_> = cells.iter().map(|cell| &cell.path).collect();
            paths.sort();
            paths.dedup();
            assert_eq!(paths.len(), cells.len(), "{name}");
        }
    }

    #[test]
    fn growth_makes_settings_of_the_domains() {
        let check = |text: &str, groups: &[&str]| {
            let (cells, faults) = study(text).cells();
            assert!(faults.is_empty(), "{faults:?}");
            let first_seed: Vec<&str> =
                cells.iter().filter(|cell| cell.config.seed == 0).map(|cell| cell.group.as_str()).collect();
            assert_eq!(first_seed, groups);
            let evaluated =
                |cell: &Cell| cell.config.domains.len() + cell.config.evaluation.unseen_domains.len();
            assert!(cells.iter().all(|cell| evaluated(cell) == evaluated(&cells[0])));
        };
        check("growth = \"in_order\"\n", &["1 expert", "2 experts", "3 experts", "4 experts"]);
        let two = "[config]\ndomains = [\"math\", \"coding\"]\n";
        check(&format!("growth = \"every_order\"\n{two}"), &["1 expert", "1 expert", "2 experts"]);
        let (_, faults) = study("growth = \"in_order\"\n[[settings]]\nname = \"x\"\n").cells();
        assert!(faults.len() == 1 && faults[0].contains("leave `settings` out"), "{faults:?}");
        let folders = "growth = \"every_order\"\n[config]\ndomains = [\"x/mine\", \"y/mine\"]\n";
        let (_, faults) = study(folders).cells();
        assert!(faults.iter().any(|fault| fault.contains("two have the same name")), "{faults:?}");
        assert!(
            toml::to_string(&study("growth = \"in_order\"\n")).unwrap().contains("growth = \"in_order\"")
        );
    }

    #[test]
    fn settings_and_seeds_make_runs() {
        let study = study(
            "[config.generation]\ntasks = 20\nprompts = 30\n[[settings]]\nname = \"few rows\"\n[settings.config.generation]\nrows = 5\n[[settings]]\nname = \"all\"\nmethods = [\"base\"]\n",
        );
        let (cells, faults) = study.cells();
        assert!(faults.is_empty(), "{faults:?}");
        let paths: Vec<String> = cells.iter().map(|c| c.path.display().to_string()).collect();
        assert_eq!(paths, ["runs/b-few_rows-s0", "runs/b-all-s0", "runs/b-few_rows-s1", "runs/b-all-s1"]);
        assert_eq!((cells[0].config.generation.rows, cells[0].config.generation.tasks), (5, 20));
        assert_eq!((cells[3].config.seed, cells[3].config.methods.len()), (1, 1));
        assert_eq!(cells[0].group, "few rows");
    }

    #[test]
    fn all_faults_are_found_at_once() {
        let study = study(
            "[config]\ndomains = [\"math\", \"nowhere\"]\nseed = 3\n[config.expert]\nrank = 0\n[[settings]]\nname = \"x\"\nmethods = [\"tie\", \"dare(density=2)\"]\n[[settings]]\nname = \"y\"\n[settings.config.evaluation]\nitms = 3\n",
        );
        let (_, faults) = study.cells();
        let all = faults.join("\n");
        for part in [
            "config.seed",
            "there is no method \"tie\"",
            "density",
            "config.expert: rank = 0",
            "itms",
            "nowhere",
        ] {
            assert!(all.contains(part), "{part} is not in:\n{all}");
        }
        let only_domains = |text: &str, part: &str| {
            let (_, faults) = Study::parse(&format!("{SMALL}{text}"), "test").unwrap().cells();
            assert!(faults.len() == 1 && faults[0].contains(part), "{faults:?}");
        };
        only_domains("[config]\ndomains = [\"math\", \"nowhere\"]\n", "nowhere");
        only_domains("[config]\ndomains = [\"math\"]\n[config.evaluation]\nskip = 100000\n", "leaves none");
    }

    #[test]
    fn values_can_be_set_by_key() {
        let mut study = study("");
        study.set("generation.tasks = 12").unwrap();
        study.set("domains=[\"math\"]").unwrap();
        study.set("style=chat").unwrap();
        let config = &study.cells().0[0].config;
        assert_eq!((config.generation.tasks, config.domains.len()), (12, 1));
        assert!(study.set("x").is_err() && study.set("style.x=1").is_err());
    }
}
