//! Where our parameters lie in the files of others: names, order of rows, transposition.
//!
//! Ours are `tok_embedding`, `pos_embedding`, `blocks.L.{norm1,qkv,attention_out,norm2,up,down}`,
//! `norm` and `head`, with `.weight` and `.bias` after norms and `.bias` after linear layers.

use crate::config::{FeedForward, PositionKind};
use crate::shape::ModelShape;

/// Whose names and shapes the tensors of a file have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Llama and its many relatives in the `transformers` library.
    Llama,
    /// GPT-2 in the `transformers` library: linear layers are stored (in, out).
    Gpt2,
    /// llama.cpp's GGUF.
    Gguf,
}

/// The order of the rows of a head of queries or keys, whose pairs are turned by their positions.
/// In ours, rows i and i + D/2 are a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadRows {
    /// The same.
    Halves,
    /// Rows 2i and 2i + 1 are a pair.
    Pairs,
    /// The first so many rows are a head of their own whose halves are turned; the rest is not.
    Part(usize),
}

/// How others lay out a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convention {
    /// Whose names.
    pub style: Style,
    /// Rows of queries and keys.
    pub heads: HeadRows,
    /// Whether queries, keys and values are one tensor, and gate and up another.
    pub fused: bool,
    /// What the norm before the feed-forward layer is called in GGUF.
    pub gguf_norm2: &'static str,
}

impl Convention {
    /// Names of `transformers` for Llama.
    pub const LLAMA: Convention = Convention::of(Style::Llama, HeadRows::Halves);
    /// Names of `transformers` for GPT-2.
    pub const GPT2: Convention = Convention::of(Style::Gpt2, HeadRows::Halves);

    const fn of(style: Style, heads: HeadRows) -> Convention {
        Convention {
            style,
            heads,
            fused: false,
            gguf_norm2: "ffn_norm",
        }
    }

    /// Names of llama.cpp.
    pub const fn gguf(heads: HeadRows) -> Convention {
        Convention::of(Style::Gguf, heads)
    }

    /// How the rows of `heads` heads of width `dim` lie in a tensor, which may hold more after them.
    fn turned(self, heads: usize, dim: usize) -> Layout {
        match self.heads {
            HeadRows::Halves => Layout::Rows,
            HeadRows::Pairs => Layout::Interleaved { heads },
            HeadRows::Part(turned) => Layout::Part { heads, dim, turned },
        }
    }
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
    /// Heads of which the first rows are turned: rows i and i + turned/2 of a head are our i and
    /// i + D/2. What comes after the heads lies as it is.
    Part {
        /// Number of heads.
        heads: usize,
        /// Rows D of a head.
        dim: usize,
        /// Rows that are turned.
        turned: usize,
    },
}

impl Layout {
    /// Our rows (`rows`, `cols`), from what the file holds.
    pub(crate) fn to_ours(self, values: Vec<f32>, rows: usize, cols: usize) -> Vec<f32> {
        match self {
            Layout::Rows => values,
            Layout::Columns => transpose(&values, cols, rows),
            _ => self.move_rows(&values, rows, cols, |ours, theirs| (theirs, ours)),
        }
    }

    /// What the file holds, from our rows.
    pub(crate) fn to_theirs(self, values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        match self {
            Layout::Rows => values.to_vec(),
            Layout::Columns => transpose(values, rows, cols),
            _ => self.move_rows(values, rows, cols, |ours, theirs| (ours, theirs)),
        }
    }

    /// The shape in the file of a matrix of ours.
    pub(crate) fn stored_shape(self, rows: usize, cols: usize) -> [usize; 2] {
        match self {
            Layout::Columns => [cols, rows],
            _ => [rows, cols],
        }
    }

    /// The row of theirs that holds our row `ours` of `rows`.
    fn theirs(self, ours: usize, rows: usize) -> usize {
        let (heads, dim) = match self {
            Layout::Interleaved { heads } => (heads, rows / heads.max(1)),
            Layout::Part { heads, dim, .. } => (heads, dim),
            Layout::Rows | Layout::Columns => return ours,
        };
        let (head, i) = (ours / dim, ours % dim);
        if head >= heads {
            return ours;
        }
        let half = dim / 2;
        let within = match self {
            Layout::Part { turned, .. } => {
                let (turned, side) = (turned / 2, i / half);
                // The halves of what is turned, then those of the rest.
                if i % half < turned {
                    i % half + side * turned
                } else {
                    turned + i % half + side * (half - turned)
                }
            }
            _ => 2 * (i % half) + i / half,
        };
        head * dim + within
    }

