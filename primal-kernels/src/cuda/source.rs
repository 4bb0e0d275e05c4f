//! The text of the kernels: a prelude made from the constants of the CPU code, then files of
//! `primal-kernels/cuda/` in order, for each translation unit.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::sampling::{BAD_LOGIT, NO_TOKEN};
use crate::act::{BLOCK_ROWS, GELU_CUBE, GELU_SLOPE};
use crate::attention::TILE;
use crate::loss::IGNORED;
use crate::sampling::WEIGHT;
use crate::vote::{BALLOT_LIMIT, PHILOX_KEY_STEPS, PHILOX_MULTIPLIERS};

/// Options of every compilation. Contraction is off: sums and products round as on the CPU.
pub const OPTIONS: [&str; 2] = ["--std=c++17", "--fmad=false"];

/// Rows of a weight's gradient whose sums by column are folded together, as `TILE_ROWS` of
/// primal-optim.
pub(crate) const GRADIENT_TILE_ROWS: usize = 64;

/// Elements that `sum_squares` adds up in f32.
pub(crate) const SUM_SQUARES_BLOCK: usize = crate::adamw::SUM_BLOCK;

/// Least column statistic relative to the mean, as the rule `consensus` has it.
const MIN_COLUMN: f32 = 1e-6;

const COMMON: (&str, &str) = ("common.cuh", include_str!("../../cuda/common.cuh"));
const INT8: (&str, &str) = ("int8.cuh", include_str!("../../cuda/int8.cuh"));

const KERNELS: [(&str, &str); 13] = [
    COMMON,
    ("weights.cu", include_str!("../../cuda/weights.cu")),
    ("gemm.cu", include_str!("../../cuda/gemm.cu")),
    ("norm.cu", include_str!("../../cuda/norm.cu")),
    ("elementwise.cu", include_str!("../../cuda/elementwise.cu")),
    ("attention.cu", include_str!("../../cuda/attention.cu")),
    ("loss.cu", include_str!("../../cuda/loss.cu")),
    ("vote.cu", include_str!("../../cuda/vote.cu")),
    ("rules.cu", include_str!("../../cuda/rules.cu")),
    INT8,
    ("int8.cu", include_str!("../../cuda/int8.cu")),
    ("sample.cu", include_str!("../../cuda/sample.cu")),
    ("exchange.cu", include_str!("../../cuda/exchange.cu")),
];

const TENSOR: [(&str, &str); 3] = [
    COMMON,
    INT8,
    ("tensor.cu", include_str!("../../cuda/tensor.cu")),
];

/// A translation unit: what is compiled, and loaded as one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// The kernels that every card runs.
    Kernels,
    /// Products in int8 on tensor cores: an alternative to some of the others, never needed.
    Tensor,
}

impl Unit {
    /// The oldest compute capability (times ten) that it is for.
    pub fn oldest(self) -> i32 {
        match self {
            // dp4a.
            Unit::Kernels => 61,
            // mma of bytes.
            Unit::Tensor => 75,
        }
    }

    fn files(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Unit::Kernels => &KERNELS,
            Unit::Tensor => &TENSOR,
        }
    }

    /// The whole text.
    pub fn source(self) -> String {
        let mut text = prelude();
        for (name, content) in self.files() {
            let _ = writeln!(text, "#line 1 \"{name}\"\n{content}");
        }
        text
    }

    /// Hex sha256 of sources and options: what a compiled image was made of.
    pub fn source_hash(self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.source());
        hash.update(OPTIONS.join(" "));
        hex(&hash.finalize())
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The constants that CPU and GPU share, each defined once, in Rust.
fn prelude() -> String {
    let mut text = String::from("#line 1 \"prelude\"\n");
    let mut define = |name: &str, value: String| {
        let _ = writeln!(text, "#define {name} {value}");
    };
    for i in 0..2 {
        define(
            &format!("PHILOX_MULTIPLIER_{i}"),
            format!("{:#x}u", PHILOX_MULTIPLIERS[i]),
        );
        define(
            &format!("PHILOX_KEY_STEP_{i}"),
            format!("{:#x}u", PHILOX_KEY_STEPS[i]),
        );
    }
    define("BALLOT_LIMIT", BALLOT_LIMIT.to_string());
    define("WIDE_VOTE_LIMIT", i16::MAX.to_string());
    define("TILE_ROWS", GRADIENT_TILE_ROWS.to_string());
    define("SUM_BLOCK_ROWS", BLOCK_ROWS.to_string());
    define("SUM_SQUARES_BLOCK", SUM_SQUARES_BLOCK.to_string());
    define("ATTENTION_TILE", TILE.to_string());
    define("IGNORED_TARGET", format!("{IGNORED:#x}u"));
    define("NO_TOKEN", format!("{NO_TOKEN:#x}u"));
    define("BAD_LOGIT", format!("{BAD_LOGIT:#x}u"));
    for (name, value) in [
        ("GELU_SLOPE", GELU_SLOPE),
        ("GELU_CUBE", GELU_CUBE),
        ("MIN_COLUMN", MIN_COLUMN),
        ("SAMPLE_WEIGHT", WEIGHT),
        ("SMALLEST_SCALE", f32::MIN_POSITIVE),
    ] {
        // The bits, so that nothing depends on how decimals are read.
        define(
            name,
            format!("__int_as_float({:#x}) /* {value} */", value.to_bits()),
        );
    }
    text
}

/// A compile log with the line of the source under every message that names one.
pub(crate) fn with_source_lines(log: &str) -> String {
    let mut text = String::new();
    for message in log.lines() {
        let _ = writeln!(text, "{message}");
        if let Some(line) = place(message).and_then(|(file, line)| source_line(file, line)) {
            let _ = writeln!(text, "    | {line}");
        }
    }
    text
}

/// The file and line that a message such as `vote.cu(12): error: ...` begins with.
fn place(message: &str) -> Option<(&str, usize)> {
    let (file, rest) = message.split_once('(')?;
    let (line, _) = rest.split_once("):")?;
    Some((file, line.parse().ok()?))
}

fn source_line(file: &str, line: usize) -> Option<&'static str> {
    let mut files = KERNELS.iter().chain(&TENSOR);
    let (_, content) = files.find(|(name, _)| *name == file)?;
    content.lines().nth(line.checked_sub(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_show_their_line() {
        let log = "weights.cu(1): error: nonsense\nnowhere.cu(1): error: other\n";
        let shown = with_source_lines(log);
        assert!(
            shown.contains("nonsense\n    | // Reading weights"),
            "{shown}"
        );
        assert_eq!(shown.lines().count(), 3);
    }

    #[test]
    fn constants_come_from_the_cpu_code() {
        let text = prelude();
        assert!(text.contains("#define PHILOX_MULTIPLIER_0 0xd2511f53u"));
        assert!(text.contains("#define ATTENTION_TILE 64"));
        assert!(text.contains("#define IGNORED_TARGET 0xffffffffu"));
    }
}
