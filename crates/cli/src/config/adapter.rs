//! An expert that was made elsewhere: `NAME=PATH`.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Where the expert of a domain is taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AdapterSource {
    /// The domain's name.
    pub(crate) domain: String,
    /// A PEFT directory of the same base.
    pub(crate) path: PathBuf,
}

impl FromStr for AdapterSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((domain, path)) if !domain.trim().is_empty() && !path.trim().is_empty() => {
                Ok(Self { domain: domain.trim().to_owned(), path: path.trim().into() })
            }
            _ => Err(format!("{text:?} is not DOMAIN=PATH")),
        }
    }
}

impl fmt::Display for AdapterSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.domain, self.path.display())
    }
}

impl Serialize for AdapterSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AdapterSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
