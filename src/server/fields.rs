//! Reading a JSON object field by field, so that every complaint names the field.
//!
//! A `null` is a field that was not sent. A type that does not fit is an error that says what was
//! expected and what came, as `messages[2].content: expected a string, got a number`.

use super::errors::ApiError;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// An object and where it lies in the request.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

#[cfg(test)]
thread_local! {
    static ASKED: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(vec![]) };
}

/// The full names of the fields that `read` asks for, indices left out.
#[cfg(test)]
pub(super) fn asked(read: impl FnOnce()) -> std::collections::BTreeSet<String> {
    ASKED.take();
    read();
    let bare = |name: String| name.split(|c: char| c.is_ascii_digit()).collect();
    ASKED.take().into_iter().map(bare).collect()
}

/// Parses a body, which has to be an object.
pub(super) fn parse(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => {
            Err(ApiError::bad(format!("expected a JSON object as body, got {}", kind(&other))))
        }
        Err(error) => Err(ApiError::bad(format!("the body is not valid JSON: {error}"))),
    }
}

/// What a value is, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl<'a> Fields<'a> {
    /// The fields of a request.
    pub(super) fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, path: String::new() }
    }

    /// The fields of an object at `path`.
    pub(super) fn at(map: &'a Map<String, Value>, path: String) -> Self {
        Self { map, path: path + "." }
    }

    /// The field's full name.
    pub(super) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// The names of all fields that are not null.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.map.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name.as_str())
    }

    /// The field's value; null counts as absent.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        #[cfg(test)]
        ASKED.with_borrow_mut(|asked| asked.push(self.name(name)));
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// An error about a field.
    pub(super) fn error(&self, name: &str, message: impl std::fmt::Display) -> ApiError {
        ApiError::field(self.name(name), message)
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let wrong = || self.error(name, format!("expected {expected}, got {}", kind(value)));
        read(value).map(Some).ok_or_else(wrong)
    }

    /// True or false.
    pub(super) fn bool(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "a boolean", Value::as_bool)
    }

    /// A number; whether it is in range is the engine's business.
    pub(super) fn f32(&self, name: &str) -> Result<Option<f32>, ApiError> {
        self.typed(name, "a number", |value| value.as_f64().map(|x| x as f32))
    }

    /// A whole number, also written as `5.0`.
    pub(super) fn integer(
        &self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.as_i64().or_else(|| {
            value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 2e15).map(|x| x as i64)
        });
        let expected = format!("expected a whole number from {} to {}", range.start(), range.end());
        match number {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            Some(number) => Err(self.error(name, format!("{expected}, got {number}"))),
            None if value.is_number() => Err(self.error(name, format!("{expected}, got {value}"))),
            None => Err(self.error(name, format!("{expected}, got {}", kind(value)))),
        }
    }

    /// A count of at least one, such as of tokens.
    pub(super) fn count(&self, name: &str) -> Result<Option<u32>, ApiError> {
        Ok(self.integer(name, 1..=i64::from(u32::MAX))?.map(|n| n as u32))
    }

    /// A string.
    pub(super) fn string(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.typed(name, "a string", Value::as_str)
    }

    /// A string that names something, or a number that stands for itself; the error of `T` says
    /// what there is.
    pub(super) fn parsed<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, ApiError>
    where
        T::Err: std::fmt::Display,
    {
        let text = match self.get(name) {
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => self.string(name)?.map(str::to_owned),
        };
        text.map(|text| text.parse().map_err(|error| self.error(name, error))).transpose()
    }

    /// An array.
    pub(super) fn array(&self, name: &str) -> Result<Option<&'a [Value]>, ApiError> {
        self.typed(name, "an array", |value| value.as_array().map(Vec::as_slice))
    }

    /// An object inside.
    pub(super) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ApiError> {
        let map = self.typed(name, "an object", Value::as_object)?;
        Ok(map.map(|map| Fields::at(map, self.name(name))))
    }

    /// The map itself.
    pub(super) fn map(&self) -> &'a Map<String, Value> {
        self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn message(error: ApiError) -> String {
        error.body()["error"]["message"].as_str().unwrap_or_default().to_owned()
    }

    #[test]
    fn a_wrong_type_names_the_field_what_was_expected_and_what_came() {
        let value = json!({"a": "x", "b": 1.5, "c": {"d": true}, "e": null, "f": 5.0});
        let fields = Fields::new(value.as_object().unwrap());
        assert_eq!(message(fields.f32("a").unwrap_err()), "a: expected a number, got a string");
        let error = message(fields.integer("b", 0..=9).unwrap_err());
        assert_eq!(error, "b: expected a whole number from 0 to 9, got 1.5");
        let inner = fields.object("c").unwrap().unwrap();
        let error = message(inner.string("d").unwrap_err());
        assert_eq!(error, "c.d: expected a string, got a boolean");
        assert_eq!(fields.bool("e").unwrap(), None, "null is absent");
        assert_eq!(fields.integer("f", 0..=9).unwrap(), Some(5));
    }

    #[test]
    fn a_body_has_to_be_an_object() {
        assert!(message(parse(b"[1]").unwrap_err()).contains("got an array"));
        assert!(message(parse(b"{").unwrap_err()).contains("not valid JSON"));
        let deep = "[".repeat(100_000);
        assert!(parse(deep.as_bytes()).is_err(), "nesting is bounded");
    }
}
