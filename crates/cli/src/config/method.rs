//! What a run evaluates: `name` or `name(key=value, …)`.

use std::{fmt, str::FromStr};

use mixse_eval::report::MethodKind;
use mixse_selfmoe::merge;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Something that a run computes and evaluates.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Method {
    /// The base model alone.
    Base,
    /// Each expert alone, for every domain: one row of the table an expert.
    Experts,
    /// All experts, each token given to one at random.
    Random,
    /// The experts under a trained router. The values replace keys of the configuration's `[router]`; without any it is
    /// the run's own router.
    Mixture(Vec<(String, String)>),
    /// The experts under a router without training. The values are as those of a mixture.
    Arrow(Vec<(String, String)>),
    /// Each item answered by the expert of its own domain: routing that knows the domain.
    Oracle,
    /// One adapter trained on the union of all domains' rows.
    InstanceMerging,
    /// The experts merged into one static adapter.
    Merged(Merging),
    /// Experts and router trained together, from scratch, on the union.
    Joint,
    /// Experts and router trained on the seeds alone.
    SeedOnly,
}

/// A static merge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Merging {
    /// The arithmetic.
    pub(crate) method: merge::Method,
    /// What it is applied to.
    pub(crate) form: Form,
    /// Weight of each expert; `None`: 1 over their number for sums, 1 for the averages of TIES.
    pub(crate) weight: Option<f64>,
}

/// What is merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// The products `s · B · A`, exactly.
    Product,
    /// A and B apart, as PEFT does.
    Factors,
}

/// As TIES' authors recommend.
const TIES_DENSITY: f64 = 0.2;
const DARE_DENSITY: f64 = 0.5;
/// Arrow's router; kept logits go through a softmax of their own, as in its paper.
const ARROW: [(&str, &str); 8] = [
    ("fit", "arrow"),
    ("domain_loss", "0.0"),
    ("input", "block"),
    ("shared", "false"),
    ("granularity", "token"),
    ("null_expert", "false"),
    ("score", "absolute"),
    ("scale", "renormalized"),
];

const NAMES: [&str; 14] = [
    "base",
    "experts",
    "oracle",
    "instance-merging",
    "linear",
    "ties",
    "dare",
    "dare-ties",
    "joint",
    "seed-only",
    "random",
    "arrow",
    "mixture",
    "mixture(KEY=VALUE, …)",
];

impl Method {
    /// What a run evaluates when nothing else is said.
    pub(crate) fn usual() -> Vec<Self> {
        vec![Self::Base, Self::Experts, Self::Random, Self::Mixture(Vec::new())]
    }

    /// As paths and task ids have it.
    pub(crate) fn id(&self) -> String {
        self.to_string()
            .chars()
            .filter(|c| !matches!(c, ' ' | ')'))
            .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' })
            .collect()
    }

    /// The keys of `[router]` that are different in the router which the method makes for itself; `None`: it makes none, or the
    /// run's own.
    pub(crate) fn router_values(&self) -> Option<Vec<(String, String)>> {
        match self {
            Self::Mixture(values) if !values.is_empty() => Some(values.clone()),
            Self::Arrow(values) => {
                let fixed = ARROW.map(|(key, value)| (key.to_owned(), value.to_owned()));
                Some(fixed.into_iter().chain(values.iter().cloned()).collect())
            }
            _ => None,
        }
    }

    /// What it is in the report.
    pub(crate) fn kind(&self) -> MethodKind {
        match self {
            Self::Base => MethodKind::Base,
            Self::Experts => MethodKind::Expert,
            Self::Random => MethodKind::Random,
            Self::Mixture(values) if values.is_empty() => MethodKind::Mixture,
            _ => MethodKind::Baseline,
        }
    }
}

