//! A model of another tool, opened: its configuration, its tokenizer, and its parameters under
//! our names, one at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::bytes::{foreign, printable};
use super::config;
use super::gguf::GgufFile;
use super::names::{Convention, Piece, parameters, pieces};
use super::safetensors::SafetensorsFile;
use super::vocabulary;
use crate::ModelError;
use crate::config::{Config, ModelConfig};
use crate::shape::ModelShape;
use crate::tokenizer::Tokenizer;

/// Tensors that carry nothing of their own: masks and angles that follow from the configuration.
const IGNORED_ENDS: [&str; 4] = [
    ".attn.bias",
    ".attn.masked_bias",
    "rotary_emb.inv_freq",
    "attn_rot_embd",
];
/// The head of a model whose head is the embedding.
const HEADS: [&str; 2] = ["lm_head.weight", "output.weight"];

/// A Hugging Face folder or a GGUF file.
#[derive(Debug)]
pub struct ForeignModel {
    path: PathBuf,
    files: Files,
    convention: Convention,
    config: ModelConfig,
    shape: ModelShape,
}

#[derive(Debug)]
enum Files {
    Safetensors {
        files: Vec<SafetensorsFile>,
        /// Which file holds a tensor.
        places: BTreeMap<String, usize>,
        /// What stands before every name but the head's.
        prefix: &'static str,
    },
    Gguf(GgufFile),
}

impl ForeignModel {
    /// Opens a folder with `config.json` and safetensors, or a GGUF file, and checks that every
    /// parameter is there with its shape and that nothing is left over. `context` shortens the
    /// context of a model with rotary positions.
    ///
    /// # Errors
    /// [`ModelError::Foreign`] names the file, the key or the tensor.
    pub fn open(path: &Path, context: Option<usize>) -> Result<ForeignModel, ModelError> {
        let (files, (mut config, convention)) = if path.is_dir() {
            open_folder(path)?
        } else {
            let file = GgufFile::open(path)?;
            let config = config::from_gguf(&file)?;
            (Files::Gguf(file), config)
        };
        if let Some(context) = context {
            if config.position == crate::config::PositionKind::Learned && context != config.context
            {
                let reason = format!("has {} learned positions", config.context);
                return Err(foreign(&path.display().to_string(), "context", reason));
            }
            config.context = context.min(config.context);
        }
        let whole = Config {
            model: config.clone(),
            ..Config::default()
        };
        whole.validate()?;
        let model = ForeignModel {
            path: path.to_path_buf(),
            files,
            convention,
            shape: ModelShape::new(&whole, 0)?,
            config,
        };
        model.check()?;
        Ok(model)
    }

    /// The architecture as our configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The sizes.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// The tokenizer with the template of its chat.
    ///
    /// # Errors
    /// [`ModelError::BadTokenizer`], [`ModelError::Foreign`].
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        match &self.files {
            Files::Safetensors { .. } => Tokenizer::load(&self.path),
            Files::Gguf(file) => vocabulary::tokenizer(file),
        }
    }

    /// A parameter of ours, row-major; `cols` is `None` for a vector.
    ///
    /// # Errors
    /// [`ModelError::Foreign`] for values that are not finite or a file that changed.
    pub fn parameter(
        &mut self,
        name: &str,
        rows: usize,
        cols: Option<usize>,
    ) -> Result<Vec<f32>, ModelError> {
        let mut all = Vec::new();
        for piece in pieces(self.convention, &self.shape, name) {
            let values = self
                .files
                .tensor(&piece.name, &stored_shape(&piece, cols))?;
            let values = piece.layout.to_ours(values, piece.rows, cols.unwrap_or(1));
            if all.is_empty() {
                all = values;
            } else {
                all.extend(values);
            }
        }
        if all.len() != rows * cols.unwrap_or(1) {
            let reason = format!("holds {} values, expected {rows} rows", all.len());
            return Err(foreign(&self.path.display().to_string(), name, reason));
        }
        Ok(all)
    }

    /// Every parameter must be there with its shape, and every tensor must be one.
    fn check(&self) -> Result<(), ModelError> {
        let origin = self.path.display().to_string();
        let mut expected = BTreeSet::new();
        for parameter in parameters(&self.shape) {
            for piece in pieces(self.convention, &self.shape, &parameter.name) {
                let shape = stored_shape(&piece, parameter.cols);
                let name = self.files.full_name(&piece.name);
                match self.files.shape(&name) {
                    None => return Err(foreign(&origin, &name, "there is no such tensor")),
                    Some(found) if found != shape => {
                        let reason = format!("has shape {found:?}, expected {shape:?}");
                        return Err(foreign(&origin, &name, reason));
                    }
                    Some(_) => {}
                }
                expected.insert(name);
            }
        }
        for name in self.files.names() {
            let ignored = IGNORED_ENDS.iter().any(|end| name.ends_with(end))
                || (self.shape.tie_head && HEADS.contains(&name));
            if !ignored && !expected.contains(name) {
                let reason = if name.starts_with("rope_freqs") {
                    "positions scaled by a tensor are not in this build; hint: import the Hugging \
                     Face folder of the model"
                } else {
                    "is no parameter of a model that this build knows"
                };
                return Err(foreign(&origin, name, reason));
            }
        }
        Ok(())
    }
}

