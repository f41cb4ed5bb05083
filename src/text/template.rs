//! Chat templates, rendered as `transformers` renders them.
//!
//! Templates are programs out of model files, so they run with fuel (which bounds time and
//! memory), a recursion limit and a cap on the output, on a thread with a stack of known size.
//! Invariant: for a template that `transformers` accepts, the bytes are the same. Read next:
//! `python` for the Python behaviour templates rely on.

use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, UndefinedBehavior};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::python;
use crate::error::TextError;

/// Instructions a template may spend on its own; content adds [`FUEL_PER_BYTE`] on top. Real
/// templates need about 50 per message. One fuel also pays for 64 bytes.
const FUEL: u64 = 200_000;
/// Every byte of content may be copied about 64 times.
const FUEL_PER_BYTE: u64 = 1;
/// The prompt may exceed template and content by this much.
const OUTPUT_SLACK_BYTES: usize = 1 << 20;
/// Nesting of values and calls is bounded by fuel; this holds the deepest there can be.
const STACK_BYTES: usize = 64 << 20;
const RECURSION_MAX: usize = 200;
/// Longer sources are no chat templates.
const SOURCE_BYTES_MAX: usize = 1 << 20;

/// Marks the end of the message to continue. The space tells whether the template trims.
const CONTINUE_MARK: &str = "\u{1}FINAL_MESSAGE_ENDS_HERE\u{1} ";
/// Stands for the assistant's steps when only what follows them is wanted.
const SUFFIX_MARK: &str = "\u{1}ASSISTANT_CONTENT\u{1}";

const CLOSE_THINK: &str = "</think>";

/// One turn of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or what else the template knows.
    pub role: String,
    /// The text. A null in JSON reads as empty.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub content: String,
    /// All other fields, passed to the template as they are.
    #[serde(flatten)]
    pub extra: Map<String, Json>,
}

impl Message {
    /// A message without extra fields.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }
}

fn null_as_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

/// Texts of the special tokens a template may name; absent ones are undefined in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialText {
    /// `bos_token`.
    pub bos: Option<String>,
    /// `eos_token`.
    pub eos: Option<String>,
    /// `unk_token`.
    pub unk: Option<String>,
    /// `pad_token`.
    pub pad: Option<String>,
}

/// How to render.
#[derive(Debug, Clone, PartialEq)]
pub struct RenderOptions {
    /// Open an assistant turn at the end.
    pub add_generation_prompt: bool,
    /// Leave the last message open, so that the model goes on with it.
    pub continue_final_message: bool,
    /// More variables, such as `enable_thinking` or `tools`; they win over the built-in ones.
    pub variables: Map<String, Json>,
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, continue_final_message: false, variables: Map::new() }
    }
}

