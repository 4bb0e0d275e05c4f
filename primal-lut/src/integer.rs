//! Integer views of a grid, for products that stay in integers until the scale is applied.

use crate::grid::Grid;

/// Least common denominator of `prime15`: 2·3·5·7·11·13.
const DENOMINATOR: f64 = 30030.0;

/// A grid in units of `1 / unit`, rounded.
#[derive(Clone, Debug, PartialEq)]
pub struct Int8Table {
    /// Value of each code times `unit`, rounded half away from zero; zero past the grid's end.
    pub values: [i8; 32],
    /// What 1.0 became.
    pub unit: i8,
    /// Largest |entry / unit − value| / |value| over the codes but zero.
    pub max_relative_error: f32,
}

impl Grid {
    /// The values times 30030 where all of those are integers that fit i16 (`prime15`,
    /// `linear15`); `None` for any other grid. Entries past the grid's end are zero.
    pub fn as_i16_30030(&self) -> Option<[i16; 32]> {
        let mut table = [0; 32];
        for (entry, &value) in table.iter_mut().zip(self.values()) {
            let integer = (f64::from(value) * DENOMINATOR).round();
            let exact = (integer / DENOMINATOR) as f32 == value;
            if !exact || integer.abs() > f64::from(i16::MAX) {
                return None;
            }
            *entry = integer as i16;
        }
        Some(table)
    }

    /// The values in units of `1 / unit`, `None` if one of them does not fit ±127 or `unit` is
    /// not positive. For `prime15` the unit 119 is within 1.7 % of every value.
    pub fn as_i8(&self, unit: i8) -> Option<Int8Table> {
        let mut table = Int8Table {
            values: [0; 32],
            unit,
            max_relative_error: 0.0,
        };
        for (entry, &value) in table.values.iter_mut().zip(self.values()) {
            let integer = (value * f32::from(unit)).round();
            if unit <= 0 || integer.abs() > f32::from(i8::MAX) {
                return None;
            }
            *entry = integer as i8;
            if value != 0.0 {
                let error = (integer / f32::from(unit) - value).abs() / value.abs();
                table.max_relative_error = table.max_relative_error.max(error);
            }
        }
        Some(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prime_times_30030_is_exact() {
        let table = Grid::prime().as_i16_30030().unwrap();
        assert_eq!(
            table[7..15],
            [0, 2310, 2730, 4290, 6006, 10010, 15015, 30030]
        );
        assert_eq!(
            table[..7],
            [-30030, -15015, -10010, -6006, -4290, -2730, -2310]
        );
        assert_eq!(table[15..], [0; 17]);
    }

    #[test]
    fn only_grids_with_that_denominator_have_the_i16_view() {
        assert_eq!(Grid::linear().as_i16_30030().unwrap()[8], 4290);
        // ±1/4 and ±1/8 are no multiples of 1/30030.
        assert_eq!(Grid::fine().as_i16_30030(), None);
        assert_eq!(Grid::normal().as_i16_30030(), None);
        // 2 * 30030 does not fit.
        let large = Grid::new("large", &[-2.0, 0.0, 2.0]).unwrap();
        assert_eq!(large.as_i16_30030(), None);
    }

    #[test]
    fn i8_views_state_their_error() {
        let table = Grid::prime().as_i8(119).unwrap();
        assert_eq!(table.values[7..15], [0, 9, 11, 17, 24, 40, 60, 119]);
        assert_eq!(table.values[..7], [-119, -60, -40, -24, -17, -11, -9]);
        assert!(
            (0.0168..0.0169).contains(&table.max_relative_error),
            "{table:?}"
        );
        assert!(Grid::fine().as_i8(119).unwrap().max_relative_error < 0.017);
        assert_eq!(Grid::linear().as_i8(119).unwrap().max_relative_error, 0.0);
    }

    #[test]
    fn i8_views_refuse_what_does_not_fit() {
        assert_eq!(Grid::prime().as_i8(0), None);
        assert_eq!(Grid::prime().as_i8(-1), None);
        let large = Grid::new("large", &[-2.0, 0.0, 2.0]).unwrap();
        assert_eq!(large.as_i8(64), None);
        assert_eq!(large.as_i8(63).unwrap().values[2], 126);
    }
}
