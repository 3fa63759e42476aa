//! Studies of the number of experts: a mixture of one domain, of two, and so on, each evaluated on all.

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::definition::Setting;

/// So many domains have 1,023 choices; a study of more would not end.
const MOST_DOMAINS: usize = 10;

/// Which domains have an expert, where not all have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Growth {
    /// The first domain, the first two, and so on, as they are listed.
    InOrder,
    /// Every choice of so many domains. A table for each number; as each choice begins equally many orders, its means are those
    /// over all orders in which the experts can be added.
    EveryOrder,
}

impl Growth {
    /// One setting for each mixture, the small ones first. The domains that it has no expert for are evaluated as well, before
    /// those in `unseen`.
    ///
    /// # Errors
    /// There are too many domains for every order.
    pub(super) fn settings(self, domains: &[String], unseen: &[String]) -> Result<Vec<Setting>, String> {
        let count = domains.len();
        let setting = |chosen: &dyn Fn(usize) -> bool| {
            let (own, others): (Vec<usize>, Vec<usize>) = (0..count).partition(|&i| chosen(i));
            let names = |indices: &[usize]| indices.iter().map(|&i| domains[i].clone()).collect::<Vec<_>>();
            let table = match own.len() {
                1 => "1 expert".to_owned(),
                n => format!("{n} experts"),
            };
            let (own, others) = (names(&own), [names(&others), unseen.to_vec()].concat());
            let words: Vec<&str> = own.iter().map(|name| last_part(name)).collect();
            let evaluation = Table::from_iter([("unseen_domains".to_owned(), Value::from(others))]);
            let (name, table) = match self {
                Self::InOrder => (table, None),
                Self::EveryOrder => (format!("{table} {}", words.join(" ")), Some(table)),
            };
            let config = Table::from_iter([
                ("domains".to_owned(), Value::from(own)),
                ("evaluation".to_owned(), Value::Table(evaluation)),
            ]);
            Setting { name, table, config, methods: None }
        };
        match self {
            Self::InOrder => Ok((1..=count).map(|n| setting(&|i| i < n)).collect()),
            Self::EveryOrder if count > MOST_DOMAINS => {
                Err(format!("growth: every_order is for at most {MOST_DOMAINS} domains, these are {count}"))
            }
            Self::EveryOrder => {
                let mut choices: Vec<u32> = (1..1 << count).collect();
                choices.sort_by_key(|choice| choice.count_ones());
                Ok(choices.into_iter().map(|choice| setting(&|i| choice >> i & 1 == 1)).collect())
            }
        }
    }
}

/// A domain's name, or the folder that a path ends in.
fn last_part(domain: &str) -> &str {
    domain.trim_end_matches('/').rsplit('/').next().unwrap_or(domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each setting in a line: its name, its table, the domains with an expert, those without.
    fn check(growth: Growth, expected: &[&str]) {
        let domains = ["a", "own/b", "c"].map(str::to_owned);
        let settings = growth.settings(&domains, &["u".to_owned()]).unwrap();
        let words = |value: &Value| {
            let words: Vec<_> = value.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
            words.join(" ")
        };
        let line = |setting: &Setting| {
            let (own, others) = (&setting.config["domains"], &setting.config["evaluation"]["unseen_domains"]);
            let table = setting.table.as_deref().unwrap_or("-");
            format!("{} | {table} | {} | {}", setting.name, words(own), words(others))
        };
        assert_eq!(settings.iter().map(line).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn each_number_of_experts_has_its_settings() {
        check(
            Growth::InOrder,
            &[
                "1 expert | - | a | own/b c u",
                "2 experts | - | a own/b | c u",
                "3 experts | - | a own/b c | u",
            ],
        );
        check(
            Growth::EveryOrder,
            &[
                "1 expert a | 1 expert | a | own/b c u",
                "1 expert b | 1 expert | own/b | a c u",
                "1 expert c | 1 expert | c | a own/b u",
                "2 experts a b | 2 experts | a own/b | c u",
                "2 experts a c | 2 experts | a c | own/b u",
                "2 experts b c | 2 experts | own/b c | a u",
                "3 experts a b c | 3 experts | a own/b c | u",
            ],
        );
        let many: Vec<String> = (0..64).map(|i| i.to_string()).collect();
        assert!(Growth::EveryOrder.settings(&many, &[]).unwrap_err().contains("at most 10"));
        assert_eq!(Growth::InOrder.settings(&many, &[]).unwrap().len(), 64);
    }
}
