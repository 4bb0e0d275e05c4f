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

    /// Midpoints between neighbouring values, from zero outward: `len / 2` of them.
    pub fn midpoints(&self) -> &[f64] {
        &self.0.midpoints
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn built_in() -> [Grid; 4] {
        [Grid::prime(), Grid::fine(), Grid::normal(), Grid::linear()]
    }

    /// A valid grid of any length.
    fn any_grid() -> impl Strategy<Value = Grid> {
        prop::collection::btree_set(1u32..1_000_000, 1..=15).prop_map(|positive| {
            let positive: Vec<f32> = positive
                .into_iter()
                .map(|value| value as f32 / 7e5)
                .collect();
            Grid::from_positive("any".into(), &positive)
        })
    }

    #[test]
    fn the_prime_grid_is_the_one_of_the_design() {
        let grid = Grid::prime();
        let ranks = [13.0, 11.0, 7.0, 5.0, 3.0, 2.0, 1.0];
        assert_eq!(
            (grid.id(), grid.len(), grid.zero_code()),
            ("prime15", 15, 7)
        );
        for (rank, denominator) in ranks.into_iter().enumerate() {
            assert_eq!(grid.value(8 + rank as u8), Some(1.0 / denominator));
            assert_eq!(grid.value(6 - rank as u8), Some(-1.0 / denominator));
        }
        assert_eq!(grid.value(7), Some(0.0));
        assert_eq!(grid.value(15), None);
        assert!(!grid.is_wide());
        let gaps = [0.0769, 0.0140, 0.0519, 0.0571, 0.1333, 0.1667, 0.5];
        for (rank, gap) in gaps.into_iter().enumerate() {
            assert!((grid.gap_up(7 + rank as u8).unwrap() - gap).abs() < 1e-4);
            assert!((grid.gap_down(7 - rank as u8).unwrap() - gap).abs() < 1e-4);
        }
    }

    #[test]
    fn the_fine_grid_adds_five_values_a_side() {
        let (fine, prime) = (Grid::fine(), Grid::prime());
        assert_eq!(
            (fine.id(), fine.len(), fine.zero_code()),
            ("prime25", 25, 12)
        );
        assert!(fine.is_wide());
        let added: Vec<f32> = fine
            .values()
            .iter()
            .copied()
            .filter(|v| *v > 0.0 && !prime.values().contains(v))
            .collect();
        assert_eq!(
            added,
            [1.0 / 12.0, 1.0 / 8.0, 1.0 / 6.0, 1.0 / 4.0, 2.0 / 3.0]
        );
        assert!(
            prime
                .values()
                .iter()
                .all(|value| fine.values().contains(value))
        );
    }

    #[test]
    fn built_in_grids_obey_the_rules_and_are_found_by_id() {
        for grid in built_in() {
            assert_eq!(Grid::by_id(grid.id()), Some(grid.clone()));
            assert_eq!(Grid::new(grid.id(), grid.values()).unwrap(), grid);
            assert_eq!(grid.values()[grid.len() - 1], 1.0);
            assert_eq!(grid.gap_up(grid.len() as u8 - 1), None);
            assert_eq!(grid.gap_down(0), None);
            assert_eq!((grid.gap_up(255), grid.gap_down(255)), (None, None));
        }
        assert_eq!(Grid::by_id("prime13"), None);
    }

    #[test]
    fn invalid_tables_are_refused_with_the_reason() {
        let refused = |values: &[f32]| Grid::new("mine", values).unwrap_err().to_string();
        assert!(refused(&[]).contains("0 values"));
        assert!(refused(&[0.0]).contains("1 values"));
        assert!(refused(&[-1.0, 1.0]).contains("2 values"));
        assert!(refused(&[0.0; 33]).contains("33 values"));
        assert!(refused(&[f32::NEG_INFINITY, 0.0, f32::INFINITY]).contains("not finite"));
        assert!(refused(&[-1.0, f32::NAN, 1.0]).contains("not finite"));
        assert!(refused(&[-1.0, -1.0, 0.0, 1.0, 1.0]).contains("do not increase"));
        assert!(refused(&[-1.0, 0.0, 0.5]).contains("mirror"));
        assert!(refused(&[-1.0, 0.1, 1.0]).contains("mirror"));
        assert!(Grid::new("", &[-1.0, 0.0, 1.0]).is_err());
        let known = Grid::new("prime15", Grid::linear().values()).unwrap_err();
        assert!(matches!(known, LutError::KnownGrid { .. }), "{known}");
    }

    #[test]
    fn ties_go_toward_zero_and_odd_inputs_have_a_place() {
        let grid = Grid::new("halves", &[-1.0, -0.5, 0.0, 0.5, 1.0]).unwrap();
        let nearest = |x| grid.value(grid.nearest(x)).unwrap();
        assert_eq!(
            [0.25, -0.25, 0.75, -0.75].map(nearest),
            [0.0, 0.0, 0.5, -0.5]
        );
        assert_eq!(nearest(0.25f32.next_up()), 0.5);
        assert_eq!(nearest(-0.25f32.next_up()), -0.5);
        assert_eq!([0.0, -0.0, f32::NAN, -f32::NAN].map(nearest), [0.0; 4]);
        assert_eq!(
            [f32::INFINITY, f32::NEG_INFINITY, f32::MAX].map(nearest),
            [1.0, -1.0, 1.0]
        );
    }

    #[test]
    fn every_value_is_its_own_nearest() {
        for grid in built_in() {
            for (code, &value) in grid.values().iter().enumerate() {
                assert_eq!(usize::from(grid.nearest(value)), code, "{}", grid.id());
            }
        }
    }

    #[test]
    fn serialises_as_id_and_values() {
        for grid in built_in() {
            let text = serde_json::to_string(&grid).unwrap();
            assert!(
                text.starts_with(&format!(r#"{{"id":"{}","values":[-1.0,"#, grid.id())),
                "{text}"
            );
            assert_eq!(serde_json::from_str::<Grid>(&text).unwrap(), grid);
        }
        let bad = r#"{"id":"prime15","values":[-1.0,0.0,1.0]}"#;
        assert!(
            serde_json::from_str::<Grid>(bad)
                .unwrap_err()
                .to_string()
                .contains("prime15")
        );
        assert!(serde_json::from_str::<Grid>(r#"{"id":"x","values":[1e300,0,1]}"#).is_err());
    }

    proptest! {
        #[test]
        fn nearest_is_really_nearest(grid in any_grid(), x in -3f32..3.0) {
            let found = grid.nearest(x);
            let distance = |value: f32| (f64::from(value) - f64::from(x)).abs();
            let best = grid.values().iter().map(|&value| distance(value)).fold(f64::MAX, f64::min);
            prop_assert_eq!(distance(grid.value(found).unwrap()), best);
            // Of two equally near values the one nearer to zero.
            let zero = grid.zero_code();
            let toward_zero = if found > zero { found - 1 } else if found < zero { found + 1 } else { found };
            prop_assert!(toward_zero == found || distance(grid.value(toward_zero).unwrap()) > best);
        }

        #[test]
        fn midpoints_tie_toward_zero(grid in any_grid()) {
            for code in grid.zero_code()..grid.len() as u8 - 1 {
                let (low, high) = (grid.value(code).unwrap(), grid.value(code + 1).unwrap());
                let midpoint = (f64::from(low) + f64::from(high)) / 2.0;
                let x = midpoint as f32;
                let expected = if f64::from(x) > midpoint { code + 1 } else { code };
                prop_assert_eq!(grid.nearest(x), expected);
                prop_assert_eq!(grid.nearest(-x), grid.len() as u8 - 1 - expected);
            }
        }

        #[test]
        fn order_is_preserved(grid in any_grid(), bits in any::<[u32; 2]>()) {
            let [a, b] = bits.map(f32::from_bits);
            prop_assume!(!a.is_nan() && !b.is_nan());
            let (a, b) = if a <= b { (a, b) } else { (b, a) };
            prop_assert!(grid.nearest(a) <= grid.nearest(b));
        }

        #[test]
        fn any_bits_find_a_code(grid in any_grid(), bits in any::<u32>()) {
            let x = f32::from_bits(bits);
            let code = grid.nearest(x);
            prop_assert!(usize::from(code) < grid.len());
            prop_assert_eq!(grid.nearest(-x), grid.len() as u8 - 1 - code);
        }

        #[test]
        fn gaps_lead_from_value_to_value(grid in any_grid(), code in 0u8..32) {
            let step = |gap: Option<f32>, to: Option<f32>| match (gap, grid.value(code), to) {
                (Some(gap), Some(from), Some(to)) => gap > 0.0 && gap == (to - from).abs(),
                (None, from, to) => from.is_none() || to.is_none(),
                _ => false,
            };
            prop_assert!(step(grid.gap_up(code), grid.value(code + 1)));
            prop_assert!(step(grid.gap_down(code), code.checked_sub(1).and_then(|c| grid.value(c))));
        }

        #[test]
        fn serialisation_keeps_every_bit(bits in prop::collection::btree_set(1u32..0x7f80_0000, 1..=15)) {
            let positive: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let grid = Grid::from_positive("any".into(), &positive);
            let text = serde_json::to_string(&grid).unwrap();
            prop_assert_eq!(serde_json::from_str::<Grid>(&text).unwrap(), grid);
        }
    }
}
