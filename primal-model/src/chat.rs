//! Conversations as text: a model's own Jinja template, run within limits.
//!
//! A template comes from a file and is a program: it may run so many instructions, nest so deep
//! and write so much, and ends with an error where it wants more.

mod python;

use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, context};
use serde_json::{Map, Value as Json};

use crate::ModelError;
use crate::tokenizer::{Tokenizer, TokenizerSettings};

/// Instructions that a template may run for each message, and at least in all.
const FUEL_PER_MESSAGE: u64 = 20_000;
const LEAST_FUEL: u64 = 1_000_000;
/// How deep macros and blocks may nest.
const MAX_DEPTH: usize = 64;
/// Bytes that a template may write beyond eight times those of the messages.
const MAX_OUTPUT_BYTES: usize = 1 << 20;
/// Longest template.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// What was said, by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, or another one that the template knows.
    pub role: String,
    /// The words; a call of a tool may have none.
    pub content: Option<String>,
    /// What else a template may look at, such as `tool_calls`.
    pub more: Map<String, Json>,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message {
            role: role.into(),
            content: Some(content.into()),
            more: Map::new(),
        }
    }

    /// A message of the user.
    pub fn user(content: impl Into<String>) -> Message {
        Message::new("user", content)
    }

    /// A message of the model.
    pub fn assistant(content: impl Into<String>) -> Message {
        Message::new("assistant", content)
    }

    /// What comes before the conversation.
    pub fn system(content: impl Into<String>) -> Message {
        Message::new("system", content)
    }

    /// Whether the model said it.
    pub fn is_answer(&self) -> bool {
        self.role == "assistant"
    }

    /// The message with every text in it changed.
    fn map_texts(&self, change: &dyn Fn(&str) -> String) -> Message {
        fn map(value: &Json, change: &dyn Fn(&str) -> String) -> Json {
            match value {
                Json::String(text) => Json::String(change(text)),
                Json::Array(list) => list.iter().map(|value| map(value, change)).collect(),
                Json::Object(values) => {
                    let values = values.iter();
                    values
                        .map(|(key, value)| (key.clone(), map(value, change)))
                        .collect()
                }
                other => other.clone(),
            }
        }
        let more = self.more.iter();
        Message {
            role: self.role.clone(),
            content: self.content.as_deref().map(change),
            more: more
                .map(|(key, value)| (key.clone(), map(value, change)))
                .collect(),
        }
    }

    fn value(&self) -> Value {
        let content = self.content.as_deref().map_or(Value::from(()), Value::from);
        let own = [
            ("role", Value::from(self.role.as_str())),
            ("content", content),
        ];
        let more = self.more.iter();
        let more = more.map(|(key, value)| (key.as_str(), value_of(value)));
        Value::from_pairs(own.into_iter().chain(more))
    }

    fn bytes(&self) -> usize {
        let more = self.more.values().map(|value| value.to_string().len());
        self.content.as_ref().map_or(0, String::len) + more.sum::<usize>()
    }
}

