//! Instruction files: conversations whose answers, and nothing else, carry loss.
//!
//! One JSON object a line: `{"messages": [{"role": .., "content": ..}, ..]}`, the same under
//! `conversations` with `from` and `value`, or a question under `prompt`, `instruction` or
//! `question` (with more text under `input`) and its answer under `completion`, `response`, `output`
//! or `answer`. A content may be a list of texts; other keys of a message go to the template. A
//! model with a chat template sees the conversation in its words; for others question and answer
//! stand on lines of their own.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::ModelError;
use crate::chat::{ChatTemplate, Message};
use crate::data::{TokenStream, read_text};
use crate::tokenizer::Tokenizer;

const QUESTIONS: [&str; 3] = ["prompt", "instruction", "question"];
const ANSWERS: [&str; 4] = ["completion", "response", "output", "answer"];

/// The conversations of some files.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conversations(Vec<Conversation>);

/// A conversation and where it stands.
#[derive(Clone, Debug)]
struct Conversation {
    messages: Vec<Message>,
    path: Arc<PathBuf>,
    /// 1-based.
    line: usize,
}

impl Conversation {
    fn error(&self, error: &ModelError) -> ModelError {
        ModelError::BadJsonLine {
            path: (*self.path).clone(),
            line: self.line,
            reason: error.to_string(),
        }
    }

