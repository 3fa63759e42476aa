//! How much memory a run may take.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The most memory that training may make the process hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemoryLimit {
    /// Half of what the machine has unused when a training starts, on top of what the process holds then.
    Auto,
    /// That many bytes, for the whole process.
    Bytes(u64),
}

/// Names of units with their bytes.
const UNITS: [(&str, u64); 6] =
    [("GiB", 1 << 30), ("MiB", 1 << 20), ("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1000), ("B", 1)];

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Bytes(bytes) => {
                let (unit, size) =
                    UNITS.into_iter().find(|(_, size)| bytes.is_multiple_of(*size)).unwrap_or(("B", 1));
                write!(f, "{} {unit}", bytes / size)
            }
        }
    }
}

impl FromStr for MemoryLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let wrong = || format!("{text:?} is neither `auto` nor a size such as \"4 GB\" or \"1500 MiB\"");
        let text = text.trim();
        let (unit, size) = UNITS.into_iter().find(|(unit, _)| text.ends_with(unit)).ok_or_else(wrong)?;
        let number: f64 = text[..text.len() - unit.len()].trim().parse().map_err(|_| wrong())?;
        let bytes = number * size as f64;
        if !(bytes >= 1.0 && bytes < u64::MAX as f64) {
            return Err(wrong());
        }
        Ok(Self::Bytes(bytes.round() as u64))
    }
}

impl Serialize for MemoryLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MemoryLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        let check = |text: &str, bytes: u64, written: &str| {
            let limit: MemoryLimit = text.parse().unwrap();
            assert_eq!(limit, MemoryLimit::Bytes(bytes), "{text}");
            assert_eq!(limit.to_string(), written);
            assert_eq!(written.parse(), Ok(limit));
        };
        check("4 GB", 4_000_000_000, "4 GB");
        check("1.5GB", 1_500_000_000, "1500 MB");
        check("2 GiB", 2 << 30, "2 GiB");
        check("1500 MiB", 1500 << 20, "1500 MiB");
        check("1001 B", 1001, "1001 B");
        assert_eq!("auto".parse(), Ok(MemoryLimit::Auto));
        for wrong in ["", "4", "GB", "-1 GB", "0 GB", "nan GB", "inf GB", "4 G", "all", "1e40 GB"] {
            assert!(wrong.parse::<MemoryLimit>().is_err(), "{wrong:?}");
        }
    }
}
