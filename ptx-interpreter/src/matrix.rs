//! Products of matrices of signed bytes by a warp: where the elements lie in its registers.
//!
//! d (m, 8) = a (m, k) b (k, 8) + c (m, 8), with four summands a register, the first in its lowest
//! byte. For lane 4 g + t, from "Matrix Fragments for mma.m8n8k16" and "for mma.m16n8k32" of the
//! PTX ISA, by register i:
//!
//! - a: row g + 8 (i mod m / 8), summands from 4 t + 16 (i div m / 8) on;
//! - b: column g, summands from 4 t + 16 i on;
//! - c and d: row g + 8 (i div 2), column 2 t + i mod 2.

/// Lanes of a warp.
const LANES: usize = 32;
/// Columns of every shape.
const COLS: usize = 8;

/// The shape of a product of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatrixShape {
    rows: usize,
    depth: usize,
}

impl MatrixShape {
    /// The shape that PTX names so.
    pub(crate) fn parse(name: &str) -> Option<MatrixShape> {
        match name {
            "m8n8k16" => Some(MatrixShape { rows: 8, depth: 16 }),
            "m16n8k32" => Some(MatrixShape {
                rows: 16,
                depth: 32,
            }),
            _ => None,
        }
    }

    pub(crate) fn a_registers(self) -> usize {
        self.rows * self.depth / (4 * LANES)
    }

    pub(crate) fn b_registers(self) -> usize {
        self.depth * COLS / (4 * LANES)
    }

    pub(crate) fn c_registers(self) -> usize {
        self.rows * COLS / LANES
    }

    /// Each lane's registers of d, from those of a, b and c one after the other.
    pub(crate) fn multiply_add(self, lanes: &[Vec<u32>]) -> Vec<Vec<u32>> {
        let (rows, depth) = (self.rows, self.depth);
        let mut a = vec![0_i8; rows * depth];
        let mut b = vec![0_i8; COLS * depth];
        for (lane, registers) in lanes.iter().enumerate() {
            let (g, t) = (lane / 4, lane % 4);
            let (of_a, rest) = registers.split_at(self.a_registers());
            for (i, register) in of_a.iter().enumerate() {
                let (row, start) = (g + 8 * (i % (rows / 8)), 4 * t + 16 * (i / (rows / 8)));
                put(&mut a[row * depth + start..], *register);
            }
            for (i, register) in rest[..self.b_registers()].iter().enumerate() {
                put(&mut b[g * depth + 4 * t + 16 * i..], *register);
            }
        }
        let dot = |row: usize, col: usize| {
            let pairs = a[row * depth..][..depth].iter().zip(&b[col * depth..]);
            pairs
                .map(|(&a, &b)| i32::from(a) * i32::from(b))
                .sum::<i32>()
        };
        let lane = |(lane, registers): (usize, &Vec<u32>)| {
            let c = &registers[self.a_registers() + self.b_registers()..];
            let element = |(i, c): (usize, &u32)| {
                // Without .satfinite a sum wraps.
                c.wrapping_add_signed(dot(lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2))
            };
            c.iter().enumerate().map(element).collect()
        };
        lanes.iter().enumerate().map(lane).collect()
    }
}

/// The four bytes of a register, the lowest first.
fn put(to: &mut [i8], register: u32) {
    for (to, byte) in to.iter_mut().zip(register.to_le_bytes()) {
        *to = byte.cast_signed();
    }
}
