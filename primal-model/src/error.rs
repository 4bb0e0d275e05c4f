//! What can go wrong in this crate.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Errors of this crate; messages name paths, keys and values.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The operating system refused an operation on a file.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: "read", "write", "create".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason the operating system gave.
        source: std::io::Error,
    },

    /// A configuration that is not TOML, or a value of the wrong type.
    #[error("config: {0}")]
    ConfigSyntax(String),
    /// A key that does not exist.
    #[error("config: unknown key '{key}'{}", nearest_hint(nearest))]
    UnknownKey {
        /// The key as `section.key`.
        key: String,
        /// The existing key that looks most like it.
        nearest: Option<String>,
    },
    /// A preset that does not exist.
    #[error("unknown preset '{name}': known are {}{}", known.join(", "), nearest_hint(nearest))]
    UnknownPreset {
        /// The name asked for.
        name: String,
        /// Every preset.
        known: Vec<&'static str>,
        /// The preset whose name looks most like it.
        nearest: Option<String>,
    },
    /// A `section.key=value` override that cannot be applied.
    #[error("--set {assignment}: {reason}")]
    BadAssignment {
        /// The override as given.
        assignment: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A value outside its range, or values that contradict each other.
    #[error("config: {key} = {value}: {reason}")]
    OutOfRange {
        /// The key as `section.key`.
        key: &'static str,
        /// The refused value.
        value: String,
        /// What would be right.
        reason: String,
    },
    /// A tokenizer that is not one of the known names and not a readable file.
    #[error(
        "tokenizer '{spec}': {reason}; hint: use bytes, chars, gpt2 or the path of a tokenizer.json"
    )]
    BadTokenizer {
        /// The name or path.
        spec: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// Text with a character that a character-level tokenizer has never seen.
    #[error(
        "character {character:?} at byte {offset} is not among the tokenizer's {known} characters"
    )]
    UnknownCharacter {
        /// The character.
        character: char,
        /// Where it stands in the text, in bytes.
        offset: usize,
        /// Size of the vocabulary.
        known: usize,
    },
    /// A token id beyond the tokenizer's vocabulary.
    #[error("token {token} is not among the tokenizer's {vocab_size} tokens")]
    UnknownToken {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// The tokenizer's library refused a text or a sequence of ids.
    #[error("tokenizer: {0}")]
    Tokenizer(String),

    /// An error of the optimizer crate.
    #[error(transparent)]
    Optim(#[from] primal_optim::OptimError),
}

impl ModelError {
    /// For `map_err` on file operations: remembers what was tried on which path.
    pub(crate) fn io(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> ModelError {
        let path = path.to_path_buf();
        move |source| ModelError::Io {
            action,
            path,
            source,
        }
    }
}

fn nearest_hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |name| {
        format!("; hint: did you mean '{name}'?")
    })
}