    fn parts(
        &self,
        template: Option<&ChatTemplate>,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<(String, bool)>, ModelError> {
        match template {
            Some(template) => template_parts(template, tokenizer, &self.messages),
            None => Ok(plain_parts(tokenizer, &self.messages)),
        }
    }
}

impl Conversations {
    /// Reads files in the order given.
    pub(crate) fn read(paths: &[PathBuf]) -> Result<Conversations, ModelError> {
        let mut all = Vec::new();
        for path in paths {
            let before = all.len();
            let shared = Arc::new(path.clone());
            for (index, line) in read_text(path)?.lines().enumerate() {
                if line.trim().is_empty() {
                    continue;
                }
                let messages = conversation(line).map_err(|reason| ModelError::BadJsonLine {
                    path: path.clone(),
                    line: index + 1,
                    reason,
                })?;
                all.push(Conversation {
                    messages,
                    path: Arc::clone(&shared),
                    line: index + 1,
                });
            }
            if all.len() == before {
                return Err(ModelError::EmptyData { path: path.clone() });
            }
        }
        Ok(Conversations(all))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Moves the last `fraction` of the conversations, at least one, into a collection of its own.
    pub(crate) fn split_off_tail(&mut self, fraction: f32) -> Conversations {
        let n = self.0.len();
        let tail = ((n as f64 * f64::from(fraction)) as usize).clamp(1, n.max(1));
        Conversations(self.0.split_off(n - tail.min(n)))
    }

    /// The tokens of all of them, end to end, the answers marked.
    pub(crate) fn encode(&self, tokenizer: &Tokenizer) -> Result<TokenStream, ModelError> {
        let template = match tokenizer.settings() {
            Some(settings) => ChatTemplate::new(settings)?,
            None => None,
        };
        let (mut ids, mut is_answer, mut text_bytes) = (Vec::new(), Vec::new(), 0);
        for conversation in &self.0 {
            let parts = conversation.parts(template.as_ref(), tokenizer);
            for (text, answer) in parts.map_err(|error| conversation.error(&error))? {
                let tokens = tokenizer.encode_marked(&text);
                let tokens = tokens.map_err(|error| conversation.error(&error))?;
                is_answer.resize(is_answer.len() + tokens.len(), answer);
                ids.extend(tokens);
                text_bytes += text.len() as u64;
            }
            // Without a template the end of the text ends the answer.
            if let (None, Some(end)) = (&template, tokenizer.end_of_text()) {
                ids.push(end);
                is_answer.push(true);
            }
        }
        if !is_answer.contains(&true) {
            return Err(ModelError::Instructions(
                "no conversation has an answer".to_owned(),
            ));
        }
        Ok(TokenStream::with_answers(
            &ids,
            is_answer,
            text_bytes,
            tokenizer.vocab_size(),
        ))
    }
}

/// The words of the template, cut where answers begin and end, control tokens that were only
/// spelled marked.
fn template_parts(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    messages: &[Message],
) -> Result<Vec<(String, bool)>, ModelError> {
    let mut parts = Vec::new();
    let mut done = String::new();
    let answers = messages.iter().enumerate().filter(|(_, it)| it.is_answer());
    let render = |end, reply_next| template.render_marked(tokenizer, &messages[..end], reply_next);
    for (at, _) in answers {
        let question = render(at, true)?;
        let answer = render(at + 1, false)?;
        let parted = question
            .strip_prefix(&done)
            .zip(answer.strip_prefix(&question));
        let Some((question, answer)) = parted else {
            let reason = "the chat template changes what was said before when a message is added";
            return Err(ModelError::Instructions(reason.to_owned()));
        };
        parts.push((question.to_owned(), false));
        parts.push((answer.to_owned(), true));
        done = render(at + 1, false)?;
    }
    Ok(parts)
}

fn plain_parts(tokenizer: &Tokenizer, messages: &[Message]) -> Vec<(String, bool)> {
    let part = |message: &Message| {
        let content = message.content.as_deref().unwrap_or_default();
        let content = tokenizer.mark_control_tokens(content);
        (format!("{content}\n"), message.is_answer())
    };
    messages.iter().map(part).collect()
}

fn conversation(line: &str) -> Result<Vec<Message>, String> {
    let object: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| error.to_string())?;
    for key in ["messages", "conversations"] {
        let Some(messages) = object.get(key) else {
            continue;
        };
        let messages = messages
            .as_array()
            .ok_or_else(|| format!("'{key}' is not a list"))?;
        let messages: Vec<_> = messages.iter().map(message).collect::<Result<_, _>>()?;
        if !messages.iter().any(Message::is_answer) {
            return Err("no message has the role assistant".to_owned());
        }
        return Ok(messages);
    }
    let text = |keys: &[&str]| keys.iter().find_map(|key| object.get(*key)?.as_str());
    let missing = |keys: &[&str]| {
        let found: Vec<_> = object.keys().map(String::as_str).collect();
        format!(
            "no text under {} among: {}",
            keys.join(", "),
            found.join(", ")
        )
    };
    let question = text(&QUESTIONS).ok_or_else(|| missing(&QUESTIONS))?;
    let answer = text(&ANSWERS).ok_or_else(|| missing(&ANSWERS))?;
    let question = match object.get("input").and_then(Value::as_str) {
        Some(input) if !input.is_empty() => format!("{question}\n\n{input}"),
        _ => question.to_owned(),
    };
    Ok(vec![Message::user(question), Message::assistant(answer)])
}

fn message(value: &Value) -> Result<Message, String> {
    let mut more = value.as_object().ok_or("a message is no object")?.clone();
    let role = more.remove("role").or_else(|| more.remove("from"));
    let role = match role.as_ref().and_then(Value::as_str) {
        Some("human") => "user",
        Some("gpt" | "chatgpt" | "bot" | "model") => "assistant",
        Some(role) if !role.is_empty() => role,
        _ => return Err("a message has no text under 'role' or 'from'".to_owned()),
    };
    let content = more.remove("content").or_else(|| more.remove("value"));
    let calls_a_tool = more.contains_key("tool_calls");
    Ok(Message {
        role: role.to_owned(),
        content: match content {
            None | Some(Value::Null) if calls_a_tool => None,
            None | Some(Value::Null) => {
                return Err(format!("a message of {role} has no text under 'content'"));
            }
            Some(content) => Some(text_of(&content)?),
        },
        more,
    })
}

/// A text, or a list of parts that are texts.
fn text_of(content: &Value) -> Result<String, String> {
    let wrong = "'content' is neither a text nor a list of texts";
    let part = |part: &Value| match (part["type"].as_str(), &part["text"], part) {
        (_, _, Value::String(text)) => Ok(text.clone()),
        (Some("text") | None, Value::String(text), _) => Ok(text.clone()),
        (Some(kind), ..) => Err(format!(
            "a part of 'content' is of type {kind}, where this build reads text alone"
        )),
        _ => Err(wrong.to_owned()),
    };
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => parts.iter().map(part).collect(),
        _ => Err(wrong.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::TokenizerSettings;

    fn read(lines: &str) -> Result<Conversations, ModelError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        std::fs::write(&path, lines).unwrap();
        Conversations::read(&[path])
    }

    /// The text whose tokens carry loss, by the mark of bytes.
    fn answers(conversations: &Conversations) -> String {
        let stream = conversations.encode(&Tokenizer::Bytes).unwrap();
        let n = stream.len() - 1;
        let (mut inputs, mut targets) = (vec![0; n], vec![0; n]);
        stream.copy_window(0, &mut inputs, &mut targets);
        let bytes = targets.iter().filter(|target| **target != u32::MAX);
        String::from_utf8(bytes.map(|byte| *byte as u8).collect()).unwrap()
    }

    #[test]
    fn answers_alone_carry_loss() {
        let found = read(concat!(
            r#"{"prompt": "2+2?", "completion": "4"}"#,
            "\n\n",
            r#"{"instruction": "Add.", "input": "1, 2", "output": "3"}"#,
            "\n",
            r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}"#,
        ));
        let mut found = found.unwrap();
        assert_eq!(answers(&found), "4\n3\nho\n");
        assert_eq!(answers(&found.split_off_tail(0.1)), "ho\n");
        assert_eq!(answers(&found), "4\n3\n");
    }

