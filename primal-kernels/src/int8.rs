//! Products of int8 activations with weights from the grid, summed in integers.
//!
//! A weight is its grid value in units of 1/119, an i8; an activation is an i8 in units of 1/127
//! of the largest magnitude in its token, or in its group where weights have scales by group.
//! Products are summed in i32, exactly, and only then scaled, so every
//! tier, every thread count and every order of summation gives the same bits:
//!
//! y[t][r] = Σ_g (Σ_{c in g} q[t][c] · table[code[r][c]]) as f32 · scale[r][g] · (x_scale[t][g] / 119)
//!
//! with groups g folded in order, each product taken from the left and rounded to f32. The table is
//! within 1.7 % of the prime grid's values ([`Int8Grid::max_relative_error`]); activations are
//! within half of 1/127 of the largest that shares their scale.
//!
//! A group with a NaN or an infinity gets the scale NaN: all products of its token are NaN, as they
//! would be in float.

mod bytes;
mod gemm;
mod gemv;
mod packed;
mod panel;
mod quantise;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use bytes::{ByteWeights, byte_matvec};
pub use gemm::{int8_matmul_nn, int8_matmul_nt, int8_panel_bytes};
pub use gemv::int8_matvec;
pub use packed::PackedWeights;
pub use panel::Int8Rows;
pub use quantise::QuantisedRows;

use primal_lut::Grid;

use crate::isa::{Isa, Tier};

/// Columns that share a partial sum of activations, so the finest group of weight scales.
pub(crate) const GROUP_UNIT: usize = 32;

/// The longest row: i32 sums of products of bytes cannot overflow below it.
pub const INT8_MAX_COLS: usize = 1 << 16;

/// Whether rows of `cols` columns with a scale for each `group` of them have an integer form.
pub(crate) fn has_int8_form(cols: usize, group: usize) -> bool {
    (group == cols || group.is_multiple_of(GROUP_UNIT)) && cols <= INT8_MAX_COLS
}

/// Which instructions multiply bytes. All give the same integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    Scalar,
    /// `maddubs` over |w| and x·sign(w): pairs stay within 2 · 127 · 127 < 2¹⁵.
    Avx2,
    /// 256-bit `vpdpbusd`.
    AvxVnni,
    /// 512-bit `vpdpbusd`.
    Avx512Vnni,
}

impl Path {
    pub(crate) fn of(isa: Isa) -> Path {
        match (isa.tier(), isa.extras().vnni) {
            (Tier::Scalar, _) => Path::Scalar,
            (Tier::Avx2, true) => Path::AvxVnni,
            (Tier::Avx512, true) => Path::Avx512Vnni,
            (Tier::Avx2 | Tier::Avx512, false) => Path::Avx2,
        }
    }
}

/// A grid as integers.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8Grid {
    /// Grid value of each code in units of 1 / `unit`; zero past the grid's end.
    pub(crate) values: [i8; 32],
    /// 1 / unit.
    pub(crate) unit_value: f32,
    /// Whether codes need the second half of the table.
    pub(crate) wide: bool,
    max_relative_error: f32,
}

impl Int8Grid {
    /// The integer view of a grid: unit 119 where it fits, else the unit of least error; `None`
    /// for a grid whose values do not fit i8 at any unit.
    pub fn new(grid: &Grid) -> Option<Int8Grid> {
        let table = grid.as_i8(119).or_else(|| {
            (1..=i8::MAX)
                .filter_map(|unit| grid.as_i8(unit))
                .min_by(|a, b| a.max_relative_error.total_cmp(&b.max_relative_error))
        })?;
        Some(Int8Grid {
            values: table.values,
            unit_value: 1.0 / f32::from(table.unit),
            wide: grid.is_wide(),
            max_relative_error: table.max_relative_error,
        })
    }

    /// Largest |integer value − grid value| / |grid value|.
    pub fn max_relative_error(&self) -> f32 {
        self.max_relative_error
    }
}

#[cfg(test)]
mod tests;