/// A value of JSON as the template sees it.
fn value_of(value: &Json) -> Value {
    match value {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Value::from(whole),
            (None, number) => Value::from(number.unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(list) => list.iter().map(value_of).collect(),
        Json::Object(values) => {
            let values = values.iter();
            Value::from_pairs(values.map(|(key, value)| (key.as_str(), value_of(value))))
        }
    }
}

/// A model's template, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// The template of a tokenizer; `None` where it has none.
    ///
    /// # Errors
    /// [`ModelError::ChatTemplate`] with the line that is no Jinja.
    pub fn new(settings: &TokenizerSettings) -> Result<Option<ChatTemplate>, ModelError> {
        let Some(source) = settings.chat_template.clone() else {
            return Ok(None);
        };
        if source.len() > MAX_TEMPLATE_BYTES {
            let reason = format!(
                "has {} bytes, at most {MAX_TEMPLATE_BYTES} are read",
                source.len()
            );
            return Err(ModelError::ChatTemplate(reason));
        }
        let mut environment = Environment::new();
        environment.set_recursion_limit(MAX_DEPTH);
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(template_error)?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |reason: String| -> Result<String, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, reason))
            },
        );
        python::add_to(&mut environment);
        environment
            .add_template_owned("chat", python::rewrite(&source))
            .map_err(template_error)?;
        Ok(Some(ChatTemplate {
            environment,
            bos_token: settings.bos_token.clone().unwrap_or_default(),
            eos_token: settings.eos_token.clone().unwrap_or_default(),
        }))
    }

    /// The text of a conversation, special tokens spelled out; with `reply_next` it ends where the
    /// model's reply begins.
    ///
    /// # Errors
    /// [`ModelError::ChatTemplate`]: what the template refuses, and where it wants more than the
    /// limits allow.
    pub fn render(&self, messages: &[Message], reply_next: bool) -> Result<String, ModelError> {
        let mut environment = self.environment.clone();
        let fuel = LEAST_FUEL.max(FUEL_PER_MESSAGE * messages.len() as u64);
        environment.set_fuel(Some(fuel));
        let spoken: usize = messages.iter().map(Message::bytes).sum();
        let mut text = Limited {
            bytes: Vec::new(),
            most: MAX_OUTPUT_BYTES + 8 * spoken,
        };
        let template = environment.get_template("chat").map_err(template_error)?;
        let told: Vec<Value> = messages.iter().map(Message::value).collect();
        let values = context! {
            messages => Value::from(told),
            add_generation_prompt => reply_next,
            // Templates ask whether there are any: `none` is how they are told that there are not.
            tools => (),
            documents => (),
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
        };
        template
            .render_captured_to(values, &mut text)
            .map_err(template_error)?;
        String::from_utf8(text.bytes).map_err(|error| ModelError::ChatTemplate(error.to_string()))
    }
}

/// The template's words for a conversation as tokens: what people wrote in it makes no control
/// token, whatever it spells.
impl ChatTemplate {
    /// The tokens of [`ChatTemplate::render`].
    ///
    /// # Errors
    /// As there, and those of the tokenizer.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        reply_next: bool,
    ) -> Result<Vec<u32>, ModelError> {
        tokenizer.encode_marked(&self.render_marked(tokenizer, messages, reply_next)?)
    }

    /// The text of [`ChatTemplate::render`] for [`Tokenizer::encode_marked`].
    pub(crate) fn render_marked(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        reply_next: bool,
    ) -> Result<String, ModelError> {
        let mark = |text: &str| tokenizer.mark_control_tokens(text).into_owned();
        let marked: Vec<Message> = messages.iter().map(|it| it.map_texts(&mark)).collect();
        self.render(&marked, reply_next)
    }
}

