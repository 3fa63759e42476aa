//! The rows of `mixse bench`, by name.

use std::{fmt, str::FromStr};

/// Some work of a certain size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) work: Work,
    /// Sequences side by side.
    pub(super) rows: usize,
    /// Tokens of each.
    pub(super) tokens: usize,
    /// Experts of a mixture, where the name says it.
    pub(super) experts: Option<usize>,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Prefill,
    Generate,
    LoraTrain,
    RouterTrain,
    MixtureGenerate,
}

impl Work {
    const NAMES: [(&str, Self); 5] = [
        ("prefill", Self::Prefill),
        ("generate", Self::Generate),
        ("lora_train", Self::LoraTrain),
        ("router_train", Self::RouterTrain),
        ("mixture_generate", Self::MixtureGenerate),
    ];

    /// It has gradients.
    pub(super) fn trains(self) -> bool {
        matches!(self, Self::LoraTrain | Self::RouterTrain)
    }

    fn is_mixture(self) -> bool {
        matches!(self, Self::RouterTrain | Self::MixtureGenerate)
    }
}

/// What is measured when nothing else is asked for.
pub(super) fn usual() -> Vec<Row> {
    let row = |work, rows, tokens| Row { work, rows, tokens, experts: None };
    let mixture = row(Work::MixtureGenerate, 64, 64);
    vec![
        row(Work::Prefill, 8, 512),
        row(Work::Generate, 1, 64),
        row(Work::Generate, 16, 64),
        row(Work::Generate, 64, 64),
        row(Work::LoraTrain, 8, 256),
        row(Work::RouterTrain, 8, 256),
        mixture,
        Row { experts: Some(32), ..mixture },
    ]
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Work::NAMES.iter().find(|(_, work)| *work == self.work).map_or("", |(name, _)| name);
        let mut text = format!("{name}_{}x{}", self.rows, self.tokens);
        if let Some(experts) = self.experts {
            text += &format!("_{experts}e");
        }
        f.pad(&text)
    }
}

impl FromStr for Row {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let parsed = || {
            let (rest, experts) = match name.strip_suffix('e').and_then(|rest| rest.rsplit_once('_')) {
                Some((rest, experts)) => (rest, Some(positive(experts)?)),
                None => (name, None),
            };
            let (work, size) = rest.rsplit_once('_')?;
            let (rows, tokens) = size.split_once('x')?;
            let work = Work::NAMES.iter().find(|(name, _)| *name == work)?.1;
            let row = Self { work, rows: positive(rows)?, tokens: positive(tokens)?, experts };
            (experts.is_none() || work.is_mixture()).then_some(row)
        };
        parsed().ok_or_else(|| {
            let works = Work::NAMES.map(|(name, _)| name).join(", ");
            format!(
                "is no row: write WORK_ROWSxTOKENS, such as prefill_8x512 or mixture_generate_64x64_32e; WORK is one of {works}"
            )
        })
    }
}

fn positive(digits: &str) -> Option<usize> {
    digits.parse().ok().filter(|&number| (1..=1 << 20).contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for row in usual() {
            assert_eq!(row.to_string().parse(), Ok(row));
        }
        for wrong in
            ["", "prefill", "prefill_8", "prefill_0x5", "prefill_8x512_4e", "train_1x1", "generate_1x1_e"]
        {
            assert!(wrong.parse::<Row>().is_err(), "{wrong}");
        }
    }
}
