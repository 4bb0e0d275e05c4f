//! Instruction files: conversations whose answers, and nothing else, carry loss.
//!
//! One JSON object a line: `{"messages": [{"role": .., "content": ..}, ..]}`, or a question under
//! `prompt`, `instruction` or `question` (with more text under `input`) and its answer under
//! `completion`, `response`, `output` or `answer`. A model with a chat template sees the
//! conversation in its words; for others question and answer stand on lines of their own.

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::ModelError;
use crate::chat::{ChatTemplate, Message};
use crate::data::{TokenStream, read_text};
use crate::tokenizer::Tokenizer;

const QUESTIONS: [&str; 3] = ["prompt", "instruction", "question"];
const ANSWERS: [&str; 4] = ["completion", "response", "output", "answer"];

/// The conversations of some files.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conversations(Vec<Vec<Message>>);

impl Conversations {
    /// Reads files in the order given.
    pub(crate) fn read(paths: &[PathBuf]) -> Result<Conversations, ModelError> {
        let mut all = Vec::new();
        for path in paths {
            let before = all.len();
            for (index, line) in read_text(path)?.lines().enumerate() {
                if !line.trim().is_empty() {
                    all.push(
                        conversation(line).map_err(|reason| ModelError::BadJsonLine {
                            path: path.clone(),
                            line: index + 1,
                            reason,
                        })?,
                    );
                }
            }
            if all.len() == before {
                return Err(ModelError::EmptyData { path: path.clone() });
            }
        }
        Ok(Conversations(all))
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
        for messages in &self.0 {
            let parts = match &template {
                Some(template) => template_parts(template, messages)?,
                None => plain_parts(messages),
            };
            for (text, answer) in parts {
                let tokens = tokenizer.encode(&text)?;
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

/// The words of the template, cut where answers begin and end.
fn template_parts(
    template: &ChatTemplate,
    messages: &[Message],
) -> Result<Vec<(String, bool)>, ModelError> {
    let mut parts = Vec::new();
    let mut done = String::new();
    let answers = messages
        .iter()
        .enumerate()
        .filter(|(_, it)| it.role == "assistant");
    for (at, _) in answers {
        let question = template.render(&messages[..at], true)?;
        let answer = template.render(&messages[..=at], false)?;
        let parted = question
            .strip_prefix(&done)
            .zip(answer.strip_prefix(&question));
        let Some((question, answer)) = parted else {
            let reason = "the chat template changes what was said before when a message is added";
            return Err(ModelError::Instructions(reason.to_owned()));
        };
        parts.push((question.to_owned(), false));
        parts.push((answer.to_owned(), true));
        done = template.render(&messages[..=at], false)?;
    }
    Ok(parts)
}

fn plain_parts(messages: &[Message]) -> Vec<(String, bool)> {
    let part = |message: &Message| {
        let is_answer = message.role == "assistant";
        (format!("{}\n", message.content), is_answer)
    };
    messages.iter().map(part).collect()
}

fn conversation(line: &str) -> Result<Vec<Message>, String> {
    let object: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| error.to_string())?;
    if let Some(messages) = object.get("messages") {
        let messages = messages.as_array().ok_or("'messages' is not a list")?;
        let messages: Vec<_> = messages.iter().map(message).collect::<Result<_, _>>()?;
        if !messages.iter().any(|message| message.role == "assistant") {
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
    let content = value["content"]
        .as_str()
        .ok_or("a message has no text under 'content'")?;
    match value["role"].as_str() {
        Some("system") => Ok(Message::system(content)),
        Some("user") => Ok(Message::user(content)),
        Some("assistant") => Ok(Message::assistant(content)),
        other => Err(format!(
            "a message has the role {other:?}, not system, user or assistant"
        )),
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
        let parts = template_parts(&template, &messages).unwrap();
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
        assert!(template_parts(&template, &messages).is_err());
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
                "{\"messages\": [{\"role\": \"tool\", \"content\": \"\"}]}",
                "tool",
            ),
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
