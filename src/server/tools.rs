//! Tools: what a request offers, and the calls in a reply.
//!
//! Offered tools go to the chat template, which tells the model. A call comes back as Qwen and
//! Hermes models write it: a JSON object with `name` and `arguments` between `<tool_call>` and
//! `</tool_call>`. What stands there and is no call stays text: nothing a model wrote is lost.

use super::chat::reply_id;
use super::collect::Delta;
use super::errors::ApiError;
use super::fields::Fields;
use serde_json::{Value, json};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// A call a model made.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ToolCall {
    pub(super) id: String,
    pub(super) name: String,
    /// JSON.
    pub(super) arguments: String,
}

impl ToolCall {
    fn parse(text: &str) -> Option<Self> {
        let call: Value = serde_json::from_str(text.trim()).ok()?;
        let name = call.get("name")?.as_str()?.to_owned();
        let arguments = match call.get("arguments").or_else(|| call.get("parameters")) {
            None => json!({}),
            // Some models write the object as a string already.
            Some(Value::String(text)) => serde_json::from_str(text).ok()?,
            Some(other) => other.clone(),
        };
        let arguments = arguments.is_object().then(|| arguments.to_string())?;
        Some(Self { id: reply_id("call"), name, arguments })
    }

    /// As a message carries it.
    pub(super) fn object(&self) -> Value {
        json!({"id": self.id, "type": "function",
            "function": {"name": self.name, "arguments": self.arguments}})
    }
}

/// Takes the calls out of a text as it comes.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// Text that may be the beginning of a call, or is inside of one.
    held: String,
    inside: bool,
}

impl Calls {
    /// Adds text to a delta, and calls that are complete.
    pub(super) fn push(&mut self, text: &str, delta: &mut Delta) {
        self.held.push_str(text);
        loop {
            let tag = if self.inside { CLOSE } else { OPEN };
            let Some(at) = self.held.find(tag) else { break };
            let after = self.held.split_off(at + tag.len());
            let before = std::mem::replace(&mut self.held, after);
            let before = &before[..at];
            match (self.inside, ToolCall::parse(before)) {
                (false, _) => delta.content.push_str(before.trim_end()),
                (true, Some(call)) => delta.calls.push(call),
                (true, None) => delta.content.push_str(&[OPEN, before, CLOSE].concat()),
            }
            self.inside = !self.inside;
        }
        if !self.inside {
            // Space before a call belongs to it, and any end may be the beginning of a tag.
            let tag = (1..OPEN.len()).rev().find(|n| self.held.ends_with(&OPEN[..*n]));
            let shown = self.held[..self.held.len() - tag.unwrap_or(0)].trim_end().len();
            let rest = self.held.split_off(shown);
            delta.content.push_str(&std::mem::replace(&mut self.held, rest));
        }
    }

    /// What is left when no more text comes.
    pub(super) fn finish(&mut self, delta: &mut Delta) {
        let rest = std::mem::take(&mut self.held);
        match (std::mem::take(&mut self.inside), ToolCall::parse(&rest)) {
            // The end of the turn may stand for the closing tag.
            (true, Some(call)) => delta.calls.push(call),
            (true, None) => delta.content.push_str(&(OPEN.to_owned() + &rest)),
            (false, _) if delta.calls.is_empty() => delta.content.push_str(&rest),
            (false, _) => delta.content.push_str(rest.trim_end()),
        }
    }
}