/// A buffer that refuses to grow beyond a length.
struct Limited {
    bytes: Vec<u8>,
    most: usize,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.most - self.bytes.len() {
            return Err(io::Error::other(format!(
                "writes more than {} bytes",
                self.most
            )));
        }
        self.bytes.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn template_error(error: Error) -> ModelError {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    // A message of the template's own may be long.
    ModelError::ChatTemplate(reason.chars().take(400).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> Result<ChatTemplate, ModelError> {
        let settings = TokenizerSettings {
            chat_template: Some(source.to_owned()),
            bos_token: Some("<s>".to_owned()),
            eos_token: Some("</s>".to_owned()),
            ..TokenizerSettings::default()
        };
        ChatTemplate::new(&settings).map(Option::unwrap)
    }

    fn render(source: &str) -> Result<String, String> {
        let messages = [Message::user("hi "), Message::assistant("ho")];
        let found = template(source).and_then(|template| template.render(&messages, true));
        found.map_err(|error| error.to_string())
    }

    #[test]
    fn templates_see_messages_tokens_and_python_methods() {
        let source = "{{ bos_token }}{% for m in messages %}\n    <{{ m.role }}>{{ m['content'].strip() }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let found = render(source).unwrap();
        assert_eq!(
            found,
            "<s>    <user>hi</s>\n    <assistant>ho</s>\n<assistant>"
        );
        assert!(
            ChatTemplate::new(&TokenizerSettings::default())
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn templates_have_what_transformers_offers() {
        for (source, expected) in [
            ("{% generation %}a{% endgeneration %}", "a"),
            ("{%- generation -%} a {%- endgeneration -%} b", "ab"),
            (
                "{{ tools is not none }} {{ documents is none }} {% if tools %}x{% endif %}",
                "False True ",
            ),
            ("{{ '%s: %d%%' % (messages[0].role, 3) }}", "user: 3%"),
            (
                "{{ '<%s>' % messages[0]['role'].upper() ~ '!' }}",
                "<USER>!",
            ),
            (
                "{{ \"%05.1f|%-3s|%x\" % (2.25, 'a', 255) }}",
                "002.2|a  |ff",
            ),
            (
                "{{ 7 % 4 }} {{ '%' }}{% if 4 % 2 == 0 %}even{% endif %}",
                "3 %even",
            ),
            (
                "{{ ['é', 1.0, true, none, {'a': '<\"'}] | tojson }}",
                "[\"é\", 1.0, true, null, {\"a\": \"<\\\"\"}]",
            ),
            (
                "{{ 'é🦀' | tojson(ensure_ascii=True) }}",
                "\"\\u00e9\\ud83e\\udd80\"",
            ),
            (
                "{{ {'b': [], 'a': {}} | tojson(ensure_ascii=False, sort_keys=true) }}",
                "{\"a\": {}, \"b\": []}",
            ),
            (
                "{{ [1, [2]] | tojson(indent=2) }}",
                "[\n  1,\n  [\n    2\n  ]\n]",
            ),
            ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
            (
                "{{ strftime_now('%Y') | length }} {{ strftime_now('%%') }}",
                "4 %",
            ),
            ("{{ messages[0].tool_calls is defined }}", "False"),
        ] {
            assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
        }
        for (source, part) in [
            ("{{ '%d' % 'x' }}", "%d"),
            ("{{ '%s %s' % 1 }}", "%s"),
            ("{{ '%q' % 1 }}", "%q"),
            ("{{ 1 | tojson(indents=2) }}", "indents"),
            ("{{ 'a' % }}", ""),
        ] {
            let error = render(source).unwrap_err();
            assert!(error.contains(part), "{source}: {error}");
        }
    }

    #[test]
    fn templates_see_all_of_a_message() {
        let mut call = Message::assistant("");
        call.content = None;
        let tool = serde_json::json!([{ "function": { "name": "f", "arguments": { "x": 1 } } }]);
        call.more.insert("tool_calls".into(), tool);
        let messages = [call, Message::new("tool", "42")];
        let source = "{% for m in messages %}{{ m.role }}={{ m.content is none }} {% if m.tool_calls %}{{ m.tool_calls[0].function.arguments | tojson }} {% endif %}{% endfor %}";
        let found = template(source).unwrap().render(&messages, false).unwrap();
        assert_eq!(found, "assistant=True {\"x\": 1} tool=False ");
    }

    #[test]
    fn endless_and_greedy_templates_end_with_an_error() {
        for (source, part) in [
            (
                "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
                "recursion",
            ),
            (
                "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
                "fuel",
            ),
            (
                "{% for i in range(10000) %}{{ 'x' * 100000 }}{% endfor %}",
                "writes more than",
            ),
            ("{{ 'x' * 1000000000000 }}", ""),
            ("{{ raise_exception('no system role') }}", "no system role"),
            ("{% for %}", "syntax"),
            ("{{ messages[0].content.nothing() }}", "nothing"),
            (&"{% if true %}".repeat(10_000), ""),
            (&"(".repeat(100_000), ""),
            (&format!("{{{{ {} }}}}", "(".repeat(100_000)), ""),
            (&"x".repeat(2 << 20), "at most"),
        ] {
            let found = render(source);
            if source.starts_with('(') {
                // Plain text.
                assert!(found.is_ok());
                continue;
            }
            let error = found.unwrap_err();
            assert!(
                error.starts_with("chat template: ") && error.contains(part),
                "{error}"
            );
        }
    }
}