/// A compiled chat template. Cloning shares it.
#[derive(Clone)]
pub struct ChatTemplate {
    env: Arc<Environment<'static>>,
    source: Arc<str>,
    specials: SpecialText,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("source_bytes", &self.source.len())
            .field("specials", &self.specials)
            .finish_non_exhaustive()
    }
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// Compiles a template as found in `tokenizer_config.json`, `chat_template.jinja` or GGUF.
    ///
    /// # Errors
    /// If it does not parse.
    pub fn new(source: &str, specials: SpecialText) -> Result<Self, TextError> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(invalid(format!(
                "expected at most {SOURCE_BYTES_MAX} bytes, got {}",
                source.len()
            )));
        }
        let text = without_generation_tags(source);
        let env = on_own_stack(move || {
            let mut env = environment();
            env.add_template_owned(NAME, text).map_err(|error| invalid(error.to_string()))?;
            Ok(env)
        })?;
        Ok(Self { env: Arc::new(env), source: source.into(), specials })
    }

    /// The source as given.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt for a conversation.
    ///
    /// With `continue_final_message` the text ends right after the last message's content, with
    /// the content's trailing white space unless the template trims it.
    ///
    /// # Errors
    /// If the template fails, refuses the conversation or exceeds its limits; if both flags are
    /// set; or if the message to continue does not appear in the rendered text.
    pub fn render(
        &self,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<String, TextError> {
        if !options.continue_final_message {
            return self.render_plain(messages, options);
        }
        if options.add_generation_prompt {
            return Err(invalid(
                "add_generation_prompt and continue_final_message exclude each other; \
                 set one of them"
                    .to_owned(),
            ));
        }
        let Some((last, before)) = messages.split_last() else {
            return Err(invalid("continue_final_message needs a message, got none".to_owned()));
        };
        let mut marked = before.to_vec();
        let mut open = last.clone();
        open.content.push_str(CONTINUE_MARK);
        marked.push(open);
        let mut text = self.render_plain(&marked, options)?;
        let mark = CONTINUE_MARK.trim_end();
        let at = text.rfind(mark).filter(|_| text.contains(last.content.trim()));
        let Some(at) = at else {
            return Err(invalid(
                "the message to continue does not appear in the rendered text; \
                 this template drops part of a final assistant message"
                    .to_owned(),
            ));
        };
        let keeps_space = text[at..].starts_with(CONTINUE_MARK);
        text.truncate(at);
        if !keeps_space {
            text.truncate(text.trim_end().len());
        }
        Ok(text)
    }

    /// What the template puts after the content of the last assistant message of `messages`, up
    /// to and including a further assistant turn left open after `final_prefill`.
    ///
    /// For a judge turn: `messages` is question, steps, judge's question, and the result is what
    /// is appended to a sequence that ends with the steps. Trailing space of the prefill survives.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`]; also if there is no assistant message, if the template drops
    /// its content, or if it closes the thinking that the prefill means to open (Qwen3's puts an
    /// empty think block before it, and the judge would be asked something else).
    pub fn suffix_after(
        &self,
        messages: &[Message],
        final_prefill: &str,
    ) -> Result<String, TextError> {
        let mut messages = messages.to_vec();
        let Some(steps) = messages.iter_mut().rev().find(|message| message.role == "assistant")
        else {
            return Err(invalid("expected an assistant message to follow, got none".to_owned()));
        };
        SUFFIX_MARK.clone_into(&mut steps.content);
        let closed_by_input = messages.iter().any(|message| message.content.contains(CLOSE_THINK))
            || final_prefill.contains(CLOSE_THINK);
        messages.push(Message::new("assistant", final_prefill));
        let options = RenderOptions {
            add_generation_prompt: false,
            continue_final_message: true,
            ..RenderOptions::default()
        };
        let text = self.render(&messages, &options)?;
        let Some(at) = text.rfind(SUFFIX_MARK) else {
            return Err(invalid(
                "this template drops the content of an earlier assistant message".to_owned(),
            ));
        };
        let suffix = &text[at + SUFFIX_MARK.len()..];
        let opens = final_prefill.contains("<think>");
        if opens && !closed_by_input && suffix.contains(CLOSE_THINK) {
            return Err(invalid(format!(
                "this template writes {CLOSE_THINK} before a prefill that opens the tag; \
                 give the judge a prefill without <think>, or another template"
            )));
        }
        Ok(suffix.to_owned())
    }

    fn render_plain(
        &self,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<String, TextError> {
        let mut context = Map::new();
        for (name, text) in [
            ("bos_token", &self.specials.bos),
            ("eos_token", &self.specials.eos),
            ("unk_token", &self.specials.unk),
            ("pad_token", &self.specials.pad),
        ] {
            if let Some(text) = text {
                context.insert(name.to_owned(), text.as_str().into());
            }
        }
        context.insert("tools".to_owned(), Json::Null);
        context.insert("documents".to_owned(), Json::Null);
        context.insert("add_generation_prompt".to_owned(), options.add_generation_prompt.into());
        context.insert("messages".to_owned(), messages.iter().map(message_json).collect());
        context.extend(options.variables.clone());

        let input_bytes = self.source.len() + size_bytes(&context);
        let mut env = (*self.env).clone();
        env.set_fuel(Some(FUEL + FUEL_PER_BYTE * input_bytes as u64));
        let text = on_own_stack(move || {
            let template = env.get_template(NAME).map_err(|error| invalid(error.to_string()))?;
            let context = Value::from(Serde(context));
            template.render(context).map_err(|error| invalid(describe(&error)))
        })?;
        if text.len() > OUTPUT_SLACK_BYTES + 8 * input_bytes {
            return Err(invalid(format!(
                "the rendered prompt has {} bytes for an input of {input_bytes}; \
                 this template repeats itself",
                text.len()
            )));
        }
        Ok(text)
    }
}

fn invalid(message: String) -> TextError {
    TextError::Template(message)
}

fn describe(error: &minijinja::Error) -> String {
    match error.kind() {
        minijinja::ErrorKind::OutOfFuel => {
            format!("{error}: this template takes too many steps or too much memory")
        }
        _ => error.to_string(),
    }
}

/// Fields in the order role, content, rest; reasoning under every name templates read it by.
fn message_json(message: &Message) -> Json {
    let mut fields = Map::new();
    fields.insert("role".to_owned(), message.role.as_str().into());
    fields.insert("content".to_owned(), message.content.as_str().into());
    fields.extend(message.extra.clone());
    let reasoning = ["reasoning_content", "thinking", "reasoning"]
        .iter()
        .find_map(|name| fields.get(*name).filter(|value| !value.is_null()).cloned());
    if let Some(reasoning) = reasoning {
        fields.entry("thinking").or_insert_with(|| reasoning.clone());
        fields.insert("reasoning_content".to_owned(), reasoning);
    }
    Json::Object(fields)
}

/// Roughly the bytes of all keys and texts.
fn size_bytes(fields: &Map<String, Json>) -> usize {
    fn value_bytes(value: &Json) -> usize {
        match value {
            Json::String(text) => text.len(),
            Json::Array(items) => items.iter().map(|item| 8 + value_bytes(item)).sum(),
            Json::Object(fields) => size_bytes(fields),
            _ => 8,
        }
    }
    fields.iter().map(|(name, value)| name.len() + value_bytes(value)).sum()
}

/// The environment `transformers` sets up, without loaders or debugging aids.
fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.expect("the default delimiters are valid"));
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_recursion_limit(RECURSION_MAX);
    env.set_debug(false);
    env.remove_global("debug");
    python::install(&mut env);
    env
}

