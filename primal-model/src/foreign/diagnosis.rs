//! What a folder is that holds no model this build reads: named, with the way out.

use std::path::Path;

use super::bytes::foreign;
use crate::ModelError;

/// Ends of tensors that only packed weights have, by whom, and how they call it.
const PACKED: [(&str, &str); 9] = [
    (".qweight", "packed by GPTQ or AWQ"),
    (".qzeros", "packed by GPTQ or AWQ"),
    (".g_idx", "packed by GPTQ"),
    (".SCB", "packed in 8 bits by bitsandbytes"),
    (
        ".weight_scale_inv",
        "stored in 8-bit floating point with scales of blocks",
    ),
    (
        ".weight_scale",
        "packed with scales beside them, as compressed-tensors does",
    ),
    (".weight_packed", "packed as compressed-tensors does"),
    (".absmax", "packed in 4 bits by bitsandbytes"),
    (".scales", "packed by MLX"),
];

/// What tensors of these names are, where they are packed or lie in a model of another kind.
pub(super) fn of_tensors(names: &[&str]) -> Option<String> {
    let packed = PACKED.iter().find(|(end, _)| {
        let has_end = |name: &&str| name.ends_with(end) || name.contains(".quant_state.");
        match *end {
            ".absmax" => names.iter().any(has_end),
            end => names.iter().any(|name| name.ends_with(end)),
        }
    });
    if let Some((_, how)) = packed {
        return Some(format!(
            "the weights of this folder are {how}, which this build does not unpack; hint: import \
             the model that it was made of, or its GGUF file"
        ));
    }
    let any = |start: &str| names.iter().any(|name| name.starts_with(start));
    if any("base_model.model.") {
        return Some(
            "these are the tensors of a LoRA adapter, not of a model; hint: merge it into its base \
             model first (merge_and_unload of PEFT)"
                .to_owned(),
        );
    }
    if any("language_model.") || any("model.language_model.") {
        return Some(
            "the tensors lie below language_model: a model for more than text, of which this build \
             does not take the text part alone"
                .to_owned(),
        );
    }
    if any("layers.") && !any("model.layers.") {
        return Some(
            "there is no such tensor: the names lack 'model.', as in a model saved without its \
             head; hint: save it as a model for causal language modelling"
                .to_owned(),
        );
    }
    None
}

/// Refuses a folder that holds something else than a model.
pub(super) fn of_folder(folder: &Path) -> Result<(), ModelError> {
    let holds = |name: &str| folder.join(name).exists();
    let origin = folder.display().to_string();
    if holds("adapter_config.json") && !holds("config.json") {
        let reason = "is a LoRA adapter, not a model; hint: merge it into its base model first \
                      (merge_and_unload of PEFT)";
        return Err(foreign(&origin, "folder", reason));
    }
    if !holds("config.json") {
        let files = gguf_files(folder);
        let reason = match files.as_slice() {
            [] => "holds no config.json: no Hugging Face folder".to_owned(),
            [file, ..] => format!("holds no config.json; hint: --from {}", file),
        };
        return Err(foreign(&origin, "folder", reason));
    }
    Ok(())
}

fn gguf_files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|it| it == "gguf"));
    paths.sort();
    let shown = paths.iter().map(|path| path.display().to_string());
    shown.collect()
}

/// Refuses a folder without a `tokenizer.json`, by what it holds instead.
pub(super) fn of_tokenizer(folder: &Path) -> Result<(), ModelError> {
    let holds = |name: &str| folder.join(name).exists();
    if holds("tokenizer.json") || holds("primal_tokenizer.json") {
        return Ok(());
    }
    let found = [
        "tokenizer.model",
        "tekken.json",
        "vocab.json",
        "spiece.model",
    ]
    .into_iter()
    .find(|name| holds(name));
    let reason = match found {
        Some(found) => format!(
            "there is only {found}; hint: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) \
             of transformers writes a tokenizer.json, and a GGUF file holds its own"
        ),
        None => "there is no such file; hint: fetch it from where the model came from".to_owned(),
    };
    Err(foreign(
        &folder.display().to_string(),
        "tokenizer.json",
        reason,
    ))
}
