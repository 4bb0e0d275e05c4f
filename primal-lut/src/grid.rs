//! The grid: a sorted, odd-symmetric table of values that a code names.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::LutError;

/// Index of a value in its grid. Order of codes is order of values.
pub type Code = u8;

/// Positive values of `prime15`: 1/p for the six primes 2..13, and the unit anchor.
const PRIME: [f64; 7] = [
    1.0 / 13.0,
    1.0 / 11.0,
    1.0 / 7.0,
    1.0 / 5.0,
    1.0 / 3.0,
    1.0 / 2.0,
    1.0,
];
/// Positive values of `prime25`: those of `prime15` and 1/12, 1/8, 1/6, 1/4, 2/3.
const FINE: [f64; 12] = [
    1.0 / 13.0,
    1.0 / 12.0,
    1.0 / 11.0,
    1.0 / 8.0,
    1.0 / 7.0,
    1.0 / 6.0,
    1.0 / 5.0,
    1.0 / 4.0,
    1.0 / 3.0,
    1.0 / 2.0,
    2.0 / 3.0,
    1.0,
];
/// Positive values of `normal15`: NF4's eight-value half (QLoRA, Dettmers et al. 2023,
/// appendix E), mirrored, so that the table is odd-symmetric with an exact zero.
const NORMAL: [f64; 7] = [
    0.091_050_036_251_544_95,
    0.184_773_430_228_233_34,
    0.284_441_381_692_886_35,
    0.394_917_488_098_144_53,
    0.525_073_051_452_636_7,
    0.696_192_800_998_687_7,
    1.0,
];
/// Positive values of `linear15`: symmetric INT4.
const LINEAR: [f64; 7] = [
    1.0 / 7.0,
    2.0 / 7.0,
    3.0 / 7.0,
    4.0 / 7.0,
    5.0 / 7.0,
    6.0 / 7.0,
    1.0,
];

/// Longest grid: five bits a code, one of them in the bit plane, odd length.
const MAX_LEN: usize = 31;
/// Longest grid whose codes fit a nibble (odd length).
const MAX_NARROW_LEN: usize = 15;

/// A sorted, odd-symmetric table of values with an id. Cheap to clone.
///
/// Serialises as `{"id": .., "values": [..]}`; reading it back applies the rules of [`Grid::new`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "GridData", into = "GridData")]
pub struct Grid(Arc<Inner>);

#[derive(Debug, PartialEq)]
struct Inner {
    id: String,
    values: Vec<f32>,
    table: [f32; 32],
    /// Midpoints between neighbours, from zero outward. In f64 the sum of two neighbours is
    /// exact for every table in use, so that ties are seen.
    midpoints: Vec<f64>,
}

impl Grid {
    /// The prime grid `prime15`: 0, ±1/13, ±1/11, ±1/7, ±1/5, ±1/3, ±1/2, ±1; code 7 is zero.
    ///
    /// The project's "13-value grid" is codes 1..=13: zero and ±1/p for the six primes 2..13.
    /// Codes 0 and 14 are the unit anchors ±1; code 15 is invalid.
    pub fn prime() -> Grid {
        Grid::built_in("prime15", &PRIME)
    }

    /// The fine grid `prime25`: `prime15` with ±1/12, ±1/8, ±1/6, ±1/4 and ±2/3; code 12 is zero.
    pub fn fine() -> Grid {
        Grid::built_in("prime25", &FINE)
    }

    /// `normal15`: quantiles of the normal distribution like NF4's, but odd-symmetric.
    pub fn normal() -> Grid {
        Grid::built_in("normal15", &NORMAL)
    }

    /// `linear15`: k/7 for k in −7..=7.
    pub fn linear() -> Grid {
        Grid::built_in("linear15", &LINEAR)
    }

    /// The built-in grid of this id.
    pub fn by_id(id: &str) -> Option<Grid> {
        match id {
            "prime15" => Some(Grid::prime()),
            "prime25" => Some(Grid::fine()),
            "normal15" => Some(Grid::normal()),
            "linear15" => Some(Grid::linear()),
            _ => None,
        }
    }