/// Runs `work` on a thread with a stack of [`STACK_BYTES`]: dropping a value nested as deeply as
/// fuel allows recurses that deep, whatever thread the caller is on.
fn on_own_stack<T: Send>(
    work: impl FnOnce() -> Result<T, TextError> + Send,
) -> Result<T, TextError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("chat-template".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|error| invalid(format!("no thread to render on: {error}")))?;
        thread.join().unwrap_or_else(|_| Err(invalid("the template engine panicked".to_owned())))
    })
}

/// Replaces `{% generation %}` blocks, which mark what the model wrote for training, by plain
/// scopes with the same white-space control.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        text.push_str(&rest[..at + 2]);
        rest = &rest[at + 2..];
        if let Some(control) = rest.chars().next().filter(|c| matches!(c, '-' | '+')) {
            text.push(control);
            rest = &rest[1..];
        }
        let word = rest.trim_start();
        let names = [("generation", " with "), ("endgeneration", " endwith ")];
        for (name, scope) in names {
            let Some(after) = word.strip_prefix(name) else { continue };
            let after = after.trim_start();
            if ["%}", "-%}", "+%}"].iter().any(|end| after.starts_with(end)) {
                text.push_str(scope);
                rest = after;
            }
        }
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, TextError> {
        let template = ChatTemplate::new(source, SpecialText::default())?;
        template.render(&[Message::new("user", "hi <b>")], &RenderOptions::default())
    }

    #[test]
    fn generation_tags_leave_their_body() {
        let source = "{% for m in messages %}{%- generation -%} {{ m.content }}\n\
                      {%- endgeneration %}!{% endfor %}";
        assert_eq!(render(source).unwrap(), "hi <b>!");
    }

    #[test]
    fn both_flags_together_are_an_error() {
        let template = ChatTemplate::new("{{ messages[0].content }}", SpecialText::default());
        let options = RenderOptions { continue_final_message: true, ..RenderOptions::default() };
        let error = template.unwrap().render(&[Message::new("user", "x")], &options).unwrap_err();
        assert!(error.to_string().contains("exclude each other"), "{error}");
    }

    #[test]
    fn a_template_can_refuse_a_conversation_with_its_own_words() {
        let error = render("{{ raise_exception('no system role here') }}").unwrap_err();
        assert!(error.to_string().contains("no system role here"), "{error}");
    }

    #[test]
    fn hostile_templates_end_with_an_error() {
        let nest = "(".repeat(50_000);
        let deep = format!("{{% set x = {}1{} %}}", "[".repeat(5000), "]".repeat(5000));
        let blocks = "{% if 1 %}".repeat(20_000);
        for (what, source) in [
            (
                "endless loop",
                "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
            ),
            (
                "doubling",
                "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(64) %}\
                 {% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
            ),
            ("repeat", "{{ 'abc' * 99999999 }}"),
            ("big range", "{{ range(1000000000)|list }}"),
            (
                "replace",
                "{% set n = namespace(x='a') %}{% for i in range(64) %}\
                 {% set n.x = n.x.replace('a', 'aaaaaaaaaaaaaaaa') %}{% endfor %}",
            ),
            ("macro recursion", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
            ("open parentheses", &format!("{{{{ {nest}")),
            ("deep literal", &deep),
            ("deep blocks", &blocks),
            ("include", "{% include 'other' %}"),
            ("format width", "{{ '%999999999d' | format(1) }}"),
            ("format method", "{{ '{:>999999999}'.format(1) }}"),
            ("indent", "{{ 'a\\nb' | indent(999999999) }}"),
            ("json indent", "{{ [1, [2]] | tojson(indent=999999999) }}"),
            ("bad method", "{{ messages[0].content.nonesuch() }}"),
            ("undefined attribute", "{{ nothing.at.all }}"),
        ] {
            let start = std::time::Instant::now();
            assert!(render(source).is_err(), "{what}");
            assert!(start.elapsed().as_secs() < 10, "{what} took {:?}", start.elapsed());
        }
    }

    #[test]
    fn a_deeply_nested_value_does_not_overflow_the_stack() {
        let source = "{% set n = namespace(x=[]) %}{% for i in range(9000) %}\
                      {% for j in range(9000) %}{% set n.x = [n.x] %}{% endfor %}{% endfor %}";
        assert!(render(source).is_err());
        for end in ["{{ n.x | tojson }}", "{{ n.x }}", "{{ n.x | string }}", "{{ n.x == n.x }}"] {
            let source = format!(
                "{{% set n = namespace(x=[]) %}}{{% for i in range(9000) %}}\
                 {{% set n.x = [n.x] %}}{{% endfor %}}{end}"
            );
            // Whatever the outcome, it is one.
            let _ = render(&source);
        }
    }
}