impl Merging {
    /// The weight of each of `experts` experts.
    pub(crate) fn weights(&self, experts: usize) -> Vec<f64> {
        let usual = match self.method {
            merge::Method::Linear | merge::Method::DareLinear { .. } => 1.0 / experts as f64,
            merge::Method::Ties { .. } | merge::Method::DareTies { .. } => 1.0,
        };
        vec![self.weight.unwrap_or(usual); experts]
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, mut arguments) = Arguments::parse(text)?;
        let method = match name {
            "base" => Self::Base,
            "experts" => Self::Experts,
            "random" => Self::Random,
            "mixture" => return Ok(Self::Mixture(arguments.0)),
            "arrow" => return Ok(Self::Arrow(arguments.0)),
            "oracle" => Self::Oracle,
            "instance-merging" => Self::InstanceMerging,
            "joint" => Self::Joint,
            "seed-only" => Self::SeedOnly,
            "linear" | "ties" | "dare" | "dare-ties" => Self::Merged(merging(name, &mut arguments)?),
            _ => return Err(format!("there is no method {name:?}; there are: {}", NAMES.join(", "))),
        };
        match arguments.0.first() {
            None => Ok(method),
            Some((key, _)) => Err(format!("{text}: {name} has no value {key:?}")),
        }
    }
}

fn merging(name: &str, arguments: &mut Arguments) -> Result<Merging, String> {
    let density = |arguments: &mut Arguments, usual| arguments.take("density", usual);
    let method = match name {
        "ties" => merge::Method::Ties { density: density(arguments, TIES_DENSITY)? },
        "dare" => merge::Method::DareLinear {
            density: density(arguments, DARE_DENSITY)?,
            seed: arguments.take("seed", 0)?,
        },
        "dare-ties" => merge::Method::DareTies {
            density: density(arguments, DARE_DENSITY)?,
            seed: arguments.take("seed", 0)?,
        },
        _ => merge::Method::Linear,
    };
    method.validate().map_err(|e| format!("{name}: {e}"))?;
    let form = match arguments.remove("form").as_deref() {
        None | Some("product") => Form::Product,
        Some("factors") => Form::Factors,
        Some(other) => return Err(format!("{name}: form = {other:?} is neither product nor factors")),
    };
    let weight = arguments.remove("weight").map(|text| match text.parse::<f64>() {
        Ok(weight) if weight.is_finite() => Ok(weight),
        _ => Err(format!("{name}: weight = {text:?} is not a number")),
    });
    Ok(Merging { method, form, weight: weight.transpose()? })
}

/// What stands between the parentheses, in order.
struct Arguments(Vec<(String, String)>);

impl Arguments {
    /// The name and its arguments.
    fn parse(text: &str) -> Result<(&str, Self), String> {
        let text = text.trim();
        let Some((name, rest)) = text.split_once('(') else { return Ok((text, Self(Vec::new()))) };
        let inside = rest.strip_suffix(')').ok_or_else(|| format!("{text}: the last `)` is missing"))?;
        let mut found: Vec<(String, String)> = Vec::new();
        for part in inside.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) =
                part.split_once('=').ok_or_else(|| format!("{text}: {part:?} is not KEY=VALUE"))?;
            let (key, value) = (key.trim(), value.trim());
            let plain = |word: &str| {
                !word.is_empty()
                    && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
            };
            if !plain(key) || !plain(value) {
                return Err(format!("{text}: {part:?} is not KEY=VALUE in letters, digits, `.`, `_`, `-`"));
            }
            if found.iter().any(|(other, _)| other == key) {
                return Err(format!("{text}: {key} is there twice"));
            }
            found.push((key.to_owned(), value.to_owned()));
        }
        Ok((name.trim(), Self(found)))
    }

    fn remove(&mut self, key: &str) -> Option<String> {
        let at = self.0.iter().position(|(name, _)| name == key)?;
        Some(self.0.remove(at).1)
    }

    fn take<T: FromStr>(&mut self, key: &str, usual: T) -> Result<T, String> {
        match self.remove(key) {
            None => Ok(usual),
            Some(text) => text.parse().map_err(|_| format!("{key} = {text:?} is not a fitting number")),
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str("base"),
            Self::Experts => f.write_str("experts"),
            Self::Random => f.write_str("random"),
            Self::Oracle => f.write_str("oracle"),
            Self::InstanceMerging => f.write_str("instance-merging"),
            Self::Joint => f.write_str("joint"),
            Self::SeedOnly => f.write_str("seed-only"),
            Self::Mixture(values) => with_arguments(f, "mixture", &written(values)),
            Self::Arrow(values) => with_arguments(f, "arrow", &written(values)),
            Self::Merged(merging) => merging.fmt(f),
        }
    }
}

