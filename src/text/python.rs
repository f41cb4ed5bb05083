//! The Python behaviour that chat templates rely on.
//!
//! Jinja templates of models are written against Python: `None` and `True` print with capitals,
//! `tojson` is `json.dumps`, strings have Python's methods. minijinja differs in each of these;
//! this file makes up for it. Invariant: output equals Python's, byte for byte. Read next:
//! `template`.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use serde_json::Value as Json;

/// Values nested deeper than this are an error to print (Python's own limit is about 1,000).
const DEPTH_MAX: usize = 200;
/// Widest indent `tojson` accepts.
const INDENT_MAX: usize = 64;

/// Adds filters, functions, methods and the formatter to an environment.
pub(super) fn install(env: &mut Environment<'static>) {
    env.add_filter("tojson", tojson);
    env.add_filter("string", |state: &State, value: &Value| -> Result<Value, Error> {
        if value.as_str().is_some() {
            return Ok(value.clone());
        }
        Ok(Value::from(charged(state, to_str(value)?)?))
    });
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", |format: String| -> Result<String, Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        strftime(&format, now)
    });
    env.set_unknown_method_callback(method);
    env.set_formatter(|out, state, value| {
        if let Some(text) = value.as_str() {
            return out.write_str(text).map_err(Error::from);
        }
        if value.is_undefined() {
            return Ok(());
        }
        out.write_str(&charged(state, to_str(value)?)?).map_err(Error::from)
    });
}

