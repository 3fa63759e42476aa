//! What templates call and Python answers: the clock and JSON.

use jiff::{
    ZonedDateTime,
    civil::DateTime,
    fmt::strtime::{BrokenDownTime, Config},
};
use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};

/// No conversation is nested deeper.
const MAX_DEPTH: usize = 200;

/// The local time as `datetime.now().strftime(format)` writes it.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    strftime(format, ZonedDateTime::now().datetime())
}

/// The directives of C's `strftime`, which Python hands its format to, but for those of a time zone.
pub(super) const DIRECTIVES: &str = "%aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyY";

/// Directives that are not known stay as they stand; those of a time zone are empty, as the time has none.
fn strftime(format: &str, time: DateTime) -> Result<String, Error> {
    let mut known = String::with_capacity(format.len());
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        known.push_str(&rest[..at]);
        let directive = &rest[at + 1..];
        let flags = directive.len() - directive.trim_start_matches(['-', '_', '0', '^', '#']).len();
        let name = directive[flags..].chars().next();
        let end = flags + name.map_or(0, char::len_utf8);
        match name {
            Some('z' | 'Z') => {}
            Some(name) if DIRECTIVES.contains(name) => known.push_str(&rest[at..at + 1 + end]),
            _ => {
                known.push_str("%%");
                known.push_str(&directive[..end]);
            }
        }
        rest = &directive[end..];
    }
    known.push_str(rest);
    let config = Config::new().lenient(true);
    BrokenDownTime::from(time)
        .to_string_with_config(&config, &known)
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}")))
}

/// `json.dumps` with the defaults of transformers: nothing is escaped that need not be.
pub(super) fn tojson(
    value: &Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    separators: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    let option = |given: Option<Value>, name: &str| -> Result<Option<Value>, Error> {
        let value = match given {
            Some(value) => Some(value),
            None => options.get(name)?,
        };
        Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let ascii = is_true(option(ensure_ascii, "ensure_ascii")?);
    let sorted = is_true(option(None, "sort_keys")?);
    let indent = match option(indent, "indent")? {
        None => None,
        Some(text) if text.kind() == ValueKind::String => Some(text.to_string()),
        Some(width) => {
            let width = i64::try_from(width.clone()).or_else(|_| bool::try_from(width).map(i64::from))?;
            Some(" ".repeat(usize::try_from(width.clamp(0, 64)).unwrap_or(0)))
        }
    };
    let (between, after_key) = match option(separators, "separators")? {
        Some(pair) => {
            let pair: Vec<String> = pair.try_iter()?.map(|part| part.to_string()).collect();
            let [between, after_key] = <[String; 2]>::try_from(pair)
                .map_err(|_| fault("separators are two strings, (item, key)"))?;
            (between, after_key)
        }
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    options.assert_all_used()?;
    let mut dump = Dump { ascii, sorted, indent, between, after_key, out: String::new() };
    dump.value(value, 0)?;
    Ok(Value::from_safe_string(dump.out))
}

fn fault(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::BadSerialization, what)
}

/// Python's `json.dumps`.
struct Dump {
    ascii: bool,
    sorted: bool,
    indent: Option<String>,
    between: String,
    after_key: String,
    out: String,
}

impl Dump {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(fault("a value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)?),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.group(['[', ']'], items, depth, |dump, item| dump.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    let item = value.get_item(&key)?;
                    entries.push((key_text(&key)?, item));
                }
                if self.sorted {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.group(['{', '}'], entries, depth, |dump, (key, item)| {
                    dump.string(key);
                    dump.out.push_str(&dump.after_key.clone());
                    dump.value(item, depth + 1)
                })?;
            }
            kind => return Err(fault(format!("{kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn group<T>(
        &mut self,
        [open, close]: [char; 2],
        items: Vec<T>,
        depth: usize,
        each: impl Fn(&mut Self, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (place, item) in items.iter().enumerate() {
            if place > 0 {
                self.out.push_str(&self.between.clone());
            }
            self.line(depth + 1);
            each(self, item)?;
        }
        if !items.is_empty() {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{C}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) || (self.ascii && c == '\u{7F}') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A key is a string, a number, true, false or null, and becomes a string.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.to_string()),
        ValueKind::Number => number(key),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        kind => Err(fault(format!("keys must be strings, numbers, true, false or none, not {kind}"))),
    }
}

fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let number = f64::try_from(value.clone())?;
    if number.is_nan() {
        return Ok("NaN".to_owned());
    }
    if number.is_infinite() {
        return Ok(if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned());
    }
    // Shortest digits that read back the same, in both languages; Python gives exponents a sign and two digits.
    let text = format!("{number:?}");
    Ok(match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
            format!("{digits}e{sign}{exponent:0>2}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The right sides are Python's.
    #[test]
    fn times_are_written_as_python_writes_them() {
        let check = |format: &str, expected: &str| {
            let time = jiff::civil::date(2024, 2, 9).at(15, 4, 5, 0);
            assert_eq!(strftime(format, time).unwrap(), expected, "{format}");
        };
        check("%Y-%m-%d", "2024-02-09");
        check("%d %b %Y", "09 Feb 2024");
        check("%A, %d %B %Y %H:%M:%S", "Friday, 09 February 2024 15:04:05");
        check("%-d %B, %I %p", "9 February, 03 PM");
        check("%-d %I %p %y %j %e %-m/%-H", "9 03 PM 24 040  9 2/15");
        check("%a 100%% %q %", "Fri 100% %q %");
        check("[%Z%z] %%Z", "[] %Z");
    }
}
