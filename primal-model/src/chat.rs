//! Conversations as text: a model's own Jinja template, run within limits.
//!
//! A template comes from a file and is a program: it may run so many instructions, nest so deep
//! and write so much, and ends with an error where it wants more.

use std::io::{self, Write};

use crate::ModelError;
use crate::tokenizer::TokenizerSettings;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, context};

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
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// The words.
    pub content: String,
}

impl Message {
    /// A message of the user.
    pub fn user(content: impl Into<String>) -> Message {
        Message {
            role: "user",
            content: content.into(),
        }
    }

    /// A message of the model.
    pub fn assistant(content: impl Into<String>) -> Message {
        Message {
            role: "assistant",
            content: content.into(),
        }
    }

    /// What comes before the conversation.
    pub fn system(content: impl Into<String>) -> Message {
        Message {
            role: "system",
            content: content.into(),
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
        environment
            .add_template_owned("chat", source)
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
        let spoken: usize = messages.iter().map(|message| message.content.len()).sum();
        let mut text = Limited {
            bytes: Vec::new(),
            most: MAX_OUTPUT_BYTES + 8 * spoken,
        };
        let template = environment.get_template("chat").map_err(template_error)?;
        let told: Vec<Value> = messages
            .iter()
            .map(|it| Value::from_pairs([("role", it.role), ("content", &it.content)]))
            .collect();
        let values = context! {
            messages => Value::from(told),
            add_generation_prompt => reply_next,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
        };
        template
            .render_captured_to(values, &mut text)
            .map_err(template_error)?;
        String::from_utf8(text.bytes).map_err(|error| ModelError::ChatTemplate(error.to_string()))
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
