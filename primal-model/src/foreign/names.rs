//! Where our parameters lie in the files of others: names, order of rows, transposition.
//!
//! Ours are `tok_embedding`, `pos_embedding`, `blocks.L.{norm1,qkv,attention_out,norm2,up,down}`,
//! `norm` and `head`, with `.weight` and `.bias` after norms and `.bias` after linear layers.

use crate::config::{FeedForward, ModelConfig, NormKind, PositionKind};
use crate::shape::ModelShape;

/// The three ways in which others lay out a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convention {
    /// Llama, Mistral and Qwen2 in the `transformers` library.
    HfLlama,
    /// GPT-2 in the `transformers` library: linear layers are stored (in, out).
    HfGpt2,
    /// llama.cpp's GGUF.
    Gguf {
        /// Whether queries and keys are turned in neighbouring pairs, so that their rows are in
        /// another order than ours; true for the architecture `llama`.
        interleaved: bool,
    },
}

/// One tensor of another tool that holds rows of one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its name.
    pub name: String,
    /// How many of our rows it holds.
    pub rows: usize,
    /// How they lie in it.
    pub layout: Layout,
}

/// How a tensor holds rows of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As they are.
    Rows,
    /// Transposed.
    Columns,
    /// Heads whose halves are interleaved: rows 2i and 2i + 1 of a head are our i and i + D/2.
    Interleaved {
        /// Number of heads.
        heads: usize,
    },
}

impl Layout {
    /// Our rows (`rows`, `cols`), from what the file holds.
    pub(crate) fn to_ours(self, values: Vec<f32>, rows: usize, cols: usize) -> Vec<f32> {
        match self {
            Layout::Rows => values,
            Layout::Columns => transpose(&values, cols, rows),
            Layout::Interleaved { heads } => {
                move_rows(&values, rows, cols, heads, |ours, theirs| (theirs, ours))
            }
        }
    }

    /// What the file holds, from our rows.
    pub(crate) fn to_theirs(self, values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        match self {
            Layout::Rows => values.to_vec(),
            Layout::Columns => transpose(values, rows, cols),
            Layout::Interleaved { heads } => {
                move_rows(values, rows, cols, heads, |ours, theirs| (ours, theirs))
            }
        }
    }

    /// The shape in the file of a matrix of ours.
    pub(crate) fn stored_shape(self, rows: usize, cols: usize) -> [usize; 2] {
        match self {
            Layout::Columns => [cols, rows],
            _ => [rows, cols],
        }
    }
}

/// (rows, cols) row-major to (cols, rows).
fn transpose(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for (col, out) in out.chunks_exact_mut(rows.max(1)).enumerate() {
        for (row, out) in out.iter_mut().enumerate() {
            *out = values[row * cols + col];
        }
    }
    out
}

/// Copies rows between our order and theirs; `direction(ours, theirs)` is (from, to).
fn move_rows(
    values: &[f32],
    rows: usize,
    cols: usize,
    heads: usize,
    direction: impl Fn(usize, usize) -> (usize, usize),
) -> Vec<f32> {
    let dim = rows / heads.max(1);
    let mut out = vec![0.0; values.len()];
    for head in 0..heads {
        for i in 0..dim {
            let ours = head * dim + i;
            let theirs = head * dim + 2 * (i % (dim / 2)) + i / (dim / 2);
            let (from, to) = direction(ours, theirs);
            out[to * cols..][..cols].copy_from_slice(&values[from * cols..][..cols]);
        }
    }
    out
}

/// A parameter of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Rows, or elements of a vector.
    pub rows: usize,
    /// Columns; `None` for a vector.
    pub cols: Option<usize>,
}

/// Every parameter of a model, in the order of its files.
pub fn parameters(shape: &ModelShape) -> Vec<Parameter> {
    let (c, mut all) = (shape.width, Vec::new());
    let mut matrix = |name: String, rows, cols| all.push(Parameter { name, rows, cols });
    let norm = |name: &str, add: &mut dyn FnMut(String, usize, Option<usize>)| {
        add(format!("{name}.weight"), c, None);
        if shape.norm_bias() {
            add(format!("{name}.bias"), c, None);
        }
    };
    matrix("tok_embedding".into(), shape.vocab, Some(c));
    if shape.learned_positions() {
        matrix("pos_embedding".into(), shape.context, Some(c));
    }
    for layer in 0..shape.n_layer {
        let [qkv, attention_out, up, down] = shape.block_matrices();
        let biases = shape.biases;
        for (part, (rows, cols), bias) in [
            ("qkv", qkv, shape.qkv_bias),
            ("attention_out", attention_out, biases),
            ("up", up, biases),
            ("down", down, biases),
        ] {
            matrix(format!("blocks.{layer}.{part}"), rows, Some(cols));
            if bias {
                matrix(format!("blocks.{layer}.{part}.bias"), rows, None);
            }
        }
        norm(&format!("blocks.{layer}.norm1"), &mut matrix);
        norm(&format!("blocks.{layer}.norm2"), &mut matrix);
    }
    norm("norm", &mut matrix);
    if !shape.tie_head {
        matrix("head".into(), shape.vocab, Some(c));
    }
    all
}