    /// A grid from its values: an odd number of them in 3..=31, finite, strictly increasing and
    /// odd-symmetric (`values[i] == -values[len - 1 - i]`).
    ///
    /// # Errors
    /// [`LutError::Grid`] names the broken rule; [`LutError::KnownGrid`] if the id is a built-in
    /// one and the values are not its values.
    pub fn new(id: impl Into<String>, values: &[f32]) -> Result<Grid, LutError> {
        let id = id.into();
        let refuse = |reason: String| {
            Err(LutError::Grid {
                id: id.clone(),
                reason,
            })
        };
        if id.is_empty() {
            return refuse("the id is empty".into());
        }
        let len = values.len();
        if !(3..=MAX_LEN).contains(&len) || len.is_multiple_of(2) {
            return refuse(format!(
                "{len} values, expected an odd number in 3..={MAX_LEN}"
            ));
        }
        if let Some(code) = values.iter().position(|value| !value.is_finite()) {
            return refuse(format!(
                "value {} of code {code} is not finite",
                values[code]
            ));
        }
        if let Some(code) = values.windows(2).position(|pair| pair[0] >= pair[1]) {
            return refuse(format!(
                "values of codes {code} and {} do not increase",
                code + 1
            ));
        }
        if let Some(code) = (0..=len / 2).find(|&code| values[code] != -values[len - 1 - code]) {
            return refuse(format!(
                "codes {code} and {} are not mirror images",
                len - 1 - code
            ));
        }
        match Grid::by_id(&id) {
            Some(known) if known.values() == values => Ok(known),
            Some(_) => Err(LutError::KnownGrid { id }),
            None => Ok(Grid::from_positive(id, &values[len / 2 + 1..])),
        }
    }

    /// Id, such as `prime15`.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The values, (len) f32, increasing; the index is the code.
    pub fn values(&self) -> &[f32] {
        &self.0.values
    }

    /// Number of values: odd, 3..=31.
    #[allow(clippy::len_without_is_empty, reason = "a grid is never empty")]
    pub fn len(&self) -> usize {
        self.0.values.len()
    }

    /// The code of zero: `len / 2`.
    pub fn zero_code(&self) -> Code {
        (self.len() / 2) as Code
    }

    /// Whether a code needs five bits: a nibble plane and a bit plane.
    pub fn is_wide(&self) -> bool {
        self.len() > MAX_NARROW_LEN
    }

    /// The values padded with 0.0 to 32 entries, for table lookups.
    pub fn table(&self) -> &[f32; 32] {
        &self.0.table
    }

    /// The value of a code, `None` for an invalid code.
    pub fn value(&self, code: Code) -> Option<f32> {
        self.0.values.get(usize::from(code)).copied()
    }

    /// The code of the value nearest to `x`. On an exact tie the one nearer to zero; infinities
    /// go to the ends, NaN to zero.
    pub fn nearest(&self, x: f32) -> Code {
        let size = f64::from(x.abs());
        // No comparison with NaN holds, so NaN takes no step away from zero.
        let steps = self
            .0
            .midpoints
            .iter()
            .filter(|&&midpoint| size > midpoint)
            .count() as Code;
        if x < 0.0 {
            self.zero_code() - steps
        } else {
            self.zero_code() + steps
        }
    }

    /// Distance to the next larger value, in units of the scale; `None` at the upper end.
    pub fn gap_up(&self, code: Code) -> Option<f32> {
        Some(self.value(code.checked_add(1)?)? - self.value(code)?)
    }

    /// Distance to the next smaller value, in units of the scale; `None` at the lower end.
    pub fn gap_down(&self, code: Code) -> Option<f32> {
        Some(self.value(code)? - self.value(code.checked_sub(1)?)?)
    }

    fn built_in(id: &str, positive: &[f64]) -> Grid {
        let positive: Vec<f32> = positive.iter().map(|&value| value as f32).collect();
        Grid::from_positive(id.to_owned(), &positive)
    }

    /// The grid of valid positive values, mirrored.
    fn from_positive(id: String, positive: &[f32]) -> Grid {
        let negative = positive.iter().rev().map(|value| -value);
        let values: Vec<f32> = negative
            .chain([0.0])
            .chain(positive.iter().copied())
            .collect();
        let mut table = [0.0; 32];
        table[..values.len()].copy_from_slice(&values);
        let midpoints = values[positive.len()..]
            .windows(2)
            .map(|pair| (f64::from(pair[0]) + f64::from(pair[1])) / 2.0)
            .collect();
        Grid(Arc::new(Inner {
            id,
            values,
            table,
            midpoints,
        }))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GridData {
    id: String,
    /// Widened, so that text formats give back the same f32 whatever their parser's last digit.
    values: Vec<f64>,
}

impl TryFrom<GridData> for Grid {
    type Error = LutError;

    fn try_from(data: GridData) -> Result<Grid, LutError> {
        let values: Vec<f32> = data.values.into_iter().map(|value| value as f32).collect();
        Grid::new(data.id, &values)
    }
}

impl From<Grid> for GridData {
    fn from(grid: Grid) -> GridData {
        let values = grid.values().iter().map(|&value| value.into()).collect();
        GridData {
            id: grid.id().to_owned(),
            values,
        }
    }
}