/// Pays for a string made here: minijinja only charges for what it copies itself.
fn charged(state: &State, text: String) -> Result<String, Error> {
    state.consume_fuel(text.len() as u64 / 64)?;
    Ok(text)
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Python's methods that minijinja-contrib lacks, then its own.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), [argument, ..]) = (value.as_str(), args)
        && let Some(part) = argument.as_str()
    {
        let list = |parts: &[&str]| parts.iter().copied().map(Value::from).collect::<Value>();
        match name {
            "removeprefix" => return Ok(Value::from(text.strip_prefix(part).unwrap_or(text))),
            "removesuffix" => return Ok(Value::from(text.strip_suffix(part).unwrap_or(text))),
            "partition" if !part.is_empty() => {
                let halves = text.split_once(part).map(|(left, right)| [left, part, right]);
                return Ok(list(&halves.unwrap_or([text, "", ""])));
            }
            "rpartition" if !part.is_empty() => {
                let halves = text.rsplit_once(part).map(|(left, right)| [left, part, right]);
                return Ok(list(&halves.unwrap_or(["", "", text])));
            }
            "rsplit" if !part.is_empty() => {
                let most = match args.get(1).map(|most| i64::try_from(most.clone())) {
                    None => usize::MAX,
                    Some(most) => usize::try_from(most?).unwrap_or(usize::MAX),
                };
                let mut parts: Vec<&str> = text.rsplitn(most.saturating_add(1), part).collect();
                parts.reverse();
                return Ok(list(&parts));
            }
            _ => {}
        }
    }
    if let (Some(text), "format") = (value.as_str(), name) {
        // Widths are written in the string; pay for them before the padding exists.
        let widths = text.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
        let bytes =
            widths.fold(0_u64, |sum, run| sum.saturating_add(run.parse().unwrap_or(u64::MAX)));
        state.consume_fuel(bytes / 64)?;
    }
    // `None` asks these for the default, which contrib expresses by no argument.
    let default = matches!(name, "strip" | "lstrip" | "rstrip" | "split")
        && args.len() == 1
        && args[0].is_none();
    let args = if default { &[] } else { args };
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// Python's `str(value)`.
fn to_str(value: &Value) -> Result<String, Error> {
    let mut text = String::new();
    match value.as_str() {
        Some(string) => text.push_str(string),
        None => write_repr(&mut text, value, 0)?,
    }
    Ok(text)
}

/// Python's `repr(value)`.
fn write_repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(invalid("value nested too deeply to print"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::String => write_str_repr(out, value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => {
            write_float(out, f64::try_from(value.clone())?, ["inf", "-inf", "nan"]);
        }
        ValueKind::Seq => {
            out.push('[');
            for (index, item) in value.try_iter()?.enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write_repr(out, &item, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map if value.downcast_object_ref::<Kwargs>().is_none() => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write_repr(out, &key, depth + 1)?;
                out.push_str(": ");
                write_repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
    Ok(())
}

fn write_str_repr(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for char in text.chars() {
        match char {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if char == quote => {
                out.push('\\');
                out.push(char);
            }
            '\0'..='\x1f' | '\x7f'..='\u{a0}' | '\u{ad}' => {
                let _ = write!(out, "\\x{:02x}", char as u32);
            }
            _ => out.push(char),
        }
    }
    out.push(quote);
}

/// Python's `repr` of a float: shortest digits, exponent below 1e-4 and from 1e16 on.
fn write_float(out: &mut String, number: f64, [inf, minus_inf, nan]: [&str; 3]) {
    if number.is_nan() {
        out.push_str(nan);
    } else if number.is_infinite() {
        out.push_str(if number > 0.0 { inf } else { minus_inf });
    } else if number != 0.0 && !(1e-4..1e16).contains(&number.abs()) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        let _ = write!(out, "{digits}e{sign}{exponent:0>2}");
    } else {
        let _ = write!(out, "{number:?}");
    }
}

/// How `json.dumps` lays out its text.
struct JsonStyle {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// `json.dumps` with the parameters `transformers` exposes, in its order.
// minijinja hands arguments to filters by value.
#[allow(clippy::needless_pass_by_value)]
fn tojson(
    state: &State,
    value: &Value,
    positional: Rest<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    let option = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        let named: Option<Value> = options.get(name)?;
        let value = named.or_else(|| positional.get(index).cloned());
        Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let ensure_ascii = option(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = match option(1, "indent")? {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(width) => {
            let width = usize::try_from(width).unwrap_or(0);
            Some(" ".repeat(width.min(INDENT_MAX + 1)))
        }
    };
    if indent.as_ref().is_some_and(|indent| indent.len() > INDENT_MAX) {
        return Err(invalid(format!("tojson: indent wider than {INDENT_MAX}")));
    }
    let (mut item_separator, mut key_separator) =
        (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if let Some(separators) = option(2, "separators")? {
        item_separator = separators.get_item(&Value::from(0))?.to_string();
        key_separator = separators.get_item(&Value::from(1))?.to_string();
    }
    let sort_keys = option(3, "sort_keys")?.is_some_and(|value| value.is_true());
    options.assert_all_used()?;
    let style = JsonStyle { ensure_ascii, indent, item_separator, key_separator, sort_keys };
    check_depth(value, 0)?;
    let json = serde_json::to_value(value).map_err(|error| invalid(format!("tojson: {error}")))?;
    let mut text = String::new();
    write_json(state, &mut text, &json, &style, 0)?;
    Ok(Value::from(text))
}

fn check_depth(value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(invalid("tojson: value nested too deeply"));
    }
    match value.kind() {
        ValueKind::Seq => value.try_iter()?.try_for_each(|item| check_depth(&item, depth + 1)),
        ValueKind::Map => {
            value.try_iter()?.try_for_each(|key| check_depth(&value.get_item(&key)?, depth + 1))
        }
        _ => Ok(()),
    }
}

fn write_json(
    state: &State,
    out: &mut String,
    value: &Json,
    style: &JsonStyle,
    depth: usize,
) -> Result<(), Error> {
    let before = out.len();
    match value {
        Json::Null => out.push_str("null"),
        Json::Bool(true) => out.push_str("true"),
        Json::Bool(false) => out.push_str("false"),
        Json::Number(number) if number.is_f64() => {
            let names = ["Infinity", "-Infinity", "NaN"];
            write_float(out, number.as_f64().unwrap_or(f64::NAN), names);
        }
        Json::Number(number) => {
            let _ = write!(out, "{number}");
        }
        Json::String(text) => write_json_str(out, text, style.ensure_ascii),
        Json::Array(items) => {
            let write =
                |out: &mut String, item: &Json| write_json(state, out, item, style, depth + 1);
            return write_items(out, ['[', ']'], items.iter(), style, depth, write);
        }
        Json::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            if style.sort_keys {
                fields.sort_by_key(|(name, _)| *name);
            }
            let write = |out: &mut String, (name, item): (&String, &Json)| {
                write_json_str(out, name, style.ensure_ascii);
                out.push_str(&style.key_separator);
                write_json(state, out, item, style, depth + 1)
            };
            return write_items(out, ['{', '}'], fields.into_iter(), style, depth, write);
        }
    }
    state.consume_fuel(1 + (out.len() - before) as u64 / 64)
}

fn write_items<T>(
    out: &mut String,
    [open, close]: [char; 2],
    items: impl ExactSizeIterator<Item = T>,
    style: &JsonStyle,
    depth: usize,
    mut write: impl FnMut(&mut String, T) -> Result<(), Error>,
) -> Result<(), Error> {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    };
    let empty = items.len() == 0;
    out.push(open);
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push_str(&style.item_separator);
        }
        line(out, depth + 1);
        write(out, item)?;
    }
    if !empty {
        line(out, depth);
    }
    out.push(close);
    Ok(())
}

fn write_json_str(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\0'..='\x1f' => {
                let _ = write!(out, "\\u{:04x}", char as u32);
            }
            // With ensure_ascii, 0x7f stays and all above becomes UTF-16 units.
            _ if ensure_ascii && !char.is_ascii() => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            _ => out.push(char),
        }
    }
    out.push('"');
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// `strftime` of a time in seconds since 1970, in UTC: the crate has no time-zone tables, and a
/// prompt that depends on where a server stands would surprise more than help.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let day_of_year = day;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let weekday = ((days + 4) % 7) as usize;
    let half = if hour < 12 { "AM" } else { "PM" };
    let hour12 = (hour + 11) % 12 + 1;

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            out.push(char);
            continue;
        }
        let mut code = chars.next();
        let padded = code != Some('-');
        if !padded {
            code = chars.next();
        }
        let mut number = |value: u64, width: usize| {
            let width = if padded { width } else { 1 };
            let _ = write!(out, "{value:0width$}");
        };
        match code {
            Some('Y') => number(year, 4),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month as u64 + 1, 2),
            Some('d') => number(day + 1, 2),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('j') => number(day_of_year + 1, 3),
            Some('B') => out.push_str(MONTHS[month]),
            Some('b' | 'h') => out.push_str(&MONTHS[month][..3]),
            Some('A') => out.push_str(DAYS[weekday]),
            Some('a') => out.push_str(&DAYS[weekday][..3]),
            Some('p') => out.push_str(half),
            Some('e') => {
                let _ = write!(out, "{:2}", day + 1);
            }
            Some('F') => {
                let _ = write!(out, "{year:04}-{:02}-{:02}", month + 1, day + 1);
            }
            Some('T') => {
                let _ = write!(out, "{hour:02}:{minute:02}:{second:02}");
            }
            Some('Z') => out.push_str("UTC"),
            Some('z') => out.push_str("+0000"),
            Some('%') => out.push('%'),
            other => {
                let code = other.map_or("%".to_owned(), |code| format!("%{code}"));
                return Err(invalid(format!("strftime_now: {code} is not supported")));
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        // `date -u -d @1709210096` prints Thu Feb 29 12:34:56 UTC 2024.
        assert_eq!(
            strftime("%a %b %d %H:%M:%S %Y|%d %B|%-d|%j|%I %p|%y", 1_709_210_096).unwrap(),
            "Thu Feb 29 12:34:56 2024|29 February|29|060|12 PM|24"
        );
        assert_eq!(strftime("%F %T %A", 0).unwrap(), "1970-01-01 00:00:00 Thursday");
        assert!(strftime("%Q", 0).is_err());
    }

    #[test]
    fn floats_print_as_in_python() {
        for (number, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (123_456_789_012_345.0, "123456789012345.0"),
            (1.5e-7, "1.5e-07"),
            (0.0001, "0.0001"),
            (-0.0, "-0.0"),
            (f64::NAN, "nan"),
        ] {
            let mut out = String::new();
            write_float(&mut out, number, ["inf", "-inf", "nan"]);
            assert_eq!(out, text);
        }
    }
}
