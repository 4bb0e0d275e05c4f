//! A model of another tool, opened: its configuration, its tokenizer, and its parameters under
//! our names, one at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::bytes::{foreign, printable};
use super::diagnosis;
use super::families::{self, Described, Fold, LONG_FACTORS};
use super::gguf::GgufFile;
use super::names::{Convention, Piece, parameters, pieces};
use super::safetensors::SafetensorsFile;
use super::vocabulary;
use crate::ModelError;
use crate::config::{Config, ModelConfig, PositionKind};
use crate::rope;
use crate::shape::ModelShape;
use crate::tokenizer::Tokenizer;

/// Tensors that carry nothing of their own: masks and angles that follow from the configuration.
const IGNORED_ENDS: [&str; 4] = [
    ".attn.bias",
    ".attn.masked_bias",
    "rotary_emb.inv_freq",
    "attn_rot_embd",
];
/// The head of a model, where it is not the embedding.
const HEADS: [&str; 2] = ["lm_head.weight", "output.weight"];
/// By what the frequency of each pair is divided, in GGUF; the second list serves contexts up to
/// the one that the model was first trained with.
const ROPE_FACTORS: [&str; 2] = ["rope_freqs.weight", "rope_factors_short.weight"];

/// A Hugging Face folder or a GGUF file.
#[derive(Debug)]
pub struct ForeignModel {
    path: PathBuf,
    files: Files,
    convention: Convention,
    config: ModelConfig,
    shape: ModelShape,
    fold: Fold,
    notes: Vec<String>,
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
        let (mut files, described) = if path.is_dir() {
            open_folder(path)?
        } else {
            let file = GgufFile::open(path)?;
            let described = families::from_gguf(&file)?;
            (Files::Gguf(file), described)
        };
        let Described {
            model: mut config,
            convention,
            fold,
            tied,
            mut notes,
        } = described;
        let origin = path.display().to_string();
        config.tie_head = files.is_tied(tied, &origin, &mut notes)?;
        if let Files::Gguf(file) = &mut files {
            read_factors(file, &mut config)?;
        }
        if let Some(context) = context {
            if config.position == PositionKind::Learned && context != config.context {
                let reason = format!("has {} learned positions", config.context);
                return Err(foreign(&origin, "context", reason));
            }
            config.context = context.min(config.context);
        }
        let mut whole = Config {
            model: config.clone(),
            ..Config::default()
        };
        whole.hold_one_window();
        whole.validate()?;
        let model = ForeignModel {
            path: path.to_path_buf(),
            files,
            convention,
            shape: ModelShape::new(&whole, 0)?,
            config,
            fold,
            notes,
        };
        model.check()?;
        Ok(model)
    }

    /// What the user should know: parts of the file that are read otherwise than they say.
    pub fn notes(&self) -> &[String] {
        &self.notes
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
            Files::Safetensors { .. } => {
                diagnosis::of_tokenizer(&self.path)?;
                Tokenizer::load(&self.path)
            }
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
        if let Some((factor, rows)) = self.fold.factor(name, &self.config) {
            let len = rows.map_or(all.len(), |rows| rows * cols.unwrap_or(1));
            all[..len].iter_mut().for_each(|value| *value *= factor);
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
                let wrong = match self.files.shape(&name) {
                    None => Some("there is no such tensor".to_owned()),
                    Some(found) if found != shape => {
                        Some(format!("has shape {found:?}, expected {shape:?}"))
                    }
                    Some(_) => None,
                };
                if let Some(reason) = wrong {
                    let cause = diagnosis::of_tensors(&self.files.names());
                    return Err(foreign(&origin, &name, cause.unwrap_or(reason)));
                }
                expected.insert(name);
            }
        }
        for name in self.files.names() {
            let ignored = IGNORED_ENDS.iter().any(|end| name.ends_with(end))
                || (self.shape.tie_head && HEADS.contains(&name))
                || (self.shape.position == PositionKind::Rope
                    && (ROPE_FACTORS.contains(&name) || name == LONG_FACTORS));
            if !ignored && !expected.contains(name) {
                let cause = diagnosis::of_tensors(&self.files.names());
                let reason = "is no parameter of a model that this build knows".to_owned();
                return Err(foreign(&origin, name, cause.unwrap_or(reason)));
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

    /// Whether the head is the embedding, for a file that says `tied`: where the files hold a
    /// head that differs from the embedding, that one counts, as in `transformers`.
    fn is_tied(
        &mut self,
        tied: Option<bool>,
        origin: &str,
        notes: &mut Vec<String>,
    ) -> Result<bool, ModelError> {
        let head = HEADS.iter().find(|name| self.shape(name).is_some());
        let Some(head) = head else {
            if tied == Some(false) {
                let reason = "is missing, and config.json says that the head is not the \
                              embedding: a model saved without its head cannot write";
                return Err(foreign(origin, "lm_head.weight", reason));
            }
            return Ok(true);
        };
        let Files::Safetensors {
            files,
            places,
            prefix,
        } = self
        else {
            return Ok(false);
        };
        if tied == Some(false) {
            return Ok(false);
        }
        let embedding = ["model.embed_tokens.weight", &format!("{prefix}wte.weight")]
            .into_iter()
            .find(|name| places.contains_key(*name))
            .map(str::to_owned);
        let Some(embedding) = embedding else {
            return Ok(false);
        };
        let (at_head, at_embedding) = (places[*head], places[&embedding]);
        let digests = [(at_head, *head), (at_embedding, &embedding)]
            .map(|(file, name)| files[file].digest(name));
        let [head_digest, embedding_digest] = digests;
        let same = head_digest? == embedding_digest?;
        if !same && tied == Some(true) {
            notes.push(
                "config.json says that the head is the embedding, and the files hold another \
                 head: that one is used"
                    .to_owned(),
            );
        }
        Ok(same)
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

/// Reads what the frequency of each pair is divided by, if the file holds it.
fn read_factors(file: &mut GgufFile, config: &mut ModelConfig) -> Result<(), ModelError> {
    if config.position != PositionKind::Rope {
        return Ok(());
    }
    for name in ROPE_FACTORS {
        if file.tensors().contains_key(name) {
            let factors = file.tensor(name, &[config.resolved_rope_dim() / 2])?;
            if let Some(bad) = factors.iter().find(|factor| **factor <= 0.0) {
                return Err(file.error(name, format!("holds {bad}, expected factors above 0")));
            }
            if factors.iter().any(|factor| *factor != 1.0) {
                rope::take_factors(config, factors);
            }
        }
    }
    Ok(())
}

fn open_folder(folder: &Path) -> Result<(Files, Described), ModelError> {
    const SINGLE: &str = "model.safetensors";
    const INDEX: &str = "model.safetensors.index.json";
    diagnosis::of_folder(folder)?;
    let path = folder.join("config.json");
    let values = read_object(&path)?;
    let described = families::from_json(&values, &path.display().to_string())?;
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