/// The tools a request offers; `None` where it offers none or forbids their use.
pub(super) fn offered(fields: &Fields<'_>) -> Result<Option<Value>, ApiError> {
    let tools = fields.array("tools")?.unwrap_or_default();
    for (i, tool) in tools.iter().enumerate() {
        let path = fields.name(&format!("tools[{i}]"));
        let Some(tool) = tool.as_object() else {
            let got = super::fields::kind(tool);
            return Err(ApiError::field(path, format!("expected an object, got {got}")));
        };
        let tool = Fields::at(tool, path);
        if tool.string("type")? != Some("function") {
            return Err(tool.error("type", "only \"function\" is understood"));
        }
        let function = tool.object("function")?;
        let function = function.ok_or_else(|| tool.error("function", "expected an object"))?;
        if function.string("name")?.is_none() {
            return Err(function.error("name", "expected a string, got nothing"));
        }
        function.string("description")?;
        function.object("parameters")?;
    }
    let choice = match fields.get("tool_choice") {
        None => "auto",
        Some(Value::String(choice)) if choice == "auto" || choice == "none" => choice.as_str(),
        Some(_) => {
            let message = "the model decides (\"auto\") or there are no tools (\"none\")";
            return Err(fields.error("tool_choice", message));
        }
    };
    let offers = !tools.is_empty() && choice == "auto";
    Ok(offers.then(|| Value::Array(tools.to_vec())))
}

/// Arguments of earlier calls as templates expect them: objects, not JSON in a string.
pub(super) fn with_parsed_arguments(calls: &Value) -> Value {
    let mut calls = calls.clone();
    for call in calls.as_array_mut().into_iter().flatten() {
        if let Some(arguments) = call.pointer_mut("/function/arguments")
            && let Some(text) = arguments.as_str()
            && let Ok(parsed @ Value::Object(_)) = serde_json::from_str(text)
        {
            *arguments = parsed;
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(pieces: &[&str]) -> (String, Vec<(String, String)>) {
        let (mut calls, mut delta) = (Calls::default(), Delta::default());
        pieces.iter().for_each(|piece| calls.push(piece, &mut delta));
        calls.finish(&mut delta);
        let found = delta.calls.iter().map(|c| (c.name.clone(), c.arguments.clone())).collect();
        (delta.content, found)
    }

    #[test]
    fn calls_are_taken_out_and_what_is_none_stays_text() {
        let call = |n: i64| ("add".to_owned(), format!("{{\"n\":{n}}}"));
        let (text, calls) = read(&["Let me see.\n<tool_call>\n{\"name\": \"add\", \
            \"arguments\": {\"n\": 1}}\n</tool_call>\n<tool_call>{\"name\":\"add\",\
            \"arguments\":\"{\\\"n\\\": 2}\"}</tool_call>\n"]);
        assert_eq!((text.as_str(), calls), ("Let me see.", vec![call(1), call(2)]));
        let broken = "a <tool_call>{\"name\": 5}</tool_call> b\n";
        assert_eq!(read(&[broken]), ("a<tool_call>{\"name\": 5}</tool_call> b\n".into(), vec![]));
        let open = "<tool_call>{\"name\": \"add\", \"arguments\": {\"n\": 3}}";
        assert_eq!(read(&[open]), (String::new(), vec![call(3)]), "the turn ended inside");
        assert_eq!(read(&["<tool_call>{\"na"]), ("<tool_call>{\"na".into(), vec![]));
        assert_eq!(read(&["plain < text <tool \n"]), ("plain < text <tool \n".into(), vec![]));
    }

    proptest! {
        #[test]
        fn the_calls_do_not_depend_on_how_the_text_was_cut(
            cuts in prop::collection::vec(0usize..120, 0..8),
        ) {
            let text = "Well. \n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"n\": 1}}\n\
                </tool_call> and <tool_call>no</tool_call> < end";
            let mut cuts: Vec<_> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            cuts.sort_unstable();
            let mut pieces = vec![];
            let mut from = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                pieces.push(&text[from..cut]);
                from = cut;
            }
            prop_assert_eq!(read(&pieces), read(&[text]));
        }
    }

    #[test]
    fn arguments_of_earlier_calls_become_objects() {
        let calls = json!([{"function": {"name": "f", "arguments": "{\"a\": 1}"}},
            {"function": {"name": "g", "arguments": "not JSON"}}, 5]);
        let parsed = with_parsed_arguments(&calls);
        assert_eq!(parsed[0]["function"]["arguments"], json!({"a": 1}));
        assert_eq!(parsed[1], calls[1]);
    }
}