    #[test]
    fn templates_are_cut_where_answers_begin_and_end() {
        let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let settings = TokenizerSettings {
            chat_template: Some(source.to_owned()),
            ..TokenizerSettings::default()
        };
        let template = ChatTemplate::new(&settings).unwrap().unwrap();
        let messages = [
            Message::user("a"),
            Message::assistant("b"),
            Message::user("c"),
            Message::assistant("d"),
        ];
        let parts = template_parts(&template, &Tokenizer::Bytes, &messages).unwrap();
        let texts: Vec<_> = parts
            .iter()
            .map(|(text, is_answer)| (text.as_str(), *is_answer))
            .collect();
        assert_eq!(
            texts,
            [
                ("<user>a</><assistant>", false),
                ("b</>", true),
                ("<user>c</><assistant>", false),
                ("d</>", true),
            ]
        );
        let shuffling = TokenizerSettings {
            chat_template: Some("{{ messages | length }}".to_owned()),
            ..TokenizerSettings::default()
        };
        let template = ChatTemplate::new(&shuffling).unwrap().unwrap();
        assert!(template_parts(&template, &Tokenizer::Bytes, &messages).is_err());
    }

    #[test]
    fn every_form_of_a_message_is_read() {
        let found = read(concat!(
            r#"{"messages": [{"role": "developer", "content": [{"type": "text", "text": "a"}, "b"]}, {"role": "assistant", "content": null, "tool_calls": []}, {"role": "tool", "content": "4", "name": "f"}, {"role": "assistant", "content": ""}]}"#,
            "\n",
            r#"{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}"#,
        ));
        let found = found.unwrap();
        let first = &found.0[0].messages;
        assert_eq!(
            (first[0].role.as_str(), first[0].content.as_deref()),
            ("developer", Some("ab"))
        );
        assert_eq!(first[1].content, None);
        assert_eq!(first[2].more["name"], "f");
        assert_eq!(
            found.0[1].messages,
            [Message::user("hi"), Message::assistant("ho")]
        );
        assert_eq!(found.0[1].line, 2);
        assert_eq!(answers(&found), "\n\nho\n");
    }

    #[test]
    fn an_error_of_the_template_names_file_and_line() {
        let found = read(concat!(
            r#"{"prompt": "fine", "completion": "x"}"#,
            "\n\n",
            r#"{"prompt": "bad", "completion": "x"}"#,
        ));
        let source = "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('need system') }}{% endif %}{{ m.content }}{% endfor %}";
        let template = ChatTemplate::new(&TokenizerSettings {
            chat_template: Some(source.to_owned()),
            ..TokenizerSettings::default()
        });
        let template = template.unwrap();
        let found = found.unwrap();
        let parts = |row: &Conversation| {
            let parts = row.parts(template.as_ref(), &Tokenizer::Bytes);
            parts.map_err(|error| row.error(&error).to_string())
        };
        assert!(parts(&found.0[0]).is_ok());
        let error = parts(&found.0[1]).unwrap_err();
        assert!(
            error.contains("x.jsonl line 3") && error.contains("need system"),
            "{error}"
        );
    }

    #[test]
    fn bad_lines_are_named() {
        for (lines, part) in [
            ("{\"prompt\": \"a\"}", "no text under completion"),
            (
                "{\"x\": 1}",
                "no text under prompt, instruction, question among: x",
            ),
            ("[1]", "line 1"),
            ("{\"messages\": 3}", "not a list"),
            (
                "{\"messages\": [{\"role\": 3, \"content\": \"\"}]}",
                "no text under 'role'",
            ),
            (
                "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]}",
                "type image",
            ),
            (
                "{\"messages\": [{\"role\": \"user\", \"content\": {}}]}",
                "neither a text",
            ),
            (
                "{\"messages\": [{\"role\": \"assistant\", \"content\": null}]}",
                "assistant has no text",
            ),
            ("{\"conversations\": [\"x\"]}", "no object"),
            (
                "{\"messages\": [{\"role\": \"user\", \"content\": \"\"}]}",
                "assistant",
            ),
            ("{\"messages\": [{\"role\": \"user\"}]}", "content"),
            ("\n\n", "holds no text"),
        ] {
            let error = read(lines).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