    /// Copies rows between our order and theirs; `direction(ours, theirs)` is (from, to).
    fn move_rows(
        self,
        values: &[f32],
        rows: usize,
        cols: usize,
        direction: impl Fn(usize, usize) -> (usize, usize),
    ) -> Vec<f32> {
        let mut out = vec![0.0; values.len()];
        for ours in 0..rows {
            let (from, to) = direction(ours, self.theirs(ours, rows));
            out[to * cols..][..cols].copy_from_slice(&values[from * cols..][..cols]);
        }
        out
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
        if shape.qk_norm {
            for part in ["query_norm", "key_norm"] {
                matrix(
                    format!("blocks.{layer}.{part}.weight"),
                    shape.head_dim,
                    None,
                );
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
    let gguf = convention.style == Style::Gguf;
    let gpt2 = convention.style == Style::Gpt2;
    let pick =
        |llama: &'static str, gpt2_name: &'static str, gguf_name: &'static str| match convention
            .style
        {
            Style::Llama => llama,
            Style::Gpt2 => gpt2_name,
            Style::Gguf => gguf_name,
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
    let prefix = match convention.style {
        Style::Llama => format!("model.layers.{layer}"),
        Style::Gpt2 => format!("h.{layer}"),
        Style::Gguf => format!("blk.{layer}"),
    };
    let named = |local: &str| format!("{prefix}.{local}.{kind}");
    let linear = if gpt2 && kind == "weight" {
        Layout::Columns
    } else {
        Layout::Rows
    };
    let one = |local: &str, rows| vec![piece(named(local), rows, linear)];
    let (q, kv, f) = (shape.attention_width(), shape.kv_width(), shape.ff_width);
    let (heads, dim) = (shape.n_head, shape.head_dim);
    match part {
        "norm1" => vec![piece(
            named(pick("input_layernorm", "ln_1", "attn_norm")),
            c,
            Layout::Rows,
        )],
        "norm2" => vec![piece(
            named(pick(
                "post_attention_layernorm",
                "ln_2",
                convention.gguf_norm2,
            )),
            c,
            Layout::Rows,
        )],
        "qkv" if gpt2 => one("attn.c_attn", q + 2 * kv),
        "qkv" if gguf && !rope(shape) => one("attn_qkv", q + 2 * kv),
        "query_norm" => one(pick("self_attn.q_norm", "", "attn_q_norm"), dim),
        "key_norm" => one(pick("self_attn.k_norm", "", "attn_k_norm"), dim),
        "qkv" if convention.fused => vec![piece(
            named(pick("self_attn.qkv_proj", "", "attn_qkv")),
            q + 2 * kv,
            convention.turned(heads + shape.n_kv_head, dim),
        )],
        "qkv" => vec![
            piece(
                named(pick("self_attn.q_proj", "", "attn_q")),
                q,
                convention.turned(heads, dim),
            ),
            piece(
                named(pick("self_attn.k_proj", "", "attn_k")),
                kv,
                convention.turned(shape.n_kv_head, dim),
            ),
            piece(
                named(pick("self_attn.v_proj", "", "attn_v")),
                kv,
                Layout::Rows,
            ),
        ],
        "attention_out" => one(pick("self_attn.o_proj", "attn.c_proj", "attn_output"), c),
        "up" if convention.fused => one(pick("mlp.gate_up_proj", "", "ffn_up"), 2 * f),
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
            Layout::Part {
                heads: 1,
                dim: 6,
                turned: 4,
            },
        ] {
            let theirs = layout.to_theirs(&values, 8, 3);
            assert_eq!(layout.to_ours(theirs.clone(), 8, 3), values, "{layout:?}");
            assert_eq!(theirs == values, layout == Layout::Rows);
        }
        // One head of four: the halves are interleaved.
        let theirs = Layout::Interleaved { heads: 1 }.to_theirs(&[0.0, 1.0, 2.0, 3.0], 4, 1);
        assert_eq!(theirs, [0.0, 2.0, 1.0, 3.0]);
        // A head of six of which four are turned, and one row that is no head.
        let part = Layout::Part {
            heads: 1,
            dim: 6,
            turned: 4,
        };
        let theirs: Vec<f32> = (0..7).map(|i| i as f32).collect();
        let ours = part.to_ours(theirs, 7, 1);
        assert_eq!(ours, [0.0, 1.0, 4.0, 2.0, 3.0, 5.0, 6.0]);
        assert_eq!(
            Layout::Columns.to_ours(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3),
            [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]
        );
    }
}