impl fmt::Display for Merging {
    /// What is usual is left out, so that one method has one name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, density, usual, seed) = match self.method {
            merge::Method::Linear => ("linear", 1.0, 1.0, 0),
            merge::Method::Ties { density } => ("ties", density, TIES_DENSITY, 0),
            merge::Method::DareLinear { density, seed } => ("dare", density, DARE_DENSITY, seed),
            merge::Method::DareTies { density, seed } => ("dare-ties", density, DARE_DENSITY, seed),
        };
        let mut list = Vec::new();
        if density != usual {
            list.push(format!("density={density}"));
        }
        if seed != 0 {
            list.push(format!("seed={seed}"));
        }
        if self.form == Form::Factors {
            list.push("form=factors".to_owned());
        }
        list.extend(self.weight.map(|weight| format!("weight={weight}")));
        with_arguments(f, name, &list)
    }
}

fn written(values: &[(String, String)]) -> Vec<String> {
    values.iter().map(|(key, value)| format!("{key}={value}")).collect()
}

fn with_arguments(f: &mut fmt::Formatter<'_>, name: &str, list: &[String]) -> fmt::Result {
    if list.is_empty() { f.write_str(name) } else { write!(f, "{name}({})", list.join(", ")) }
}

impl Serialize for Method {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        let check = |text: &str, written: &str, id: &str| {
            let method: Method = text.parse().unwrap();
            assert_eq!((method.to_string().as_str(), method.id().as_str()), (written, id), "{text}");
            assert_eq!(written.parse::<Method>().unwrap(), method);
        };
        check("base", "base", "base");
        check(" instance-merging ", "instance-merging", "instance-merging");
        check("ties()", "ties", "ties");
        check("ties(density=0.2)", "ties", "ties");
        check("ties( density = 0.5 )", "ties(density=0.5)", "ties-density-0.5");
        check("dare(seed=3,density=0.1)", "dare(density=0.1, seed=3)", "dare-density-0.1-seed-3");
        check(
            "linear(form=factors, weight=1)",
            "linear(form=factors, weight=1)",
            "linear-form-factors-weight-1",
        );
        check("arrow", "arrow", "arrow");
        check("arrow(top_k=all)", "arrow(top_k=all)", "arrow-top_k-all");
        check("mixture(top_k=2, scale=unit)", "mixture(top_k=2, scale=unit)", "mixture-top_k-2-scale-unit");
    }

    #[test]
    fn faults_say_what_would_be_right() {
        let check = |text: &str, expected: &str| {
            let message = text.parse::<Method>().unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
        };
        check("tie", "there are: base, experts");
        check("ties(density=1.5)", "not above 0 and at most 1");
        check("dare(density=0)", "not above 0 and at most 1");
        check("dare(density=x)", "density");
        check("dare(seed=-1)", "seed");
        check("ties(form=both)", "neither product nor factors");
        check("base(density=1)", "has no value");
        check("ties(density=0.5", "`)` is missing");
        check("ties(density)", "not KEY=VALUE");
        check("mixture(top_k=1, top_k=2)", "twice");
        check("mixture(top_k=../x)", "letters");
        check("linear(weight=inf)", "not a number");
    }
}