/// The tensors that hold our parameter `name`, their rows in our order, end to end.
pub fn pieces(convention: Convention, shape: &ModelShape, name: &str) -> Vec<Piece> {
    let piece = |name: String, rows, layout| Piece { name, rows, layout };
    let whole = |name: &str, rows| vec![piece(name.to_owned(), rows, Layout::Rows)];
    let gguf = matches!(convention, Convention::Gguf { .. });
    let gpt2 = convention == Convention::HfGpt2;
    let pick =
        |llama: &'static str, gpt2_name: &'static str, gguf_name: &'static str| match convention {
            Convention::HfLlama => llama,
            Convention::HfGpt2 => gpt2_name,
            Convention::Gguf { .. } => gguf_name,
        };
    let c = shape.width;
    match name {
        "tok_embedding" => {
            return whole(
                pick(
                    "model.embed_tokens.weight",
                    "wte.weight",
                    "token_embd.weight",
                ),
                shape.vocab,
            );
        }
        "pos_embedding" => {
            return whole(
                pick("", "wpe.weight", "position_embd.weight"),
                shape.context,
            );
        }
        "norm.weight" => {
            return whole(
                pick("model.norm.weight", "ln_f.weight", "output_norm.weight"),
                c,
            );
        }
        "norm.bias" => return whole(pick("", "ln_f.bias", "output_norm.bias"), c),
        "head" => {
            return whole(
                pick("lm_head.weight", "lm_head.weight", "output.weight"),
                shape.vocab,
            );
        }
        _ => {}
    }
    let Some((layer, part)) = name
        .strip_prefix("blocks.")
        .and_then(|rest| rest.split_once('.'))
    else {
        return Vec::new();
    };
    let (part, kind) = match part.split_once('.') {
        Some((part, kind)) => (part, kind),
        None => (part, "weight"),
    };
    let prefix = match convention {
        Convention::HfLlama => format!("model.layers.{layer}"),
        Convention::HfGpt2 => format!("h.{layer}"),
        Convention::Gguf { .. } => format!("blk.{layer}"),
    };
    let named = |local: &str| format!("{prefix}.{local}.{kind}");
    let linear = if gpt2 && kind == "weight" {
        Layout::Columns
    } else {
        Layout::Rows
    };
    let one = |local: &str, rows| vec![piece(named(local), rows, linear)];
    let (q, kv, f) = (shape.attention_width(), shape.kv_width(), shape.ff_width);
    match part {
        "norm1" => vec![piece(
            named(pick("input_layernorm", "ln_1", "attn_norm")),
            c,
            Layout::Rows,
        )],
        "norm2" => vec![piece(
            named(pick("post_attention_layernorm", "ln_2", "ffn_norm")),
            c,
            Layout::Rows,
        )],
        "qkv" if gpt2 => one("attn.c_attn", q + 2 * kv),
        "qkv" if gguf && !rope(shape) => one("attn_qkv", q + 2 * kv),
        "qkv" => {
            let turned = |heads| match convention {
                Convention::Gguf { interleaved: true } => Layout::Interleaved { heads },
                _ => Layout::Rows,
            };
            vec![
                piece(
                    named(pick("self_attn.q_proj", "", "attn_q")),
                    q,
                    turned(shape.n_head),
                ),
                piece(
                    named(pick("self_attn.k_proj", "", "attn_k")),
                    kv,
                    turned(shape.n_kv_head),
                ),
                piece(
                    named(pick("self_attn.v_proj", "", "attn_v")),
                    kv,
                    Layout::Rows,
                ),
            ]
        }
        "attention_out" => one(pick("self_attn.o_proj", "attn.c_proj", "attn_output"), c),
        "up" if shape.feed_forward == FeedForward::Swiglu => vec![
            piece(
                named(pick("mlp.gate_proj", "", "ffn_gate")),
                f,
                Layout::Rows,
            ),
            piece(named(pick("mlp.up_proj", "", "ffn_up")), f, Layout::Rows),
        ],
        "up" => one(pick("mlp.up_proj", "mlp.c_fc", "ffn_up"), f),
        "down" => one(pick("mlp.down_proj", "mlp.c_proj", "ffn_down"), c),
        _ => Vec::new(),
    }
}

fn rope(shape: &ModelShape) -> bool {
    shape.position == PositionKind::Rope
}

/// Whether a configuration is one that a family of `transformers` can hold: Llama's or GPT-2's.
pub(crate) fn hf_convention(model: &ModelConfig) -> Option<Convention> {
    let llama = model.norm == NormKind::Rms
        && model.position == PositionKind::Rope
        && model.feed_forward == FeedForward::Swiglu
        && !model.biases;
    let gpt2 = model.norm == NormKind::Layer
        && model.position == PositionKind::Learned
        && model.feed_forward == FeedForward::Gelu;
    match (llama, gpt2) {
        (true, _) => Some(Convention::HfLlama),
        (_, true) => Some(Convention::HfGpt2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_can_be_turned_back() {
        let values: Vec<f32> = (0..8 * 3).map(|i| i as f32).collect();
        for layout in [
            Layout::Rows,
            Layout::Columns,
            Layout::Interleaved { heads: 2 },
        ] {
            let theirs = layout.to_theirs(&values, 8, 3);
            assert_eq!(layout.to_ours(theirs.clone(), 8, 3), values, "{layout:?}");
            assert_eq!(theirs == values, layout == Layout::Rows);
        }
        // One head of four: the halves are interleaved.
        let theirs = Layout::Interleaved { heads: 1 }.to_theirs(&[0.0, 1.0, 2.0, 3.0], 4, 1);
        assert_eq!(theirs, [0.0, 2.0, 1.0, 3.0]);
        assert_eq!(
            Layout::Columns.to_ours(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3),
            [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]
        );
    }
}