fn stored_shape(piece: &Piece, cols: Option<usize>) -> Vec<usize> {
    match cols {
        Some(cols) => piece.layout.stored_shape(piece.rows, cols).to_vec(),
        None => vec![piece.rows],
    }
}

impl Files {
    fn full_name(&self, name: &str) -> String {
        match self {
            Files::Safetensors { prefix, .. } if !HEADS.contains(&name) => {
                format!("{prefix}{name}")
            }
            _ => name.to_owned(),
        }
    }

    /// Shape of a tensor by its full name.
    fn shape(&self, name: &str) -> Option<&[usize]> {
        match self {
            Files::Safetensors { files, places, .. } => files[*places.get(name)?].shape(name),
            Files::Gguf(file) => Some(&file.tensors().get(name)?.shape),
        }
    }

    fn names(&self) -> Vec<&str> {
        match self {
            Files::Safetensors { places, .. } => places.keys().map(String::as_str).collect(),
            Files::Gguf(file) => file.tensors().keys().map(String::as_str).collect(),
        }
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let name = self.full_name(name);
        match self {
            Files::Safetensors { files, places, .. } => match places.get(&name) {
                Some(place) => files[*place].tensor(&name, shape),
                None => Err(foreign("(folder)", &name, "there is no such tensor")),
            },
            Files::Gguf(file) => file.tensor(&name, shape),
        }
    }
}

type Described = (ModelConfig, Convention);

fn open_folder(folder: &Path) -> Result<(Files, Described), ModelError> {
    const SINGLE: &str = "model.safetensors";
    const INDEX: &str = "model.safetensors.index.json";
    let path = folder.join("config.json");
    let described = config::from_json(&read_object(&path)?, &path.display().to_string())?;
    let names: BTreeSet<String> = if folder.join(SINGLE).exists() {
        BTreeSet::from([SINGLE.to_owned()])
    } else if folder.join(INDEX).exists() {
        shards(&folder.join(INDEX))?
    } else {
        let reason = format!("holds neither {SINGLE} nor {INDEX}");
        return Err(foreign(&folder.display().to_string(), "folder", reason));
    };
    let (mut files, mut places) = (Vec::new(), BTreeMap::new());
    for name in names {
        let path = folder.join(&name);
        let file = SafetensorsFile::open(&path)?;
        for (tensor, _) in file.tensors() {
            if places.insert(tensor.to_owned(), files.len()).is_some() {
                let reason = "is in two files";
                return Err(foreign(&path.display().to_string(), tensor, reason));
            }
        }
        files.push(file);
    }
    let prefix = ["transformer.wte.weight", "wte.weight"]
        .iter()
        .find(|name| places.contains_key(**name));
    let prefix = match prefix {
        Some(name) if name.starts_with("transformer.") => "transformer.",
        _ => "",
    };
    let files = Files::Safetensors {
        files,
        places,
        prefix,
    };
    Ok((files, described))
}

/// The files that an index names; all of them lie in its folder.
fn shards(index: &Path) -> Result<BTreeSet<String>, ModelError> {
    let origin = index.display().to_string();
    let values = read_object(index)?;
    let Some(map) = values.get("weight_map").and_then(Json::as_object) else {
        return Err(foreign(&origin, "weight_map", "is missing or no object"));
    };
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        let file = file.as_str().unwrap_or_default();
        let plain = file.ends_with(".safetensors") && !file.contains(['/', '\\']);
        if !plain {
            let reason = format!("lies in '{}', not a file beside the index", printable(file));
            return Err(foreign(&origin, tensor, reason));
        }
        names.insert(file.to_owned());
    }
    if names.is_empty() {
        return Err(foreign(&origin, "weight_map", "is empty"));
    }
    Ok(names)
}

fn read_object(path: &Path) -> Result<Map<String, Json>, ModelError> {
    let text = fs::read(path).map_err(ModelError::io("read", path))?;
    let origin = path.display().to_string();
    serde_json::from_slice(&text).map_err(|error| foreign(&origin, "JSON", error))
}
